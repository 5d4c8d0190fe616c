"""Build a lab's namespaces, devices, addresses and routes in the kernel."""

from collections.abc import Mapping
from contextlib import ExitStack

from dataplane.kernel import sysctl
from dataplane.kernel.namespaces import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.spec import (
    CLIENT_NETWORK,
    ROUTER_ON_CLIENT,
    ROUTER_ON_NODES,
    Client,
    LabError,
    LabSpec,
    Node,
    Pod,
    PodLink,
    Routing,
    Topology,
    gateway,
)
from dataplane.model.net import Family, network

UNDERLAY_MTU = 1500
VXLAN_OVERHEAD = 50
"""Outer IPv4, UDP, VXLAN and inner Ethernet headers (RFC 7348); the outer packet is IPv4 for both inner families."""

DEFAULT_ROUTE = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
ENTRY_TABLE = 1000
"""Routing table of the underlay that leads from the client to the entry node; +n leads to node n."""
UNREACHABLE_TABLE = 253
LAST_RULE = 400
"""Priority of the last of the underlay's routing rules; the first is above 0, the kernel's own."""
_POD_GATEWAY = {Family.IPV4: "169.254.1.1", Family.IPV6: "fe80::1"}
"""Next hop of a pod on a routed veth: link-local, so the node spends no address on it."""


def build(spec: LabSpec, plan: Topology) -> None:
    """Build everything; a failure leaves what was built so far for the caller to remove.

    Raises OSError, SysctlError, LinkError, LabError.
    """
    with ExitStack() as stack:
        links_of: dict[str, Links] = {}
        for place in plan.places():
            netns.create(place.netns)
            with netns.netns(place.netns):
                settings(spec, forwarding=isinstance(place, Node) or place is plan.underlay)
            links_of[place.name] = stack.enter_context(Links(place.netns))
            links_of[place.name].up("lo")
        _underlay(spec, plan, links_of)
        for node in plan.nodes:
            make_node(spec, plan, node, links_of)


def pod_mtu(spec: LabSpec) -> int:
    """MTU of pod devices: what fits into the underlay after encapsulation."""
    return UNDERLAY_MTU - (VXLAN_OVERHEAD if spec.routing is Routing.VXLAN else 0)


def settings(spec: LabSpec, *, forwarding: bool) -> None:
    """Sysctls of the namespace this thread is in, before it has any device.

    ICMP rate limits are off: a rejected connection must never look like a dropped one because many are tried at once.
    """
    for scope in ("all", "default"):
        for name in ("rp_filter", "accept_redirects", "send_redirects"):
            sysctl.write(f"net/ipv4/conf/{scope}/{name}", 0)
        for name in ("accept_dad", "dad_transmits", "accept_ra", "accept_redirects", "router_solicitations"):
            sysctl.write(f"net/ipv6/conf/{scope}/{name}", 0)
        sysctl.write(f"net/ipv6/conf/{scope}/disable_ipv6", int(not spec.ipv6))
    sysctl.write("net/ipv4/icmp_ratemask", 0)
    sysctl.write("net/ipv6/icmp/ratelimit", 0)
    sysctl.write_if_present("net/ipv6/icmp/ratemask", 254)  # one unused type: the list cannot be made empty
    if forwarding:
        sysctl.write("net/ipv4/ip_forward", 1)
        sysctl.write("net/ipv6/conf/all/forwarding", 1)


def _underlay(spec: LabSpec, plan: Topology, links_of: dict[str, Links]) -> None:
    net = links_of["net"]
    net.add_bridge("br0", UNDERLAY_MTU)
    net.add_veth("client", links_of["client"], "eth0", UNDERLAY_MTU)
    for node in plan.nodes:
        net.add_veth(node.name, links_of[node.name], node.uplink, UNDERLAY_MTU)
        net.set_gro(node.name, True)
        net.set_tx_checksum(node.name, False)  # what goes to a node is like what comes over a wire
        net.enslave(node.name, "br0")
    with netns.netns(net.namespace):  # the switch switches; only nodes look into bridged packets
        sysctl.write_if_present("net/bridge/bridge-nf-call-iptables", 0)
        sysctl.write_if_present("net/bridge/bridge-nf-call-ip6tables", 0)
    router(spec, plan, links_of, "br0")


def router(spec: LabSpec, plan: Topology, links_of: Mapping[str, Links], device: str) -> None:
    """Addresses, routes and rules of the router and of the client behind its device `client`.

    links_of: at least `net` and `client`. device: the router's on the nodes' network.
    """
    net = links_of["net"]
    for family in spec.families:
        net.address(device, f"{ROUTER_ON_NODES[family]}/{_uplink_length(family)}")
        net.address("client", f"{ROUTER_ON_CLIENT[family]}/{network(CLIENT_NETWORK[family]).prefixlen}")
        for node in plan.nodes:
            net.route(node.pod_cidrs[family], via=node.addresses[family])
        _entry_rules(net, plan, family)
        _client(links_of["client"], plan.client, family)


def _uplink_length(family: Family) -> int:
    return 16 if family is Family.IPV4 else 64


def _entry_rules(net: Links, plan: Topology, family: Family) -> None:
    """Add the rules that the main table does not cover: from the client, to an entry node; from a node, unreachable.

    A router that is a machine gets a default route of elsewhere in its main table, by DHCP, again and again."""
    net.rule(family, 100, 254, default=False)
    for node in plan.nodes:
        table = ENTRY_TABLE + node.number
        net.route(DEFAULT_ROUTE[family], via=node.addresses[family], table=table)
        net.rule(family, 200, table, incoming="client", source=plan.client.via[node.name][family])
    net.rule(family, 300, ENTRY_TABLE, incoming="client")
    net.route(DEFAULT_ROUTE[family], via=plan.nodes[0].addresses[family], table=ENTRY_TABLE)
    net.rule(family, LAST_RULE, UNREACHABLE_TABLE)
    net.route(DEFAULT_ROUTE[family], kind="unreachable", table=UNREACHABLE_TABLE)


def _client(client: Links, place: Client, family: Family) -> None:
    length = network(CLIENT_NETWORK[family]).prefixlen
    client.address("eth0", f"{place.addresses[family]}/{length}")
    for addresses in place.via.values():
        client.address("eth0", f"{addresses[family]}/{length}", deprecated=True)
    client.route(DEFAULT_ROUTE[family], via=ROUTER_ON_CLIENT[family])


def make_node(spec: LabSpec, plan: Topology, node: Node, links_of: Mapping[str, Links]) -> None:
    """A node's addresses, routes and overlay, and its pods. links_of: at least those of the node and its pods."""
    links = links_of[node.name]
    for family in spec.families:
        length = _uplink_length(family)
        links.address(node.uplink, f"{node.addresses[family]}/{length}")
        links.address(node.uplink, f"{node.second[family]}/{length}", deprecated=True)
        links.route(DEFAULT_ROUTE[family], via=ROUTER_ON_NODES[family], source=node.addresses[family])
    if spec.pod_link is PodLink.BRIDGE:
        _bridge(spec, node, links)
    for pod in node.pods:
        if spec.pod_link is PodLink.BRIDGE:
            _bridged_pod(spec, node, pod, links, links_of[pod.name])
        else:
            _routed_pod(spec, node, pod, links, links_of[pod.name])
    if spec.routing is Routing.VXLAN:
        _overlay(spec, plan, node, links)
    else:
        for other in plan.nodes:
            for family in spec.families if other is not node else ():
                links.route(other.pod_cidrs[family], via=other.addresses[family])


def _bridge(spec: LabSpec, node: Node, links: Links) -> None:
    """The pod bridge. A reply between two pods of it must pass the node's rules too, or nobody translates it back:
    that is what bridge-nf-call-* are for, and why kube-proxy asks for them."""
    links.add_bridge(node.bridge, pod_mtu(spec))
    with netns.netns(node.netns):
        for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
            if not sysctl.write_if_present(f"net/bridge/{name}", 1):
                raise LabError("pods on a bridge need br_netfilter in this kernel: modprobe br_netfilter, or use veth")
    for family in spec.families:
        length = network(node.pod_cidrs[family]).prefixlen
        links.address(node.bridge, f"{gateway(family, node.number)}/{length}")


def _bridged_pod(spec: LabSpec, node: Node, pod: Pod, links: Links, inside: Links) -> None:
    links.add_veth(pod.device, inside, "eth0", pod_mtu(spec))
    links.enslave(pod.device, node.bridge, hairpin=True)
    for family in spec.families:
        inside.address("eth0", f"{pod.addresses[family]}/{network(node.pod_cidrs[family]).prefixlen}")
        inside.route(DEFAULT_ROUTE[family], via=gateway(family, node.number))


def _routed_pod(spec: LabSpec, node: Node, pod: Pod, links: Links, inside: Links) -> None:
    links.add_veth(pod.device, inside, "eth0", pod_mtu(spec))
    mac = links.mac(pod.device)
    for family in spec.families:
        if family is Family.IPV6:
            links.address(pod.device, "fe80::1/64")
        address, hop = pod.addresses[family], _POD_GATEWAY[family]
        inside.address("eth0", f"{address}/{family.bits}")
        inside.neighbour("eth0", hop, mac)
        if family is Family.IPV4:
            inside.route(f"{hop}/32", device="eth0")
        inside.route(DEFAULT_ROUTE[family], device="eth0", via=hop)
        links.route(f"{address}/{family.bits}", device=pod.device, source=node.addresses[family])


def _overlay(spec: LabSpec, plan: Topology, node: Node, links: Links) -> None:
    """flannel's way: one device, each other node's tunnel address as next hop, all entries fixed."""
    links.add_vxlan(node.overlay, node.uplink, node.addresses[Family.IPV4], pod_mtu(spec), _tunnel_mac(node))
    for family in spec.families:
        links.address(node.overlay, f"{_tunnel_address(node, family)}/{family.bits}")
    for other in plan.nodes:
        if other is node:
            continue
        links.fdb(node.overlay, _tunnel_mac(other), other.addresses[Family.IPV4])
        for family in spec.families:
            hop = _tunnel_address(other, family)
            links.neighbour(node.overlay, hop, _tunnel_mac(other))
            if family is Family.IPV6:  # IPv6 has no gateway outside every connected prefix, so make it one
                links.route(f"{hop}/128", device=node.overlay)
            links.route(other.pod_cidrs[family], device=node.overlay, via=hop, onlink=family is Family.IPV4,
                        source=_tunnel_address(node, family))  # fmt: skip


def _tunnel_mac(node: Node) -> str:
    return f"0a:58:ac:12:00:{node.number:02x}"


def _tunnel_address(node: Node, family: Family) -> str:
    """A node's address inside the overlay: the network address of its pod CIDR in IPv4, as flannel has it."""
    return f"10.244.{node.number}.0" if family is Family.IPV4 else f"fd00:10:244:{node.number}::f"
