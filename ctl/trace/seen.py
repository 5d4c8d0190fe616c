"""What was seen of a connection at one place in the kernel, and what was asked to be seen."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from dataplane.kernel.nft.trace import Ends
from dataplane.model.net import Family, family_of, host_port
from dataplane.oracle.types import Decision
from dataplane.plan.types import PlanEntry
from dataplane.planes.mode import Mode
from dataplane.planes.path import Step


class Layer(enum.StrEnum):
    """Who told it. SENDER: the process that sends. STACK: a point of the trace's own nftables table, which decides
    nothing."""

    SENDER = "sender"
    EBPF = "ebpf"
    STACK = "stack"
    NFTABLES = "nftables"
    IPTABLES = "iptables"
    CONNTRACK = "conntrack"


class Seen(NamedTuple):
    """One step. seconds: CLOCK_MONOTONIC; exact: the kernel's own time, else when it was read, which is not before it
    happened. hook: where. device: "" for none. decision: what was decided there. reason: why, "" if that is all.
    before, after: the packet's ends as it came there and as it went on, None where they are not known or the same.
    answer: it is about a packet back to the client. rank: place among the steps of one packet. refused: the packet
    ended here. client: the client's port, 0 = not known."""

    seconds: float
    layer: Layer
    hook: str
    decision: str
    exact: bool = False
    device: str = ""
    reason: str = ""
    before: Ends | None = None
    after: Ends | None = None
    answer: bool = False
    rank: int = 0
    refused: bool = False
    client: int = 0
    later: bool = False
    """It belongs to none of the first packet and the first answer."""


RANKS = {"sender": 0, "connect": 1, "sendmsg": 1, "xdp": 2, "tc_ingress": 3, "prerouting": 4, "output": 4}
RANKS |= {"input": 5, "forward": 5, "postrouting": 6, "tc_egress": 7, "conntrack": 8, "socket": 9}
"""The order in which one packet meets hooks."""
_PLACES = 1000


def rank(hook: str, priority: int = 0) -> int:
    """The place of a hook in the order in which one packet meets them; of netfilter's, by the priority, too."""
    return RANKS.get(hook, 0) * _PLACES + priority


class Target(NamedTuple):
    """What is traced. asked: the flow as the user wrote it. decision: what the oracle says about it. path: the way that
    the mode says. forwarded: what claims its packets at another node that may forward them here, None if nothing."""

    asked: str
    text: str
    mode: Mode
    decision: Decision
    path: Sequence[Step]
    forwarded: PlanEntry | None = None

    @property
    def entry(self) -> PlanEntry | None:
        """What claims its packets, here or where they come from."""
        return self.decision.entry or self.forwarded

    @property
    def family(self) -> Family:
        """Of both ends."""
        return family_of(self.decision.packet.destination)

    @property
    def frontend(self) -> tuple[str, int]:
        """Where the packet is sent to."""
        return self.decision.packet.destination, self.decision.packet.port

    def targets(self, most: int) -> list[tuple[str, int]]:
        """Destinations that its packets may have in this node's stack: the frontend and, where programs may have
        translated them before, its endpoints, at most so many."""
        backends = self.decision.backends if self.mode.hooks else ()
        if self.forwarded is not None:
            backends = tuple(backend for backend in self.forwarded.cluster if backend.local)
        return list(dict.fromkeys([self.frontend, *((b.address, b.port) for b in backends)]))[:most]


def ends_text(ends: Ends) -> str:
    """`a:p -> b:q`."""
    return f"{end_text(ends.source)} -> {end_text(ends.destination)}"


def end_text(end: tuple[str, int]) -> str:
    """`a:p`, or the address alone where there is no port."""
    return host_port(*end) if end[1] else end[0]
