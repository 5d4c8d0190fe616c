"""The plan: a neutral table of frontends and backends, and the only input of a plane.

A plan is a dict of `PlanEntry`, one for each Service port and family, plus the node's settings. It contains
neither kernel syntax nor Kubernetes objects. All values are frozen and compare by value, so that plans can be
compared directly.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from dataplane.model.net import Family, Protocol, host_port
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Dispatch, Forwarding
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import Action, Routes, Scope
from dataplane.policy.weights import drawn


class EntryKey(NamedTuple):
    """Identity of a plan entry: a Service port in one family, or a port that a Pod publishes on this node. Then `name`
    is the Pod's and `port` the number, as text, behind the hostIP where there is one."""

    namespace: str
    name: str
    port: str
    protocol: Protocol
    family: Family

    @property
    def service(self) -> str:
        """`namespace/name:port`, without the colon for an unnamed port (kube-proxy's ServicePortName)."""
        return f"{self.namespace}/{self.name}:{self.port}" if self.port else f"{self.namespace}/{self.name}"


class FrontendKind(enum.Enum):
    CLUSTER_IP = "clusterIP"
    EXTERNAL_IP = "externalIP"
    LOAD_BALANCER = "loadBalancerIP"
    NODE_PORT = "nodePort"
    HOST_PORT = "hostPort"
    __hash__ = object.__hash__  # members are singletons, and Enum's own hash is slow Python code


EXTERNAL = frozenset({FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER, FrontendKind.NODE_PORT})
"""Frontends of external traffic, as externalTrafficPolicy has it."""


class FrontendKey(NamedTuple):
    """The destination of a packet that a frontend matches. `address` is "" for a node port: any node-port address of
    the family."""

    family: Family
    address: str
    protocol: Protocol
    port: int

    def __str__(self) -> str:
        return f"{host_port(self.address or '*', self.port)}/{self.protocol.text}"


class SourceRanges(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Sources that may use a load-balancer frontend; all others are dropped.

    cidrs: of the frontend's family; if empty, all sources are dropped.
    """

    cidrs: tuple[str, ...]


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """An address and port of a Service port, with its routes. source_ranges None = no restriction."""

    kind: FrontendKind
    key: FrontendKey
    routes: Routes
    source_ranges: SourceRanges | None = None


class PlanEntry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A Service port in one family: its backend sets and its frontends.

    cluster, local: backends sorted by address and port, without duplicates (policy `Cluster` and `Local`).
    affinity_seconds: 0 = none.
    external_local: externalTrafficPolicy is Local (kept for planes whose syntax spells it, and for views).
    internal_local: internalTrafficPolicy is Local.
    limited: there are more endpoints than one of the sets may have (NodeConfig.most_backends).
    lingering: of a UDP port, the endpoints that serve it and are in neither set: they get no new flows, but keep the
      flows that they have (see plan.udp).
    unplaced: backends of the Cluster set that are not `local` but may run on this node (see plan.places), so that
      hairpin connections are possible.
    forwarding: how traffic from outside to an external frontend gets to backends of other nodes.
    tunnels: aligned with `cluster`: the address, of the entry's family, of the node to which traffic for that backend
      is forwarded; "" = a local backend, or one whose node does not speak it, so that it gets SNAT. Empty if
      `forwarding` is SNAT.
    weighted: backends may have different weights.
    algorithm: how clients from outside get their backend at external frontends (see `steady`).
    """

    key: EntryKey
    cluster: tuple[Backend, ...] = ()
    local: tuple[Backend, ...] = ()
    frontends: tuple[Frontend, ...] = ()
    affinity_seconds: int = 0
    internal_local: bool = False
    external_local: bool = False
    lingering: tuple[Backend, ...] = ()
    limited: bool = False
    unplaced: tuple[Backend, ...] = ()
    forwarding: Forwarding = Forwarding.SNAT
    tunnels: tuple[str, ...] = ()
    weighted: bool = False
    algorithm: Algorithm = Algorithm.RANDOM

    def backends(self, scope: Scope) -> tuple[Backend, ...]:
        """Return the backend set of a scope."""
        return self.cluster if scope is Scope.CLUSTER else self.local

    def drawn(self, scope: Scope) -> tuple[Backend, ...]:
        """Return the list that a backend is drawn from: the set of a scope, with each backend as often as its weight
        asks for (see policy.weights)."""
        members = self.cluster if scope is Scope.CLUSTER else self.local
        return drawn(members) if self.weighted and len(members) > 1 else members

    def steady(self, frontend: Frontend) -> bool:
        """True if the connection's hash leads clients from outside to their backend, at this frontend of the entry."""
        external = frontend.kind in EXTERNAL and frontend.routes.outside.action is Action.FORWARD
        return self.algorithm is Algorithm.MAGLEV and external

    @property
    def steady_scope(self) -> Scope | None:
        """The set that these clients choose from, None if there are none. All external frontends of an entry have the
        same policy."""
        if self.algorithm is Algorithm.RANDOM:
            return None
        return next((f.routes.outside.scope for f in self.frontends if self.steady(f)), None)

    def uses(self, scope: Scope) -> bool:
        """True if any route of any frontend forwards to this set."""
        return any(r.action is Action.FORWARD and r.scope is scope for f in self.frontends for r in f.routes)


class HealthCheck(NamedTuple):
    """A Service's healthCheckNodePort, how many ready endpoints it has on this node, and the sum of their weights (None
    = of none is known, each counts as 1)."""

    namespace: str
    name: str
    port: int
    local_endpoints: int
    weights: int | None = None

    @property
    def weight(self) -> int:
        """This node's share of new flows in proportion to other nodes'."""
        return self.local_endpoints if self.weights is None else self.weights


class OffPod(NamedTuple):
    """A Pod of this node with connect-time balancing off; its connections are balanced per packet.

    uid: in the name of its cgroup. addresses: its own. why: the label or annotation that asks for it, as text.
    """

    namespace: str
    name: str
    uid: str
    addresses: tuple[str, ...]
    host_network: bool
    why: str


class Plan(msgspec.Struct):
    """The plan of one node. Mutable only through `plan.change.apply_change`.

    connect_off: by namespace and name, the Pods for which connect-time balancing is off.
    tunnel_peers: addresses, of both families, of the nodes from which forwarded packets are accepted.
    tunnel_formats: how packets to other nodes are wrapped, by the address that they are sent to; the others in VXLAN.
    tunnel_moves: addresses that other nodes had since this process began, with the one that each has instead.
    """

    node: NodeConfig
    entries: dict[EntryKey, PlanEntry] = msgspec.field(default_factory=dict)
    service_cidrs: tuple[str, ...] = ()
    health_checks: dict[tuple[str, str], HealthCheck] = msgspec.field(default_factory=dict)
    connect_off: dict[tuple[str, str], OffPod] = msgspec.field(default_factory=dict)
    tunnel_peers: frozenset[str] = frozenset()
    tunnel_formats: dict[str, Dispatch] = msgspec.field(default_factory=dict)
    tunnel_moves: dict[str, str] = msgspec.field(default_factory=dict)

    def frontends(self) -> Iterator[tuple[Frontend, PlanEntry]]:
        """Iterate over all frontends with their entries."""
        for entry in self.entries.values():
            for frontend in entry.frontends:
                yield frontend, entry


class Row(msgspec.Struct, frozen=True):
    """One frontend as a plane holds it, in the plan's terms: what `read_back()` returns and `check` compares.

    A backend set that no route uses is empty here, even if the entry has it; otherwise it has each backend as often as
    that is drawn (PlanEntry.drawn). `service` is EntryKey.service.
    """

    service: str
    routes: Routes
    cluster: tuple[tuple[str, int], ...] = ()
    local: tuple[tuple[str, int], ...] = ()
    affinity_seconds: int = 0
    source_ranges: SourceRanges | None = None
    algorithm: Algorithm = Algorithm.RANDOM


Table = Mapping[FrontendKey, Row]
