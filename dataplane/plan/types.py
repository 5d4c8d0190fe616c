"""The plan: one neutral table of frontends and backends. The only thing that a plane sees.

A plan is a dict of `PlanEntry`, one for each Service port and family, beside the node's settings. Nothing
in it is kernel syntax and nothing in it is a Kubernetes object. All values are frozen and compare by value,
so a diff is a comparison.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from dataplane.model.net import Family, Protocol, host_port
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import Action, Routes, Scope


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
    __hash__ = object.__hash__  # there is one object a member, and Enum's own hash is a call of Python code


class FrontendKey(NamedTuple):
    """What a packet's destination must be. `address` is "" for a node port: any node-port address of the family."""

    family: Family
    address: str
    protocol: Protocol
    port: int

    def __str__(self) -> str:
        return f"{host_port(self.address or '*', self.port)}/{self.protocol.text}"


class SourceRanges(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who may use a load-balancer frontend; everyone else is dropped.

    cidrs: of the frontend's family; may be empty, then nobody may.
    """

    cidrs: tuple[str, ...]


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """One way into a Service port. source_ranges None = no restriction."""

    kind: FrontendKind
    key: FrontendKey
    routes: Routes
    source_ranges: SourceRanges | None = None


class PlanEntry(msgspec.Struct, frozen=True, gc=False):
    """A Service port in one family: its backend sets and its frontends.

    cluster, local: backends sorted by address and port, without duplicates (policy `Cluster` and `Local`).
    affinity_seconds: 0 = none.
    external_local: externalTrafficPolicy is Local (kept for planes whose syntax spells it, and for views).
    internal_local: internalTrafficPolicy is Local.
    limited: there are more endpoints than one of the sets may have (NodeConfig.most_backends).
    lingering: of a UDP port, the endpoints that serve it and are in neither set: new flows do not get there, those that
      are there stay (see plan.udp).
    unplaced: backends of the Cluster set that are not `local` and may run on this node all the same (see plan.places):
      they can meet themselves here.
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

    def backends(self, scope: Scope) -> tuple[Backend, ...]:
        """The set that a route of this scope chooses from."""
        return self.cluster if scope is Scope.CLUSTER else self.local

    def uses(self, scope: Scope) -> bool:
        """True if any route of any frontend forwards to this set."""
        return any(r.action is Action.FORWARD and r.scope is scope for f in self.frontends for r in f.routes)


class HealthCheck(NamedTuple):
    """A Service's healthCheckNodePort and how many ready endpoints it has on this node."""

    namespace: str
    name: str
    port: int
    local_endpoints: int


class OffPod(NamedTuple):
    """A Pod of this node whose connections are left alone when they are made; they are balanced by their packets.

    uid: what its control group is named by. addresses: its own. why: who says so, for people.
    """

    namespace: str
    name: str
    uid: str
    addresses: tuple[str, ...]
    host_network: bool
    why: str


class Plan(msgspec.Struct):
    """The whole table for one node. Mutable only through `plan.change.apply_change`.

    connect_off: by namespace and name, the Pods for which connect-time balancing is off.
    """

    node: NodeConfig
    entries: dict[EntryKey, PlanEntry] = msgspec.field(default_factory=dict)
    service_cidrs: tuple[str, ...] = ()
    health_checks: dict[tuple[str, str], HealthCheck] = msgspec.field(default_factory=dict)
    connect_off: dict[tuple[str, str], OffPod] = msgspec.field(default_factory=dict)

    def frontends(self) -> Iterator[tuple[Frontend, PlanEntry]]:
        """Every frontend with its entry."""
        for entry in self.entries.values():
            for frontend in entry.frontends:
                yield frontend, entry


class Row(msgspec.Struct, frozen=True):
    """One frontend as a plane holds it, in the plan's terms: what `read_back()` returns and `check` compares.

    A backend set that no route uses is empty here, whatever the entry knows. `service` is EntryKey.service.
    """

    service: str
    routes: Routes
    cluster: tuple[tuple[str, int], ...] = ()
    local: tuple[tuple[str, int], ...] = ()
    affinity_seconds: int = 0
    source_ranges: SourceRanges | None = None


Table = Mapping[FrontendKey, Row]
