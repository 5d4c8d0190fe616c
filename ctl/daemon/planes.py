"""The daemon's planes: how each is made from the settings, and how one gives way to another."""

from collections.abc import Callable

from ctl.daemon.kernel import Untouched
from ctl.daemon.log import Log
from ctl.daemon.nodes import describe
from ctl.daemon.settings import Settings
from ctl.ebpf import EbpfOptions, settle
from ctl.loaded import make_plane, replace_plane
from dataplane.kernel.conntrack import Cleaned
from dataplane.kernel.nftgen import Generation
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import PlanChange
from dataplane.plan.types import Plan
from dataplane.planes.base import Plane
from dataplane.planes.conntrack import clean_stale_udp
from dataplane.policy.node import LocalDetector
from dataplane.policy.settings import Mode, node_config

_LOOKING = EbpfOptions(hooks=())


def daemon_plane(settings: Settings, log: Log) -> Plane:
    """The plane that the daemon works with. Call it in the plane's thread."""
    detector = LocalDetector()
    if settings.mode == "ebpf":  # only which devices are pods' matters here, and no option for that needs the Node
        policy = settings.config.proxy_settings()
        detector = node_config(Mode.EBPF, policy, node_name=settings.node.name, node_ips=()).detector
    return make_plane(
        settings.mode, tcp_be_liberal=settings.config.conntrack.tcp_be_liberal, ebpf=settings.ebpf, detector=detector,
        watch=not settings.once, tell=log.warning,
    )  # fmt: skip


def untouched(plane: Plane) -> Untouched | None:
    """What tells of changes by others to a plane's rules; None where they have no generation."""
    if plane.name != "nftables":
        return None
    from dataplane.planes.nftables.plane import NftablesPlane

    assert isinstance(plane, NftablesPlane), "the plane of that name"
    return Untouched(Generation(), lambda: plane.commits)


def has_bpffs() -> bool:
    """Whether the file system that keeps the ebpf mode's maps is mounted."""
    from dataplane.planes.ebpf.pins import find_root

    return find_root() is not None


def prepare(settings: Settings) -> None:
    """What takes more capabilities than the daemon itself needs: compiling nftables rules, for which libnftables gets a
    network namespace of its own; a writable /proc/sys, where node ports shall answer on 127.0.0.0/8, with the guard
    that must stand beside it; the ebpf mode's file system, and in it this network namespace's directory, without
    which whoever removes the last of others' would unmount it. Raises PlaneError."""
    mode = settings.mode
    node = describe(mode, settings.config, settings.node, None, settings.ebpf.at_connect)
    if mode in ("nftables", "ebpf"):
        from dataplane.planes.nftables.library import compile_ahead

        compile_ahead(node)
    if node.nodeports.loopback and not settings.balances_at_connect_time:
        from dataplane.planes.nftables.plane import NftablesPlane

        NftablesPlane().lead_from_loopback()
    if mode == "ebpf":
        from dataplane.planes.ebpf.pins import PinDirectory, default_instance

        PinDirectory(default_instance()).ensure()


def reading_plane(mode: str, plan: Plan) -> Plane:
    """A plane to read back with what another one loaded."""
    return make_plane(mode, loaded_for=plan.node, ebpf=_LOOKING)


def left_out(plane: Plane) -> tuple[str, ...]:
    """Services that do not fit into the ebpf mode's maps, which the slow path serves alone."""
    if plane.name != "ebpf":
        return ()
    from dataplane.planes.ebpf.plane import EbpfPlane

    assert isinstance(plane, EbpfPlane), "the plane of that name"
    return tuple(sorted({key.service for key in plane.left_out}))


def slow_path(plane: Plane) -> Plane | None:
    """The nftables plane below the ebpf mode's programs, which must hold the whole plan too; None in other modes."""
    if plane.name != "ebpf":
        return None
    from dataplane.planes.ebpf.plane import EbpfPlane

    assert isinstance(plane, EbpfPlane), "the plane of that name"
    return plane.slow


class CleanUp:
    """What is done after each change. draining: flows of the ebpf mode go on here although another mode answers.
    told: hears what each cleaning of connection tracking did, from the plane's thread."""

    def __init__(self, told: Callable[[Family, Cleaned], None]) -> None:
        self.draining = False
        self._told = told

    def __call__(self, change: PlanChange, plan: Plan, loaded: bool) -> None:
        """Remove flows that the change, or a load, made stale. Raises HotplaneError."""
        for family, cleaned in clean_stale_udp(change, plan.node, plan if loaded else None).items():
            self._told(family, cleaned)
        if self.draining:
            from dataplane.planes.ebpf.drain import after_change

            self.draining = after_change(change) > 0

    def is_brief(self, change: PlanChange) -> bool:
        """Whether this takes but a moment. Not after UDP, which walks conntrack (and needs a thread of its own), nor
        while packet programs drain, whose end reads devices (which no event loop may run beside)."""
        return not self.draining and all(entry.key.protocol is not Protocol.UDP for entry in change.entries)

    def replace(self, old: Plane, mode: str) -> None:
        """Remove what another mode holds here, now that `mode` answers."""
        replace_plane(old, mode)
        self.look(mode)

    def look(self, mode: str) -> None:
        """See whether there is anything that drains, be it that an earlier process left it."""
        from dataplane.planes.ebpf.pins import PinDirectory, PinsHidden, default_instance

        try:
            self.draining = mode != "ebpf" and PinDirectory(default_instance()).draining
        except PinsHidden:  # another user's, who has them drained
            self.draining = False


def settle_plane(plane: Plane) -> None:
    """Before a process ends soon after a load: wait for what the plane does in the background."""
    if plane.name == "ebpf":
        settle(plane, PlanChange())
