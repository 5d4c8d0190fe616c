"""The daemon's planes: how each is made from the settings, and how one gives way to another."""

from collections.abc import Callable

from ctl.daemon.log import Log
from ctl.daemon.node.nodes import describe
from ctl.daemon.settings import Settings
from ctl.daemon.sync.kernel import Untouched
from ctl.loaded import replace_plane, settle
from dataplane.kernel.netlink.conntrack import Cleaned
from dataplane.kernel.nft.generation import Generation
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import PlanChange
from dataplane.plan.types import Plan
from dataplane.planes.base import Plane
from dataplane.planes.conntrack import clean_stale_udp
from dataplane.planes.mode import Making, Mode
from dataplane.planes.registry import mode_of, modes
from dataplane.policy.settings import node_config


def daemon_plane(settings: Settings, log: Log) -> Plane:
    """The plane that the daemon works with. Call it in the plane's thread."""
    mode = mode_of(settings.mode)
    # Only which devices are pods' matters here, and no option for that needs the Node.
    policy = settings.config.proxy_settings()
    detector = node_config(mode.promises, policy, node_name=settings.node.name, node_ips=()).detector
    return mode.make(
        Making(
            settings.options,
            tcp_be_liberal=settings.config.conntrack.tcp_be_liberal,
            detector=detector,
            watch=not settings.once,
            tell=log.warning,
        )
    )


def untouched(plane: Plane) -> Untouched | None:
    """What tells of changes by others to a plane's rules; None where they have no generation."""
    return None if plane.commits is None else Untouched(Generation(), lambda: plane.commits or 0)


def prepare(settings: Settings) -> None:
    """What takes more capabilities than the daemon itself needs (see Mode.prepare). Raises PlaneError."""
    mode, options = mode_of(settings.mode), settings.options
    mode.prepare(describe(mode, settings.config, settings.node, None, options.at_connect), options)


class CleanUp:
    """What is done after each change. draining: flows of these modes go on here although another mode answers. told:
    hears what each cleaning of connection tracking did, from the plane's thread."""

    def __init__(self, told: Callable[[Family, Cleaned], None]) -> None:
        self.draining: tuple[Mode, ...] = ()
        self._told = told

    def __call__(self, change: PlanChange, plan: Plan, loaded: bool) -> None:
        """Remove flows that the change, or a load, made stale. Raises HotplaneError."""
        for family, cleaned in clean_stale_udp(change, plan.node, plan if loaded else None).items():
            self._told(family, cleaned)
        if self.draining:
            self.draining = tuple(mode for mode in self.draining if mode.drain_on(change) > 0)

    def is_brief(self, change: PlanChange) -> bool:
        """Whether this takes but a moment. Not after UDP, which walks conntrack (and needs a thread of its own), nor
        while another mode drains, whose end reads devices (which no event loop may run beside)."""
        return not self.draining and all(entry.key.protocol is not Protocol.UDP for entry in change.entries)

    def replace(self, old: Plane, mode: str) -> None:
        """Remove what another mode holds here, now that `mode` answers."""
        replace_plane(old, mode)
        self.look(mode)

    def look(self, mode: str) -> None:
        """See whether there is anything that drains, be it that an earlier process left it."""
        self.draining = tuple(other for other in modes() if other.name != mode and other.is_draining())


def settle_plane(plane: Plane) -> None:
    """Before a process ends soon after a load: wait for what the plane does in the background."""
    settle(plane, PlanChange())
