"""Validated Kubernetes objects: Service, EndpointSlice, Node, ServiceCIDR, Pod, Namespace, NetworkPolicy.

`model.decode` makes these values from the wire form and guarantees that addresses are canonical text, ports are in
range, and defaults are filled in. They are frozen and compare by value.
Field rules: Kubernetes API reference, v1, discovery.k8s.io/v1 and networking.k8s.io/v1.
"""

import enum
from functools import lru_cache
from typing import NamedTuple

import msgspec

from dataplane.model.forwarding import TunnelOffer
from dataplane.model.net import Family, Protocol


def one_line(text: str) -> str:
    """Escape characters that must not reach a terminal or log (newlines, escapes), as in a Python string."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


SOURCE = "Source"


class ObjectRef(NamedTuple):
    """Identity of an object; namespace is empty for cluster-scoped kinds. What cannot be read at all (a file, a
    document, an object without identity) has the kind SOURCE, and its place for a name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        if self.kind == SOURCE:
            return self.name
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class Problem(NamedTuple):
    """A fault of one object, for the user: which object, which field, why, and what to do. source: its file, if any.
    The text is always a single line."""

    ref: ObjectRef
    field: str
    reason: str
    source: str = ""

    def __str__(self) -> str:
        parts = (self.source, str(self.ref), self.field, self.reason)
        return one_line(": ".join(part for part in parts if part))


class ServiceType(enum.Enum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class ServicePortSpec(msgspec.Struct, frozen=True, gc=False):
    """One port of a Service. `name` may be empty; `node_port` 0 means none."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0


class Service(msgspec.Struct, frozen=True, gc=False):
    """A validated Service. Addresses are canonical text of either family; order is that of the object.

    source_ranges: valid CIDRs of spec.loadBalancerSourceRanges; None when the field is absent or empty.
      An entry that does not parse makes it an empty tuple (no source is allowed) and is reported as a Problem.
    affinity_seconds: 0 for sessionAffinity None.
    created: metadata.creationTimestamp (RFC 3339 text sorts by time); empty when unknown, which sorts oldest-last.
    proxied_elsewhere: label service.kubernetes.io/service-proxy-name is present.
    headless: clusterIP None, or label service.kubernetes.io/headless.
    load_balancer_ips: status.loadBalancer.ingress[].ip without those with ipMode Proxy.
    forwarding_mode: one of model.forwarding.MODES; "" = the node's.
    lb_algorithm: one of model.algorithm.ALGORITHMS; "" = the node's.
    """

    namespace: str
    name: str
    type: ServiceType = ServiceType.CLUSTER_IP
    cluster_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    ports: tuple[ServicePortSpec, ...] = ()
    source_ranges: tuple[str, ...] | None = None
    internal_local: bool = False
    external_local: bool = False
    affinity_seconds: int = 0
    health_check_node_port: int = 0
    created: str = ""
    proxied_elsewhere: bool = False
    headless: bool = False
    forwarding_mode: str = ""
    lb_algorithm: str = ""

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("Service", self.namespace, self.name)


class EndpointPort(msgspec.Struct, frozen=True, gc=False):
    """One port of an EndpointSlice; matched to a Service port by `name` and protocol."""

    name: str
    protocol: Protocol
    port: int


class Traits(msgspec.Struct, frozen=True, gc=False):
    """Common properties of endpoints: most of a node's endpoints are alike and share one object (see `traits`).

    ready nil and serving nil count as true, terminating nil as false (discovery.k8s.io/v1).
    zone_hints/node_hints: None when the endpoint carries no hint of that kind.
    weight: share of new flows in proportion to the others' (see model.weights); 0 = none, it is drained.
    """

    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone_hints: tuple[str, ...] | None = None
    node_hints: tuple[str, ...] | None = None
    weight: int = 1


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One endpoint of a slice: its first address, with the conditions' defaults applied. There are very many.

    Where each of them is looked at, asking `traits` takes a third of the time of asking for the trait.
    """

    address: str
    traits: Traits

    @property
    def ready(self) -> bool:
        return self.traits.ready

    @property
    def serving(self) -> bool:
        return self.traits.serving

    @property
    def terminating(self) -> bool:
        return self.traits.terminating

    @property
    def node(self) -> str:
        return self.traits.node

    @property
    def zone_hints(self) -> tuple[str, ...] | None:
        return self.traits.zone_hints

    @property
    def node_hints(self) -> tuple[str, ...] | None:
        return self.traits.node_hints

    @property
    def weight(self) -> int:
        return self.traits.weight


@lru_cache(maxsize=1 << 14)
def traits(
    ready: bool = True,
    serving: bool = True,
    terminating: bool = False,
    node: str = "",
    zone_hints: tuple[str, ...] | None = None,
    node_hints: tuple[str, ...] | None = None,
    weight: int = 1,
) -> Traits:
    """Return the traits of these values, usually the same object for equal values."""
    return Traits(ready, serving, terminating, node, zone_hints, node_hints, weight)


def make_endpoint(
    address: str,
    ready: bool = True,
    serving: bool = True,
    terminating: bool = False,
    node: str = "",
    zone_hints: tuple[str, ...] | None = None,
    node_hints: tuple[str, ...] | None = None,
    weight: int = 1,
) -> Endpoint:
    """Return an endpoint with these traits."""
    return Endpoint(address, traits(ready, serving, terminating, node, zone_hints, node_hints, weight))


class EndpointSlice(msgspec.Struct, frozen=True, gc=False):
    """A validated EndpointSlice of address type IPv4 or IPv6 (FQDN slices are not decoded).

    service: label kubernetes.io/service-name; empty if missing (then it serves no Service).
    headless: label service.kubernetes.io/headless is present.
    """

    namespace: str
    name: str
    service: str
    family: Family
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    headless: bool = False

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("EndpointSlice", self.namespace, self.name)


class Node(msgspec.Struct, frozen=True):
    """A Node: its zone (label topology.kubernetes.io/zone), InternalIPs first among its addresses, and pod CIDRs.

    forwarding: what it says that it speaks; None if it says nothing, or nothing that can be understood.
    announced: the text of that, "" without one.
    """

    name: str
    zone: str = ""
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    forwarding: TunnelOffer | None = None
    announced: str = ""

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("Node", "", self.name)


class ServiceCIDR(msgspec.Struct, frozen=True):
    """A networking.k8s.io/v1 ServiceCIDR: ranges from which clusterIPs are allocated."""

    name: str
    cidrs: tuple[str, ...] = ()

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("ServiceCIDR", "", self.name)


class HostPort(msgspec.Struct, frozen=True, gc=False):
    """A container port with a hostPort. address: hostIP, canonical; "" = all addresses of the node; 0.0.0.0 or :: = all
    of its family. port: on the node. container_port: in the pod."""

    protocol: Protocol
    port: int
    container_port: int
    address: str = ""


class Pod(msgspec.Struct, frozen=True):
    """A Pod, as far as its node's data plane is concerned.

    uid: as in the name of its cgroup: metadata.uid, or for a static pod the hash of its manifest (annotation
      kubernetes.io/config.mirror).
    addresses: status.podIPs, at most one of each family; none before the pod has a network.
    host_ports: none for a pod in the node's own network.
    connect_time: label or annotation service.hotplane.io/connect-time, None if not set; connect_time_by
      names which of the two ("label", "annotation").
    terminating: it is being deleted. finished: its containers have ended for good (phase Succeeded or Failed).
    labels: sorted by key; None if one of them cannot be read, so that nobody knows what selects it.
    """

    namespace: str
    name: str
    uid: str = ""
    node: str = ""
    addresses: tuple[str, ...] = ()
    host_network: bool = False
    host_ports: tuple[HostPort, ...] = ()
    connect_time: bool | None = None
    connect_time_by: str = ""
    terminating: bool = False
    finished: bool = False
    created: str = ""
    labels: tuple[tuple[str, str], ...] | None = ()

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("Pod", self.namespace, self.name)


class Namespace(msgspec.Struct, frozen=True):
    """A Namespace; connect_time and connect_time_by as in Pod, for all of its pods that do not set their own."""

    name: str
    connect_time: bool | None = None
    connect_time_by: str = ""

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("Namespace", "", self.name)


class Operator(enum.Enum):
    """How a label is compared with a requirement's values (meta/v1 LabelSelectorOperator)."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class Requirement(NamedTuple):
    """One term of a label selector. values: empty for EXISTS and DOES_NOT_EXIST, else not."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()


class NetworkPolicy(msgspec.Struct, frozen=True):
    """A networking.k8s.io/v1 NetworkPolicy, as far as it says which pods it isolates: those of its namespace whose
    labels meet every requirement of its podSelector (all of them where there is none)."""

    namespace: str
    name: str
    pod_selector: tuple[Requirement, ...] = ()

    @property
    def ref(self) -> ObjectRef:
        return ObjectRef("NetworkPolicy", self.namespace, self.name)


ModelObject = Service | EndpointSlice | Node | ServiceCIDR | Pod | Namespace | NetworkPolicy
