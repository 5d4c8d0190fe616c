"""Input and output of the oracle."""

import enum
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from dataplane.model.net import Protocol, host_port
from dataplane.plan.types import EXTERNAL, Frontend, PlanEntry
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Dispatch, Forwarding
from dataplane.policy.node import Source
from dataplane.policy.routes import Action, Route, Scope


class Packet(NamedTuple):
    """The first packet of a connection, as it reaches this node.

    source, destination: canonical address text of one family. port: destination port. interface: the device that it
    came in by; "" = sent by this node, or not known. source_port: 0 = not known; only Maglev's choice depends on it.
    """

    source: str
    destination: str
    port: int
    protocol: Protocol
    interface: str = ""
    source_port: int = 0

    def __str__(self) -> str:
        via = f" via {self.interface}" if self.interface else ""
        source = host_port(self.source, self.source_port) if self.source_port else self.source
        return f"{source} -> {host_port(self.destination, self.port)}/{self.protocol.text}{via}"


class Verdict(enum.Enum):
    """The fate of a packet. ACCEPT: no frontend matches, it passes unchanged."""

    DNAT = "dnat"
    REJECT = "reject"
    DROP = "drop"
    ACCEPT = "accept"


class Decision(msgspec.Struct, frozen=True):
    """The decision on one packet, and why.

    backends: the set from which one is chosen; empty unless the verdict is DNAT.
    entry, frontend, route: what claimed the packet and the route for its source class; all None when nothing did.
    refused: the source is outside loadBalancerSourceRanges (then there is no route).
    kept: backends towards which the client keeps its address though the route, or a hairpin, would masquerade it: in
      the ebpf mode (see oracle.keeps), and where the backend is a process of this node itself.
    tunnels: backends of other nodes to which the packet is forwarded with the client's address kept, and the address
      of the node of each (see policy.forwarding); the other backends are not. formats: how packets to these backends
      are wrapped, if not in VXLAN; wanted: how the node's setting would have it; opened: the addresses of nodes that
      open that.
    steady: the packet's own hash leads to its backend (Maglev); chosen: that backend, None if it is not known, as where
      the source port is not.
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
    tunnels: Mapping[Backend, str] = msgspec.field(default_factory=dict)
    formats: Mapping[Backend, Dispatch] = msgspec.field(default_factory=dict)
    wanted: Dispatch = Dispatch.VXLAN
    opened: frozenset[str] = frozenset()
    steady: bool = False
    chosen: Backend | None = None
    reasons: tuple[str, ...] = ()

    @property
    def service(self) -> str:
        """`namespace/name:port` of the Service port that claimed the packet, or ""."""
        return self.entry.key.service if self.entry else ""

    @property
    def drawn(self) -> tuple[Backend, ...]:
        """The list from which a backend is drawn uniformly: the set, each as often as its weight asks for."""
        if self.entry is None or self.route is None or not self.backends:
            return ()
        return self.entry.drawn(self.route.scope)

    @property
    def shares(self) -> dict[Backend, str]:
        """The part that each backend has of what is drawn, such as "1/3"; empty where there is no choice."""
        places = Counter(self.drawn)
        return {backend: f"{count}/{places.total()}" for backend, count in places.items()} if len(places) > 1 else {}

    @property
    def affinity_seconds(self) -> int:
        """Seconds that the client keeps its backend after its last new connection; 0 = no affinity."""
        return self.entry.affinity_seconds if self.entry and self.verdict is Verdict.DNAT else 0

    def masquerades(self, backend: Backend) -> bool:
        """True if the packet leaves with this node's address when this backend is chosen: the route says so, or the
        backend is the client itself (hairpin: its reply would otherwise never come back through this node)."""
        if backend in self.tunnels:
            return False
        by_route = self.route is not None and self.route.masquerade
        return (by_route or backend.address == self.packet.source) and backend not in self.kept

    @property
    def may_forward(self) -> bool:
        """True if the packet goes, by more than SNAT, to backends of other nodes that take forwarded packets: what
        comes from outside to a node port, load-balancer IP or externalIP. Pods and the node are clients as ever."""
        entry, frontend, route = self.entry, self.frontend, self.route
        return (
            entry is not None
            and entry.forwarding is not Forwarding.SNAT
            and frontend is not None
            and frontend.kind in EXTERNAL
            and self.source is Source.OUTSIDE
            and route is not None
            and route.action is Action.FORWARD
            and route.scope is Scope.CLUSTER
        )

    def dispatch(self, backend: Backend) -> Dispatch:
        """Return how the packet is wrapped on its way to a backend in `tunnels`."""
        return self.formats.get(backend, Dispatch.VXLAN)

    @property
    def forwarding(self) -> Forwarding:
        """The way to the backends in `tunnels`; SNAT if there are none."""
        return self.entry.forwarding if self.entry and self.tunnels else Forwarding.SNAT

    @property
    def masquerade(self) -> bool:
        """True if the packet is masqueraded whichever backend is chosen. A client that is the only backend of the
        set always is; one among several only when it meets itself (see `masquerades`)."""
        return self.verdict is Verdict.DNAT and all(self.masquerades(backend) for backend in self.backends)
