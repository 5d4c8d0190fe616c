"""Input and output of the oracle."""

import enum
from typing import NamedTuple

import msgspec

from dataplane.model.net import Protocol, host_port
from dataplane.plan.types import Frontend, PlanEntry
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import Source
from dataplane.policy.routes import Route


class Packet(NamedTuple):
    """The first packet of a connection, as it reaches this node.

    source, destination: canonical address text of one family. port: destination port (the source port decides
    nothing). interface: the device that it came in by; "" = sent by this node, or not known.
    """

    source: str
    destination: str
    port: int
    protocol: Protocol
    interface: str = ""

    def __str__(self) -> str:
        via = f" via {self.interface}" if self.interface else ""
        return f"{self.source} -> {host_port(self.destination, self.port)}/{self.protocol.text}{via}"


class Verdict(enum.Enum):
    """The fate of a packet. ACCEPT: no frontend matches, it passes unchanged."""

    DNAT = "dnat"
    REJECT = "reject"
    DROP = "drop"
    ACCEPT = "accept"


class Decision(msgspec.Struct, frozen=True):
    """The decision on one packet, and why.

    backends: the set from which one is chosen uniformly; empty unless the verdict is DNAT.
    entry, frontend, route: what claimed the packet and the route for its source class; all None when nothing did.
    refused: the source is outside loadBalancerSourceRanges (then there is no route).
    kept: backends towards which the client keeps its address though the route, or a hairpin, would masquerade it: in
      the ebpf mode (see oracle.keeps), and where the backend is a process of this node itself.
    reasons: sentences in the order in which things were decided.
    """

    packet: Packet
    verdict: Verdict
    source: Source
    backends: tuple[Backend, ...] = ()
    entry: PlanEntry | None = None
    frontend: Frontend | None = None
    route: Route | None = None
    refused: bool = False
    kept: tuple[Backend, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        """`namespace/name:port` of the Service port that claimed the packet, or ""."""
        return self.entry.key.service if self.entry else ""

    @property
    def affinity_seconds(self) -> int:
        """Seconds that the client keeps its backend after its last new connection; 0 = no affinity."""
        return self.entry.affinity_seconds if self.entry and self.verdict is Verdict.DNAT else 0

    def masquerades(self, backend: Backend) -> bool:
        """True if the packet leaves with this node's address when this backend is chosen: the route says so, or the
        backend is the client itself (hairpin: its reply would otherwise never come back through this node)."""
        by_route = self.route is not None and self.route.masquerade
        return (by_route or backend.address == self.packet.source) and backend not in self.kept

    @property
    def masquerade(self) -> bool:
        """True if the packet is masqueraded whichever backend is chosen. A client that is the only backend of the
        set always is; one among several only when it meets itself (see `masquerades`)."""
        return self.verdict is Verdict.DNAT and all(self.masquerades(backend) for backend in self.backends)
