"""The modes that can be compared, and how their planes are made."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dataplane.errors import UsageError
from dataplane.plan.change import PlanChange
from dataplane.plan.types import Plan, Table
from dataplane.planes.base import Plane

if TYPE_CHECKING:
    from dataplane.planes.ebpf.attach.programs import Hook
    from dataplane.planes.ebpf.flows.sockets import SocketCleaner
    from dataplane.planes.ebpf.maps.mapset import MapSet
    from dataplane.planes.ebpf.maps.pins import PinDirectory


_log = logging.getLogger(__name__)


class Mode(NamedTuple):
    """A way for packets to reach a backend. plane: "" for those that balance nothing.

    hooks: the eBPF plane's hooks. reference: the baseline, or a step between it and the planes. machines: measured
    between machines only (bench.between), not in one machine's namespaces."""

    name: str
    title: str
    plane: str = ""
    hooks: tuple[str, ...] = ()
    reference: bool = False
    machines: bool = False


DIRECT, AGAIN = "direct", "direct-again"
"""The baseline, and the same once more on a node of its own: the A/A pair, which shows what no data plane causes."""
CONNTRACK = "conntrack"
MODES = {
    m.name: m
    for m in (
        Mode(DIRECT, "direct to the pod, no rules", reference=True),
        Mode(AGAIN, "direct once more, to see the noise (A/A)", reference=True),
        Mode(CONNTRACK, "direct to the pod, connections tracked", reference=True),
        Mode("iptables", "iptables", "iptables"),
        Mode("nftables", "nftables", "nftables"),
        Mode("ebpf-connect", "eBPF at connect time", "ebpf", ("connect",)),
        Mode("ebpf-tc", "eBPF at tc", "ebpf", ("tc",)),
        Mode("ebpf-xdp", "eBPF at XDP and tc", "ebpf", ("tc", "xdp")),
        Mode("ebpf", "eBPF with all its hooks", "ebpf", ("connect", "tc", "xdp"), machines=True),
        Mode("ipvs", "what kube-proxy's ipvs mode does", "ipvs", machines=True),
        Mode("host-network", "between the nodes' own addresses", reference=True, machines=True),
        Mode("cluster-ip", "through a clusterIP, by the cluster's own proxy", machines=True),
        Mode("node-port", "through a node port of the client's node, by the cluster's own proxy", machines=True),
    )
}
"""`conntrack` shows what of a plane's cost is the kernel's connection tracking: one rule that uses it, nothing else."""


ALONE = "-alone"


def alone(mode: str) -> str:
    """Name of a mode's second node in the benchmark's lab, the one with a single Service."""
    return mode + ALONE


LAB_MODES = tuple(name for name, mode in MODES.items() if not mode.machines)
"""Those of one machine's namespaces."""


def chosen(names: Sequence[str]) -> list[str]:
    """Modes by name, in the order of reports and always with the baseline, twice. Raises UsageError."""
    unknown = [name for name in names if name not in LAB_MODES]
    if unknown:
        raise UsageError(f"--modes {','.join(unknown)}: there is no such mode; choose of {', '.join(LAB_MODES)}")
    return [name for name in LAB_MODES if not names or name in names or name in (DIRECT, AGAIN)]


class TimedPlane(Plane):
    """A plane that remembers how long its load took (`load_seconds`): the slow path's part of an eBPF plane's."""

    name = "timed"

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.load_seconds = 0.0

    def apply(self, change: PlanChange) -> None:
        """See planes.base.Plane.apply."""
        self._plane.apply(change)

    def read_back(self) -> Table:
        """See planes.base.Plane.read_back."""
        return self._plane.read_back()

    def cleanup(self) -> None:
        """See planes.base.Plane.cleanup."""
        self._plane.cleanup()

    def load(self, plan: Plan) -> PlanChange:
        """See planes.base.Plane.load."""
        started = time.perf_counter()
        change = self._plane.load(plan)
        self.load_seconds = time.perf_counter() - started
        return change


class TimedHook:
    """A hook that remembers how long its programs took to compile, verify and attach, and their maps."""

    def __init__(self, hook: "Hook") -> None:
        self._hook = hook
        self.name, self.detach, self.close = hook.name, hook.detach, hook.close
        self.attach_seconds = 0.0
        self.maps: MapSet | None = None

    def attach(self, maps: "MapSet", pins: "PinDirectory") -> None:
        """See planes.ebpf.programs.Hook.attach."""
        started = time.perf_counter()
        self._hook.attach(maps, pins)
        self.attach_seconds = time.perf_counter() - started
        self.maps = maps


class Made(NamedTuple):
    """A plane, and what it is made of if it is an eBPF one."""

    plane: Plane
    slow: TimedPlane | None = None
    hooks: tuple[TimedHook, ...] = ()

    def parts(self) -> dict[str, float]:
        """Seconds of the last load that went into the slow path and into programs."""
        slow = self.slow.load_seconds if self.slow else 0.0
        return {"slow_seconds": slow, "program_seconds": sum(hook.attach_seconds for hook in self.hooks)}


def make_plane(mode: str, cgroup: Path) -> Made:
    """The plane of a mode, for this thread's network namespace. cgroup: of the node's processes and its pods'."""
    if MODES[mode].plane == "iptables":
        from dataplane.planes.iptables.plane import IptablesPlane

        return Made(IptablesPlane())
    from dataplane.planes.nftables.plane import NftablesPlane

    if MODES[mode].plane == "nftables":
        return Made(NftablesPlane())
    from dataplane.planes.ebpf.plane import EbpfPlane

    slow = TimedPlane(NftablesPlane())
    cleaner, hooks = _hooks(MODES[mode].hooks, cgroup)
    timed = tuple(TimedHook(hook) for hook in hooks)
    return Made(EbpfPlane(slow, timed, cleaner=cleaner, report=_log.warning), slow, timed)


def _hooks(names: Sequence[str], cgroup: Path) -> "tuple[SocketCleaner | None, list[Hook]]":
    from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
    from dataplane.planes.ebpf.attach.programs import ConnectHook
    from dataplane.planes.ebpf.flows.sockets import SocketCleaner

    if "connect" in names:
        return SocketCleaner(cgroup), [ConnectHook(cgroup)]
    return None, [PacketHook(xdp="xdp" in names)]
