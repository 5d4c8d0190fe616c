"""The ebpf mode for the registry of modes."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from msgspec.structs import replace

from dataplane.oracle.keeps import Keeps
from dataplane.oracle.types import Decision
from dataplane.plan.change import PlanChange
from dataplane.plan.types import OffPod
from dataplane.planes.answers import OffTarget
from dataplane.planes.base import Plane
from dataplane.planes.finding import Finding
from dataplane.planes.measured import Measured, Wanted
from dataplane.planes.mode import PLAIN, Making, Mode
from dataplane.planes.options import HOOKS, PlaneOptions
from dataplane.planes.path import At, Step
from dataplane.planes.registry import mode_of
from dataplane.planes.rights import BPF, NET_ADMIN, PERFMON, SYS_ADMIN, SYS_PTRACE
from dataplane.policy.node import NodeConfig
from dataplane.policy.settings import Promises

SLOW = "nftables"
"""The mode of the plane underneath."""


class EbpfMode(Mode):
    """Mode with programs at up to three hooks on top of the nftables plane."""

    name = "ebpf"
    promises = Promises.CONNECT_TIME
    needs = (NET_ADMIN, BPF, PERFMON)
    until_prepared = (SYS_ADMIN,)
    uses = (SYS_ADMIN, SYS_PTRACE)
    without_uses = "UDP sockets of pods stay connected to endpoints that went"
    stands_on = (SLOW,)
    why_no_ping = ""
    why_no_flowtable = ""
    why_no_maglev = ""
    hooks = HOOKS
    watches_devices = True
    tables = frozenset({("inet", "hotplane-ports")})

    def make(self, making: Making = PLAIN) -> Plane:
        """See Mode.make."""
        from dataplane.planes.ebpf.make import make_ebpf_plane

        return make_ebpf_plane(making)

    def in_effect(self, options: PlaneOptions) -> PlaneOptions:
        """See Mode.in_effect: connect time, whose programs have links on every kernel. XDP may be off at one device and
        not at another."""
        from dataplane.planes.ebpf.maps.pins import PinDirectory, PinsHidden, default_instance

        try:
            directory = PinDirectory(options.instance or default_instance())
            if directory.path is None or any(name.startswith("connect") for name in directory.links()):
                return options
        except PinsHidden:
            return options
        return replace(options, hooks=tuple(hook for hook in options.hooks if hook != "connect"))

    def routes_past_stack(self, options: PlaneOptions) -> bool:
        """See Mode.routes_past_stack: the programs at tc do it, which stand under those at XDP, too."""
        return bool({"tc", "xdp"} & set(options.hooks))

    def why_only_snat(self, options: PlaneOptions) -> str:
        """See Mode.why_only_snat."""
        return "" if {"tc", "xdp"} & set(options.hooks) else "without the hooks tc and xdp can only do SNAT"

    def measured(self, wanted: Wanted) -> Measured:
        """See Mode.measured."""
        from dataplane.planes.ebpf.measured import MeasuredEbpf

        return MeasuredEbpf(wanted)

    def prepare(self, node: NodeConfig, options: PlaneOptions) -> None:
        """See Mode.prepare: prepares the slow path, and creates this network namespace's directory in the bpffs, so
        that a process that removes the last other directory does not unmount it."""
        from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
        from dataplane.planes.ebpf.plane import slow_node

        mode_of(SLOW).prepare(slow_node(node, at_connect=options.at_connect), options)
        PinDirectory(default_instance()).ensure()

    def check_kernel(self, node: NodeConfig) -> None:
        """See Mode.check_kernel: the slow path's."""
        mode_of(SLOW).check_kernel(node)

    def is_prepared(self) -> bool:
        """See Mode.is_prepared: the bpffs is mounted."""
        from dataplane.planes.ebpf.maps.pins import find_root

        return find_root() is not None

    def is_here(self) -> bool:
        """See Mode.is_here."""
        from dataplane.planes.ebpf.maps.pins import PinDirectory, PinsHidden, default_instance

        try:
            return PinDirectory(default_instance()).abandoned
        except PinsHidden:  # another user's, which only that one can remove
            return False

    def is_draining(self) -> bool:
        """See Mode.is_draining."""
        from dataplane.planes.ebpf.maps.pins import PinDirectory, PinsHidden, default_instance

        try:
            return PinDirectory(default_instance()).draining
        except PinsHidden:  # another user's, who has them drained
            return False

    def drain_on(self, change: PlanChange) -> int:
        """See Mode.drain_on."""
        if not self.is_draining():
            return 0
        from dataplane.planes.ebpf.flows.drain import after_change

        return after_change(change)

    def keep_loopback_open(self) -> None:
        """See Mode.keep_loopback_open."""
        mode_of(SLOW).keep_loopback_open()

    def findings(self, options: PlaneOptions) -> Iterator[Finding]:
        """See Mode.findings."""
        from dataplane.planes.ebpf.attach.probe_hooks import probe_hooks
        from dataplane.planes.ebpf.attach.probe_kernel import probe_bpf

        yield from probe_bpf()
        yield from probe_hooks(options)

    def keeps(self, options: PlaneOptions) -> frozenset[Keeps]:
        """See Mode.keeps."""
        if options.kube_proxy_masquerade:
            return frozenset()
        by_packet = Keeps.LOCAL if {"tc", "xdp"} & set(options.hooks) else None
        by_socket = Keeps.PODS if options.at_connect else None
        return frozenset(kept for kept in (by_packet, by_socket) if kept)

    def path(self, decision: Decision, at: At) -> Sequence[Step]:
        """See Mode.path: programs and maps, and the slow path's way of what they pass on."""
        from dataplane.planes.ebpf.path import path

        return path(decision, at, mode_of(SLOW).path(decision, at))

    def off_targets(self, options: PlaneOptions, pods: Mapping[tuple[str, str], OffPod]) -> Collection[OffTarget]:
        """See Mode.off_targets. Raises CgroupError."""
        if not options.at_connect or not (pods or options.off_cgroups or options.off_netns):
            return ()
        from dataplane.planes.ebpf.make import look_for_off

        return look_for_off(options, pods)

    def remove_stale(self, *, of: Collection[int] | None = None, age: float = 0.0) -> list[str]:
        """See Mode.remove_stale."""
        if not self.is_prepared():  # no instance was ever pinned, or the last one is gone
            return []
        from dataplane.planes.ebpf.flows.stale import remove_stale

        return remove_stale(of=of, age=age)

    def remove_instances(self, prefix: str) -> None:
        """See Mode.remove_instances."""
        from dataplane.planes.ebpf.attach.programs import remove_instances

        remove_instances(prefix)


MODE: Mode = EbpfMode()
