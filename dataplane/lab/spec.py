"""The shape of a lab: who is in it and which addresses they have. Pure values, computed from a LabSpec alone.

    client 198.51.100.2 -- router (namespace "net") -- 172.18.0.0/16 -- node n, 172.18.0.n -- pod n-k, 10.244.n.(10+k)

The client is in a subnet of its own behind the router. Every address that is not a node's, a pod's or the client's
(load-balancer IPs, externalIPs, clusterIPs) is carried from the client to an *entry node*: node 1 unless
`Lab.set_entry` says otherwise, and node n for packets from the client's n-th extra address. From a node the router
answers such packets with ICMP host unreachable, so "nobody claimed it" and "dropped" differ on the wire.
"""

import enum
import re

import msgspec

from dataplane.errors import HotplaneError, UsageError
from dataplane.model.net import Family

MAX_NODES = 50
MAX_PODS = 200
DEFAULT_NAME = "lab"
NAME_PATTERN = r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?"

CLUSTER_CIDR = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:10:244::/48"}
CLIENT_NETWORK = {Family.IPV4: "198.51.100.0/24", Family.IPV6: "fd00:198:51:100::/64"}
ROUTER_ON_NODES = {Family.IPV4: "172.18.0.254", Family.IPV6: "fd00:172:18::fe"}
ROUTER_ON_CLIENT = {Family.IPV4: "198.51.100.1", Family.IPV6: "fd00:198:51:100::1"}


class Routing(enum.StrEnum):
    """How packets travel between pods of different nodes: plain routes (host-gw) or a VXLAN overlay (as flannel's)."""

    DIRECT = "direct"
    VXLAN = "vxlan"


class PodLink(enum.StrEnum):
    """How a pod hangs on its node: a routed veth (as Calico's) or a veth on a bridge (as CNI bridge and flannel)."""

    VETH = "veth"
    BRIDGE = "bridge"


class LabError(HotplaneError):
    """The lab cannot be built, found or used so. The text says what, where and what to do."""


class LabSpecError(LabError, UsageError):
    """No lab can be built from this spec, or the lab has no place of that name."""


class LabSpec(msgspec.Struct, frozen=True):
    """The shape of the lab to build. `pods` is the number of pods on each node, or one number per node. `lb_mode`: of
    nodes that are programmed in a mode that has it (policy.forwarding.LbMode), "" = none is asked for."""

    name: str = DEFAULT_NAME
    nodes: int = 3
    pods: int | tuple[int, ...] = 2
    routing: Routing = Routing.DIRECT
    pod_link: PodLink = PodLink.VETH
    ipv6: bool = False
    lb_mode: str = ""

    @property
    def families(self) -> tuple[Family, ...]:
        """Families that the lab has addresses of, IPv4 always."""
        return (Family.IPV4, Family.IPV6) if self.ipv6 else (Family.IPV4,)

    def pods_of(self, node: int) -> int:
        """Number of pods on node `node` (counted from 1)."""
        return self.pods if isinstance(self.pods, int) else self.pods[node - 1]

    def validate(self) -> None:
        """Raises LabSpecError, naming the field, when no lab can be built from this."""
        if not re.fullmatch(NAME_PATTERN, self.name):
            raise LabSpecError(f"lab name {self.name!r}: use up to 40 lower-case letters, digits and inner dashes")
        if not 1 <= self.nodes <= MAX_NODES:
            raise LabSpecError(f"lab {self.name}: {self.nodes} nodes; use 1 to {MAX_NODES}")
        if not isinstance(self.pods, int) and len(self.pods) != self.nodes:
            raise LabSpecError(
                f"lab {self.name}: {len(self.pods)} pod counts for {self.nodes} nodes; give one for each"
            )
        for node in range(1, self.nodes + 1):
            if not 0 <= self.pods_of(node) <= MAX_PODS:
                raise LabSpecError(f"lab {self.name}: {self.pods_of(node)} pods on node {node}; use 0 to {MAX_PODS}")


class Place(msgspec.Struct, frozen=True):
    """Somewhere a process can run. `group` names the cgroup (below the lab's own) that its processes are in.

    `addresses` holds the primary address of each family of the lab.
    """

    name: str
    netns: str
    group: str
    addresses: dict[Family, str]


class Pod(Place, frozen=True):
    """A pod: `node` is its node's name, `device` its host-side device there."""

    node: str
    device: str


class Node(Place, frozen=True):
    """A node. `second`: one more address of each family on the uplink, never chosen as a source by itself.
    `pod_cidrs`: its share of the cluster CIDR. `uplink`: its device on the underlay. `overlay`: its VXLAN device or "".
    `bridge`: its pod bridge or ""."""

    number: int
    second: dict[Family, str]
    pod_cidrs: dict[Family, str]
    pods: tuple[Pod, ...]
    uplink: str = "eth0"
    overlay: str = ""
    bridge: str = ""


class Client(Place, frozen=True):
    """The outside client. `via[node name]`: a source address of it whose packets enter the cluster by that node."""

    via: dict[str, dict[Family, str]]


class Topology(msgspec.Struct, frozen=True):
    """Everybody in a lab. `underlay` is the namespace with the switch and the router."""

    nodes: tuple[Node, ...]
    client: Client
    underlay: Place

    def places(self) -> tuple[Place, ...]:
        """Everywhere a process can run: nodes, each with its pods, the client, the underlay."""
        inside: list[Place] = []
        for node in self.nodes:
            inside += [node, *node.pods]
        return (*inside, self.client, self.underlay)


def namespace_name(lab: str, place: str) -> str:
    """Name of a place's network namespace."""
    return f"hp-{lab}-{place}"


def owns_namespace(lab: str, namespace: str) -> bool:
    """True if a namespace belongs to this lab, of any size: leftovers of a crash are found by name."""
    return re.fullmatch(rf"hp-{re.escape(lab)}-(net|client|node\d+|pod\d+-\d+)", namespace) is not None


def gateway(family: Family, node: int) -> str:
    """The address that the pods of a node send to. A routed veth needs no real address for it, a bridge does."""
    return f"10.244.{node}.1" if family is Family.IPV4 else f"fd00:10:244:{node}::1"


def _numbered(families: tuple[Family, ...], ipv4: str, ipv6: str) -> dict[Family, str]:
    return {family: ipv4 if family is Family.IPV4 else ipv6 for family in families}


def _node(spec: LabSpec, number: int) -> Node:
    name = f"node{number}"
    pods = []
    for count in range(1, spec.pods_of(number) + 1):
        pod = f"pod{number}-{count}"
        addresses = _numbered(spec.families, f"10.244.{number}.{10 + count}", f"fd00:10:244:{number}::{10 + count}")
        pods.append(Pod(pod, namespace_name(spec.name, pod), name, addresses, node=name, device=f"veth{count}"))
    return Node(
        name,
        namespace_name(spec.name, name),
        name,
        _numbered(spec.families, f"172.18.0.{number}", f"fd00:172:18::{number}"),
        number=number,
        second=_numbered(spec.families, f"172.18.1.{number}", f"fd00:172:18::1:{number}"),
        pod_cidrs=_numbered(spec.families, f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"),
        pods=tuple(pods),
        overlay="flannel.1" if spec.routing is Routing.VXLAN else "",
        bridge="cni0" if spec.pod_link is PodLink.BRIDGE else "",
    )


def topology(spec: LabSpec) -> Topology:
    """Everybody in the lab that `spec` describes. Raises LabSpecError for an impossible spec."""
    spec.validate()
    nodes = tuple(_node(spec, number) for number in range(1, spec.nodes + 1))
    via = {
        node.name: _numbered(spec.families, f"198.51.100.{10 + node.number}", f"fd00:198:51:100::{10 + node.number}")
        for node in nodes
    }
    client = Client(
        "client",
        namespace_name(spec.name, "client"),
        "client",
        _numbered(spec.families, "198.51.100.2", "fd00:198:51:100::2"),
        via=via,
    )
    router = {family: ROUTER_ON_NODES[family] for family in spec.families}
    underlay = Place("net", namespace_name(spec.name, "net"), "net", router)
    return Topology(nodes, client, underlay)
