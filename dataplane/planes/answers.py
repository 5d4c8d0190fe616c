"""Types in which every plane reports the traffic that it serves."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dataplane.plan.types import FrontendKey


class Counted(NamedTuple):
    """Packets to a frontend: `new` opened connections, `refused` were rejected or dropped."""

    new: int = 0
    refused: int = 0


class ServiceCounters(NamedTuple):
    """Sums over all CPUs since the Service was added. Forward is client to backend; sockets balanced at connect time
    count as connections only."""

    connections: int
    packets: int
    bytes: int
    reply_packets: int
    reply_bytes: int


class HookExit(NamedTuple):
    """Number of packets that left a hook for one reason. fate: what happened to packets that were not served as they
    should be, as text; "" for all others."""

    hook: str
    reason: str
    times: int
    fate: str = ""


class Refused(NamedTuple):
    """Packets that were rejected, dropped or not served as they should be, for one reason. where: the hook, or the mode
    whose rules did. fate: what became of them, as text. frontend: that they were sent to; None if packets are not
    counted by frontend."""

    where: str
    reason: str
    times: int
    fate: str
    frontend: FrontendKey | None = None


FATES = {
    "no_endpoint": "rejected: the Service has no usable endpoint",
    "policy_drop": "dropped: traffic policy Local, and no endpoint on this node",
    "source_range": "dropped: the source is in none of loadBalancerSourceRanges",
}
"""What becomes of packets that rules refuse, by reason, in the modes that refuse for it."""


class Traffic(NamedTuple):
    """A plane's own counters. services: by Service port (EntryKey.service), only those that had traffic. loaded: False
    if no plan is loaded in this network namespace, so that nothing is counted."""

    services: Mapping[str, ServiceCounters]
    hook_exits: Sequence[HookExit]
    loaded: bool = True


class Flow(NamedTuple):
    """A tracked flow, or a socket balanced at connect time. state: opening, answered, established, closing, or
    connected (a socket). protocol: its number. source is None for sockets. service: "" if deleted. stays: why its
    packets go by the node's stack whatever new flows do; "" where they go as those do, or where that is not known.
    forwarded: to which node the client's packets are sent, or the answers, and in what (`192.0.2.2 in VXLAN`)."""

    state: str
    protocol: int
    source: tuple[str, int] | None
    destination: tuple[str, int]
    backend: tuple[str, int]
    service: str
    idle_seconds: float
    packets: int
    bytes: int
    stays: str = ""
    forwarded: str = ""


class Round(NamedTuple):
    """One garbage collection round over a kernel table. limit: capacity in entries. seconds: of processor time."""

    name: str
    entries: int
    removed: int
    limit: int
    seconds: float


class Usage(NamedTuple):
    """Kernel resources of a plane, by table name. memory: bytes. left_out: Service ports that did not fit. rounds: the
    last garbage collection rounds. refused: flows that found the table full."""

    memory: Mapping[str, int]
    left_out: Mapping[str, int]
    rounds: Sequence[Round]
    refused: Mapping[str, int]


class OffTarget(NamedTuple):
    """A pod, cgroup or namespace with connect-time balancing off. what: its description. why: the option or label that
    asks for it. where: its representation in the kernel, or why there is none. in_effect: it is in the kernel."""

    what: str
    why: str
    where: str
    in_effect: bool
