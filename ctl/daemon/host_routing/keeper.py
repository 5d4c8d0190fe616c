"""Who must stay on the node's stack, from all that says so, told to the plane before anything else is done."""

from collections.abc import Callable

from ctl.daemon.host_routing.policies import PolicyListener
from ctl.daemon.log import Log
from dataplane.errors import HotplaneError
from dataplane.planes.exclusions import Exclusions
from dataplane.planes.host_routes import OFF, ON

NOT_LOOKED = "other programs' netfilter rules have not been looked for yet"
GROUPS_UNKNOWN = "it is not known yet which kinds of policies the API server has"


class RouteKeeper:
    """Holds the exclusions and hands each change of them to the plane. For use in one event loop.

    node: this node's name. choice: of `--host-routing`. tell: tells the plane; raises HotplaneError. Until `begin`, and
    from `end` on, everything stays on the stack.
    """

    def __init__(self, node: str, choice: str, tell: Callable[[Exclusions], None], log: Log, *, api: bool) -> None:
        self.listener = PolicyListener(node, self.update)
        self.current = Exclusions("no plan is loaded yet")
        self._choice, self._tell, self._log = choice, tell, log
        self._chains: str | None = NOT_LOOKED
        self._groups: str | None = GROUPS_UNKNOWN if api else None
        self._refused = ""
        self._begun = self._told = self._failed = False

    def begin(self) -> None:
        """Tell the plane that now holds the plan, whatever another one was told."""
        self._begun, self._told, self._refused = True, False, ""
        self.update()

    def end(self, why: str) -> None:
        """Keep everything on the stack: from here on nobody looks."""
        if self._begun:
            self._begun = False
            self._give(Exclusions(why))

    def choose(self, choice: str) -> None:
        """Use another `--host-routing`."""
        self._choice = choice
        self.update()

    def found_chains(self, why: str | None) -> None:
        """Take what the look for other programs' rules has found."""
        if why != self._chains:
            self._chains = why
            self.update()

    def found_groups(self, why: str | None) -> None:
        """Take which kinds of policies the API server has."""
        if why != self._groups:
            self._groups = why
            self.update()

    def found_refusal(self, why: str) -> None:
        """Take why the kernel has refused the programs that would take packets past the stack; "" = it has not."""
        if why != self._refused:
            self._refused = why
            self.update()

    def update(self) -> None:
        """Tell the plane if something has changed, or if it could not be told before."""
        if not self._begun:
            return
        wanted = self._wanted()
        if wanted != self.current or not self._told:
            self._give(wanted)

    async def tell_again(self) -> None:
        """Tell the plane again, by which it knows that somebody still looks; call it every second or so."""
        if self._begun:
            self._give(self._wanted())

    def _wanted(self) -> Exclusions:
        if self._choice == OFF:
            return Exclusions("--host-routing is off")
        if self._refused:
            return Exclusions(self._refused)
        if self._choice == ON:
            return Exclusions()
        why = self._chains or self._groups
        return Exclusions(why) if why else self.listener.exclusions()

    def _give(self, wanted: Exclusions) -> None:
        before, self.current = self.current, wanted
        try:
            self._tell(wanted)
        except HotplaneError as error:
            self._told, self._failed = False, True
            self._log.error("the plane could not be told who stays on the node's stack", reason=error)
            return
        if self._failed:
            self._log.info("the plane knows again who stays on the node's stack")
        self._told, self._failed = True, False
        if before.node != wanted.node:
            if wanted.node:
                self._log.info("all packets go by the node's stack", reason=wanted.node)
            else:
                self._log.info("packets of pods may go past the node's stack", choice=self._choice)
