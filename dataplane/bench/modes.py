"""The modes that can be compared, and how their planes are made."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dataplane.bench.peer.spec import Peer, check
from dataplane.errors import UsageError
from dataplane.planes.measured import Measured, Wanted
from dataplane.planes.registry import mode_of
from dataplane.policy.forwarding import LbMode


class Mode(NamedTuple):
    """A way for packets to reach a backend. plane: "" for those that balance nothing.

    hooks: the eBPF plane's hooks. reference: the baseline, or a step between it and the planes. machines: measured
    between machines only (bench.between), not in one machine's namespaces. asked: only where it is named. A peer's
    plane is PEER. lb_mode: how packets from outside get to an endpoint of another node. With another than SNAT, that
    node must speak it, too: the mode has a second node of its own in the lab, whose pod is its remote backend."""

    name: str
    title: str
    plane: str = ""
    hooks: tuple[str, ...] = ()
    reference: bool = False
    machines: bool = False
    asked: bool = False
    lb_mode: LbMode = LbMode.SNAT

    @property
    def forwards(self) -> bool:
        """True if packets from outside keep their client's address on their way to another node."""
        return self.lb_mode is not LbMode.SNAT

    @property
    def is_peer(self) -> bool:
        """True if it is a program of its own, which nobody looks into."""
        return self.plane == PEER


PEER = "peer"
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
        Mode("ebpf-tc-host", "eBPF at tc, past the node's stack", "ebpf", ("tc", "host"), asked=True),
        Mode(
            "ebpf-host",
            "eBPF at connect time and tc, past the node's stack",
            "ebpf",
            ("connect", "tc", "host"),
            asked=True,
        ),
        Mode(
            "ebpf-tunnel",
            "eBPF, answers by a tunnel",
            "ebpf",
            ("tc", "xdp"),
            asked=True,
            lb_mode=LbMode.TUNNEL,
        ),
        Mode("ebpf-dsr", "eBPF, direct server return", "ebpf", ("tc", "xdp"), asked=True, lb_mode=LbMode.DSR),
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


def has_alone(mode: str) -> bool:
    """True if a mode has such a node, where those are wanted."""
    return bool(MODES[mode].plane) and not MODES[mode].forwards


KNOWN_MODES = tuple(name for name, mode in MODES.items() if not mode.machines)
"""Those of one machine's namespaces."""
LAB_MODES = tuple(name for name in KNOWN_MODES if not MODES[name].asked)
"""Those of them that are measured where none are named."""


def know(peers: Sequence[Peer]) -> None:
    """Have these peers among MODES, after all others, as a run with them needs it, or a report of one."""
    for peer in (peer for peer in peers if peer.name not in MODES or MODES[peer.name].is_peer):
        MODES[peer.name] = Mode(peer.name, f"the program `{peer.command}`", PEER)


def with_peers(names: Sequence[str], peers: Sequence[Peer]) -> list[str]:
    """The modes of a run with peers, known from now on: those of `chosen`, or only the references where none is named,
    then the peers. Raises UsageError."""
    check(peers, [name for name, mode in MODES.items() if not mode.is_peer])
    know(peers)
    found = chosen(names)
    if peers and not names:
        found = [name for name in found if MODES[name].reference]
    return [*found, *(peer.name for peer in peers)]


def chosen(names: Sequence[str]) -> list[str]:
    """Modes by name, in the order of reports and always with the baseline, twice. Raises UsageError."""
    unknown = [name for name in names if name not in KNOWN_MODES]
    if unknown:
        raise UsageError(f"--modes {','.join(unknown)}: there is no such mode; choose of {', '.join(KNOWN_MODES)}")
    wanted = names or LAB_MODES
    return [name for name in KNOWN_MODES if name in wanted or name in (DIRECT, AGAIN)]


def make_plane(mode: str, cgroup: Path) -> Measured:
    """The plane of a mode, for this thread's network namespace. cgroup: of the node's processes and its pods'."""
    return mode_of(MODES[mode].plane).measured(Wanted(MODES[mode].hooks, cgroup))
