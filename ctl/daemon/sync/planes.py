"""The daemon's planes: how each is made from the settings, and how one gives way to another."""

from collections.abc import Callable

from ctl.daemon.log import Log
from ctl.daemon.node.nodes import describe
from ctl.daemon.settings import Settings
from ctl.daemon.sync.kernel import Untouched
from ctl.loaded import finish_load, replace_plane
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
    """Make the plane of the daemon. Call it in the plane's thread."""
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
            warn=log.warning,
            mended=log.info,
        )
    )


def untouched(plane: Plane) -> Untouched | None:
    """Return the detector of changes by others to a plane's rules; None if the rules have no generation number."""
    return None if plane.commits is None else Untouched(Generation(), lambda: plane.commits or 0)


def prepare(settings: Settings) -> None:
    """Prepare the node for a mode; needs more capabilities than the daemon (see Mode.prepare). Raises PlaneError."""
    mode, options = mode_of(settings.mode), settings.options
    mode.prepare(describe(mode, settings.config, settings.node, None, options, settings.lb), options)


class CleanUp:
    """The work after each change. draining: modes whose flows go on here although another mode handles new ones.
    on_cleaned: called from the plane's thread with the result of each removal of conntrack entries."""

    def __init__(self, on_cleaned: Callable[[Family, Cleaned], None]) -> None:
        self.draining: tuple[Mode, ...] = ()
        self._on_cleaned = on_cleaned

    def __call__(self, change: PlanChange, plan: Plan, loaded: bool) -> None:
        """Remove flows that the change, or a load, made stale. Raises HotplaneError."""
        for family, cleaned in clean_stale_udp(change, plan.node, plan if loaded else None).items():
            self._on_cleaned(family, cleaned)
        if self.draining:
            self.draining = tuple(mode for mode in self.draining if mode.drain_on(change) > 0)

    def is_brief(self, change: PlanChange) -> bool:
        """True if this work is short. Not after a change of UDP, which walks conntrack (and needs its own thread), nor
        while another mode drains: its end reads devices, which must not happen beside an event loop."""
        return not self.draining and all(entry.key.protocol is not Protocol.UDP for entry in change.entries)

    def replace(self, old: Plane, mode: str) -> None:
        """Remove the rules of another mode, now that `mode` handles the traffic."""
        replace_plane(old, mode)
        self.look(mode)

    def look(self, mode: str) -> None:
        """Find the modes that drain, those that an earlier process left included."""
        self.draining = tuple(other for other in modes() if other.name != mode and other.is_draining())


def wait_for_background_work(plane: Plane) -> None:
    """Wait for the plane's background work, in a process that ends soon after a load."""
    finish_load(plane, PlanChange())
