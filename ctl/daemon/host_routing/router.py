"""The daemon's part of host routing: what it watches for it, and when."""

from collections.abc import Callable
from pathlib import Path

from ctl.daemon.host_routing.chains import POLL_SECONDS, ChainWatch
from ctl.daemon.host_routing.groups import PolicyGroups
from ctl.daemon.host_routing.keeper import RouteKeeper
from ctl.daemon.jobs import Jobs
from ctl.daemon.log import Log
from ctl.daemon.settings import Settings
from ctl.daemon.sync.kernel import Kernel
from ctl.sources.api import Api
from ctl.sources.watch import Resource, policy_resources
from ctl.store import ways
from dataplane.planes.exclusions import Exclusions
from dataplane.planes.host_routes import AUTO, OFF, HostRoutes
from dataplane.planes.registry import mode_of, modes

TELL_SECONDS = 1.0
"""How often the plane is told who stays on the stack, changed or not: it lets nobody past the stack without."""
GAVE_WAY = "another mode takes over"
ENDED = "no daemon runs that would see what changes"


class HostRouter:
    """Follows what decides who may go past the node's stack while `--host-routing` is auto, from the first time on that
    it is. For use in one event loop. tell: tells the plane in use (Plane.exclude).

    listener: what is to hear of objects of `kinds` first; None (and no kinds) if the daemon was started in a mode that
    takes nothing past the stack, or with --host-routing off. Then everything stays there until a restart.
    """

    def __init__(self, settings: Settings, tell: Callable[[Exclusions], None], jobs: Jobs, log: Log) -> None:
        self._node, self._choice = settings.node.name, settings.options.host_routing
        self._keeper = RouteKeeper(self._node, self._choice, tell, log, api=not settings.paths)
        self._jobs, self._log = jobs, log
        self.listener = self._keeper.listener if settings.routes_past_stack else None
        self.kinds: frozenset[str] = self.listener.kinds if self.listener else frozenset()
        self._api: Api | None = None
        self._watch: Callable[[Api, Resource], object] | None = None
        self._chains: ChainWatch | None = None
        self._followed: frozenset[str] = frozenset()
        self._begun = self._follows = self._retries = False

    def connect(self, api: Api, watch: Callable[[Api, Resource], object], followed: frozenset[str]) -> None:
        """Use an API server. watch: follows a kind of object into the inbox. followed: kinds that are already."""
        if self.listener is None:
            return
        self._api, self._watch, self._followed = api, watch, followed
        self._follow()

    def begin(self, settings: Settings) -> None:
        """Begin, or begin again with another plane: it holds the plan now."""
        if self.listener is None or not mode_of(settings.mode).routes_past_stack(settings.options):
            return
        if not self._retries:
            self._retries = True
            self._jobs.every("host routing", TELL_SECONDS, self._keeper.tell_again)
        self._begun = True
        self._follow()
        self._keeper.begin()

    def use(self, settings: Settings) -> None:
        """Use the settings of a reload."""
        if self.listener is None:
            if settings.routes_past_stack:
                self._log.warning("changed settings that wait for a restart of hotplane", fields="hostRouting")
            return
        self._choice = settings.options.host_routing
        self._follow()
        self._keeper.choose(self._choice)

    def end(self, why: str) -> None:
        """Keep everything on the stack until `begin`."""
        self._begun = False
        self._keeper.end(why)

    async def save(self, kernel: Kernel, state_dir: Path) -> None:
        """Write down which way packets go, for other commands. Raises HotplaneError."""
        found = await kernel.call(kernel.plane.host_routes) if self.listener is not None else None
        if found is not None:
            self._keeper.found_refusal(found.refused)
        exclusions = self._keeper.current if found is not None else Exclusions(self._why_not())
        ways.save(state_dir, ways.seen(self._choice, exclusions, found or HostRoutes()))

    def _why_not(self) -> str:
        """Why nothing goes past the stack, whoever may."""
        if self._choice == OFF:
            return "--host-routing is off"
        if self.listener is None:
            return "hotplane was started in another mode, and must be restarted for it"
        return "no packet hook is at work that could do it (doctor tells why)"

    def close(self) -> None:
        """Keep everything on the stack, and stop listening. The jobs are their owner's to end."""
        self.end(ENDED)
        if self._chains is not None:
            self._chains.close()

    def _follow(self) -> None:
        """Start what is needed and does not run yet."""
        if self._choice != AUTO:
            return
        if self._api is not None and self._watch is not None and not self._follows:
            self._follows = True
            for resource in policy_resources(self._node):
                if resource.kind not in self._followed:
                    self._watch(self._api, resource)
            self._jobs.start("kinds of policies", PolicyGroups(self._api, self._keeper.found_groups).run)
        if self._begun and self._chains is None:
            own = frozenset(table for mode in modes() for table in mode.tables)
            self._chains = ChainWatch(own, self._keeper.found_chains)
            self._chains.open()
            self._jobs.every("legacy tables", POLL_SECONDS, self._chains.poll)
