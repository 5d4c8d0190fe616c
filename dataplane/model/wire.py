"""The wire form of the Kubernetes objects that matter here: only the fields that are used; only types are checked.

Field names and nesting: Kubernetes API reference, v1, discovery.k8s.io/v1 and networking.k8s.io/v1. Every field may
be null or missing, as Go's decoder allows. List items may be null so that one item of a wrong type can be taken out
without moving its neighbours. Unknown fields (managedFields, status conditions, selectors of Services) are skipped
unparsed.
"""

import re
from typing import Any

import msgspec

from dataplane.model.algorithm import ALGORITHM_ANNOTATION
from dataplane.model.forwarding import NODE_ANNOTATION, SERVICE_ANNOTATION
from dataplane.model.weights import WEIGHTS_ANNOTATION

_INITIALISM = re.compile(r"Ip(?=$|s$|[A-Z])|Cidr(?=$|s$)")


def _kubernetes_name(name: str) -> str:
    """`external_ips` -> `externalIPs`: Kubernetes spells words in camel case and IP and CIDR in capitals."""
    first, *rest = name.split("_")
    return first + _INITIALISM.sub(lambda match: match.group().upper(), "".join(word.capitalize() for word in rest))


class Wire(msgspec.Struct, frozen=True, gc=False, rename=_kubernetes_name, omit_defaults=True):
    """Base of the wire structs; gc=False because they never form cycles."""


class Labels(Wire, frozen=True, gc=False):
    """The labels that Service proxies look at; a label's presence counts, and its value may be empty."""

    service_name: str | None = msgspec.field(default=None, name="kubernetes.io/service-name")
    headless: str | None = msgspec.field(default=None, name="service.kubernetes.io/headless")
    proxy_name: str | None = msgspec.field(default=None, name="service.kubernetes.io/service-proxy-name")
    zone: str | None = msgspec.field(default=None, name="topology.kubernetes.io/zone")


class Metadata(Wire, frozen=True, gc=False):
    name: str | None = None
    namespace: str | None = None
    creation_timestamp: str | None = None
    labels: Labels | None = None


class ServiceAnnotations(Wire, frozen=True, gc=False):
    forwarding_mode: str | None = msgspec.field(default=None, name=SERVICE_ANNOTATION)
    lb_algorithm: str | None = msgspec.field(default=None, name=ALGORITHM_ANNOTATION)


class ServiceMetadata(Metadata, frozen=True, gc=False):
    """Of Services. A struct of its own: slices, of which there are many more, need less."""

    annotations: ServiceAnnotations | None = None


class SliceAnnotations(Wire, frozen=True, gc=False):
    weights: str | None = msgspec.field(default=None, name=WEIGHTS_ANNOTATION)


class SliceMetadata(Metadata, frozen=True, gc=False):
    annotations: SliceAnnotations | None = None


class NodeAnnotations(Wire, frozen=True, gc=False):
    forwarding: str | None = msgspec.field(default=None, name=NODE_ANNOTATION)


class NodeMetadata(Metadata, frozen=True, gc=False):
    annotations: NodeAnnotations | None = None


class ConnectTime(Wire, frozen=True, gc=False):
    """Annotations of a Pod or a Namespace."""

    connect_time: str | None = msgspec.field(default=None, name="service.hotplane.io/connect-time")
    mirror: str | None = msgspec.field(default=None, name="kubernetes.io/config.mirror")


class PodMetadata(Wire, frozen=True, gc=False):
    """Of Pods and Namespaces. A struct of its own: slices, of which there are many more, need less.

    labels: all of them, of any type: one that is no text should not cost the rest of a hand-written Pod.
    """

    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, Any] | None = None
    annotations: ConnectTime | None = None


class ContainerPort(Wire, frozen=True, gc=False):
    container_port: int | None = None
    host_port: int | None = None
    host_ip: str | None = msgspec.field(default=None, name="hostIP")
    protocol: str | None = None


class Container(Wire, frozen=True, gc=False):
    ports: list[ContainerPort | None] | None = None
    restart_policy: str | None = None


class PodSpec(Wire, frozen=True, gc=False):
    node_name: str | None = None
    host_network: bool | None = None
    containers: list[Container | None] | None = None
    init_containers: list[Container | None] | None = None


class PodIP(Wire, frozen=True, gc=False):
    ip: str | None = None


class PodStatus(Wire, frozen=True, gc=False):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[PodIP | None] | None = msgspec.field(default=None, name="podIPs")


class ServicePort(Wire, frozen=True, gc=False):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None


class ClientIPConfig(Wire, frozen=True, gc=False):
    timeout_seconds: int | None = None


class AffinityConfig(Wire, frozen=True, gc=False):
    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Wire, frozen=True, gc=False):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str | None] | None = None
    external_ips: list[str | None] | None = None
    ports: list[ServicePort | None] | None = None
    load_balancer_source_ranges: list[str | None] | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    health_check_node_port: int | None = None


class Ingress(Wire, frozen=True, gc=False):
    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(Wire, frozen=True, gc=False):
    ingress: list[Ingress | None] | None = None


class ServiceStatus(Wire, frozen=True, gc=False):
    load_balancer: LoadBalancerStatus | None = None


class Conditions(Wire, frozen=True, gc=False):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Wire, frozen=True, gc=False):
    name: str | None = None


class Hints(Wire, frozen=True, gc=False):
    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class TargetRef(Wire, frozen=True, gc=False):
    name: str | None = None


class WireEndpoint(Wire, frozen=True, gc=False):
    addresses: list[str] | None = None
    conditions: Conditions | None = None
    node_name: str | None = None
    hints: Hints | None = None
    target_ref: TargetRef | None = None


class SlicePort(Wire, frozen=True, gc=False):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class SubsetAddress(Wire, frozen=True, gc=False):
    ip: str | None = None
    node_name: str | None = None


class Subset(Wire, frozen=True, gc=False):
    """core/v1 EndpointSubset."""

    addresses: list[SubsetAddress] | None = None
    not_ready_addresses: list[SubsetAddress] | None = None
    ports: list[SlicePort | None] | None = None


class NodeAddress(Wire, frozen=True, gc=False):
    type: str | None = None
    address: str | None = None


class NodeSpec(Wire, frozen=True, gc=False):
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str | None] | None = None


class NodeStatus(Wire, frozen=True, gc=False):
    addresses: list[NodeAddress | None] | None = None


class CIDRSpec(Wire, frozen=True, gc=False):
    cidrs: list[str | None] | None = None


class SelectorRequirement(Wire, frozen=True, gc=False):
    """meta/v1 LabelSelectorRequirement."""

    key: str | None = None
    operator: str | None = None
    values: list[str | None] | None = None


class LabelSelector(Wire, frozen=True, gc=False):
    """meta/v1 LabelSelector."""

    match_labels: dict[str, str | None] | None = None
    match_expressions: list[SelectorRequirement | None] | None = None


class PolicySpec(Wire, frozen=True, gc=False):
    pod_selector: LabelSelector | None = None


class WireService(Wire, frozen=True, gc=False, tag_field="kind", tag="Service"):
    api_version: str | None = None
    metadata: ServiceMetadata | None = None
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class WireSlice(Wire, frozen=True, gc=False, tag_field="kind", tag="EndpointSlice"):
    api_version: str | None = None
    metadata: SliceMetadata | None = None
    address_type: str | None = None
    endpoints: list[WireEndpoint | None] | None = None
    ports: list[SlicePort | None] | None = None


class WireEndpoints(Wire, frozen=True, gc=False, tag_field="kind", tag="Endpoints"):
    api_version: str | None = None
    metadata: Metadata | None = None
    subsets: list[Subset] | None = None


class WireNode(Wire, frozen=True, gc=False, tag_field="kind", tag="Node"):
    api_version: str | None = None
    metadata: NodeMetadata | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class WireServiceCIDR(Wire, frozen=True, gc=False, tag_field="kind", tag="ServiceCIDR"):
    api_version: str | None = None
    metadata: Metadata | None = None
    spec: CIDRSpec | None = None


class WirePod(Wire, frozen=True, gc=False, tag_field="kind", tag="Pod"):
    api_version: str | None = None
    metadata: PodMetadata | None = None
    spec: PodSpec | None = None
    status: PodStatus | None = None


class WireNamespace(Wire, frozen=True, gc=False, tag_field="kind", tag="Namespace"):
    api_version: str | None = None
    metadata: PodMetadata | None = None


class WireNetworkPolicy(Wire, frozen=True, gc=False, tag_field="kind", tag="NetworkPolicy"):
    api_version: str | None = None
    metadata: Metadata | None = None
    spec: PolicySpec | None = None


WireObject = (
    WireService | WireSlice | WireEndpoints | WireNode | WireServiceCIDR | WirePod | WireNamespace | WireNetworkPolicy
)

TYPES: dict[str, type[WireObject]] = {
    "Service": WireService,
    "EndpointSlice": WireSlice,
    "Endpoints": WireEndpoints,
    "Node": WireNode,
    "ServiceCIDR": WireServiceCIDR,
    "Pod": WirePod,
    "Namespace": WireNamespace,
    "NetworkPolicy": WireNetworkPolicy,
}

# API group of each kind, and the versions whose fields read alike.
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Service": ("", ("v1",)),
    "EndpointSlice": ("discovery.k8s.io", ("v1",)),
    "Endpoints": ("", ("v1",)),
    "Node": ("", ("v1",)),
    "ServiceCIDR": ("networking.k8s.io", ("v1", "v1beta1")),
    "Pod": ("", ("v1",)),
    "Namespace": ("", ("v1",)),
    "NetworkPolicy": ("networking.k8s.io", ("v1",)),
}


class Head(Wire, frozen=True, gc=False):
    """Identity of an object of any kind; `items` stays raw, and empty if missing."""

    kind: str | None = None
    items: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
