"""A second implementation of what a Service means, for comparison: slow, plain, and sharing nothing with hotplane.

It goes from Kubernetes objects as they are written (dicts) straight to what happens to one packet. No plan, no
index, no classes of policy: each packet walks through everything. Written from the Kubernetes API reference and
kube-proxy's documented behaviour.
"""

from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

Object = dict[str, Any]


class NaiveNode(NamedTuple):
    """The node: `nodeport_on` None = all of its addresses."""

    name: str
    zone: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    bridge: str
    device_prefix: str
    nodeport_on: tuple[str, ...] | None
    nodeport_on_loopback: bool
    masquerade_all: bool
    iptables: bool


class NaivePacket(NamedTuple):
    source: str
    destination: str
    port: int
    protocol: str
    device: str


class Answer(NamedTuple):
    """verdict: dnat, reject, drop or accept. masquerade: whether so, for each (address, port) it may go to."""

    verdict: str
    masquerade: dict[tuple[str, int], bool] = {}
    service: str = ""


def answer(objects: list[Object], node: NaiveNode, packet: NaivePacket) -> Answer:
    """What happens to the packet."""
    claims = []
    for service in objects:
        if service["kind"] != "Service" or not proxied(service):
            continue
        for port in service["spec"].get("ports", []):
            kind = how_it_is_reached(service, port, node, packet)
            if kind is not None:
                inside = [service["spec"].get("clusterIP"), *service["spec"].get("clusterIPs", ())]
                rank = 2 if kind == "nodePort" else packet.destination not in inside
                claims.append((rank, age(service), kind, service, port))
    if not claims:
        return nobody_claims(objects, node, packet)
    _, _, kind, service, port = min(claims, key=lambda claim: (claim[0], claim[1]))
    everyone = endpoints_of(objects, service, port, packet, node.name)
    return served(service, port, kind, everyone, node, packet)


def proxied(service: Object) -> bool:
    labels = service["metadata"].get("labels") or {}
    spec = service["spec"]
    if "service.kubernetes.io/service-proxy-name" in labels or "service.kubernetes.io/headless" in labels:
        return False
    return bool(spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName")


def age(service: Object) -> tuple[bool, str, str, str]:
    meta = service["metadata"]
    created = meta.get("creationTimestamp")
    return created is None, created or "", meta["namespace"], meta["name"]


def cluster_ips(service: Object) -> list[str]:
    spec = service["spec"]
    return spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])


def load_balancer_ips(service: Object) -> list[str]:
    return [
        ingress["ip"]
        for ingress in service.get("status", {}).get("loadBalancer", {}).get("ingress") or []
        if ingress.get("ipMode") != "Proxy" and "ip" in ingress
    ]


def same(one: str, other: str) -> bool:
    return ip_address(one) == ip_address(other)


def serves_family(service: Object, address: str) -> bool:
    ips = cluster_ips(service)
    return not ips or any(ip_address(ip).version == ip_address(address).version for ip in ips)


def how_it_is_reached(service: Object, port: Object, node: NaiveNode, packet: NaivePacket) -> str | None:
    """clusterIP, externalIP, loadBalancer or nodePort, when the packet is for this port of this Service."""
    if port.get("protocol", "TCP") != packet.protocol or not serves_family(service, packet.destination):
        return None
    if port["port"] == packet.port:
        is_balanced = any(same(ip, packet.destination) for ip in load_balancer_ips(service))
        if is_balanced and service["spec"].get("loadBalancerSourceRanges"):
            return "loadBalancer"
        if any(same(ip, packet.destination) for ip in cluster_ips(service)):
            return "clusterIP"
        if is_balanced:
            return "loadBalancer"
        if any(same(ip, packet.destination) for ip in service["spec"].get("externalIPs") or []):
            return "externalIP"
    if port.get("nodePort") == packet.port and nodeport_answers(node, packet.destination):
        return "nodePort"
    return None


def loopback(address: str) -> bool:
    return ip_address(address).is_loopback


def nodeport_answers(node: NaiveNode, address: str) -> bool:
    if loopback(address):
        return node.nodeport_on_loopback and ip_address(address).version == 4
    if node.nodeport_on is None:
        return any(same(own, address) for own in node.addresses)
    return any(same(own, address) for own in node.nodeport_on)


def nobody_claims(objects: list[Object], node: NaiveNode, packet: NaivePacket) -> Answer:
    if node.iptables:
        return refused_node_port(objects, node, packet)
    if loopback(packet.destination) or any(same(own, packet.destination) for own in node.addresses):
        return Answer("accept")
    for service in objects:
        if service["kind"] != "Service" or not proxied(service):
            continue
        if any(same(ip, packet.destination) for ip in cluster_ips(service)):
            return Answer("reject")
    for item in objects:
        if item["kind"] == "ServiceCIDR" and inside(item["spec"]["cidrs"], packet.destination):
            return Answer("drop")
    return Answer("accept")


def inside(cidrs: list[str] | tuple[str, ...], address: str) -> bool:
    return any(ip_address(address) in ip_network(cidr.strip(), strict=False) for cidr in cidrs)


def refused_node_port(objects: list[Object], node: NaiveNode, packet: NaivePacket) -> Answer:
    """iptables mode: a node port that nobody serves outsiders is refused on all local addresses, where it answers or
    not."""
    local = loopback(packet.destination) or any(same(own, packet.destination) for own in node.addresses)
    for service in sorted((o for o in objects if o["kind"] == "Service" and proxied(o)), key=age):
        for port in service["spec"].get("ports", []):
            same_port = port.get("nodePort") == packet.port and port.get("protocol", "TCP") == packet.protocol
            if local and same_port and serves_family(service, packet.destination):
                everyone = endpoints_of(objects, service, port, packet, node.name)
                stranger = packet._replace(source="::" if ":" in packet.source else "0.0.0.0", device="")
                found = served(service, port, "nodePort", everyone, node, stranger)
                return Answer("accept") if found.verdict == "dnat" else found
    return Answer("accept")


class NaiveEndpoint(NamedTuple):
    address: str
    port: int
    ready: bool
    serving: bool
    terminating: bool
    node: str
    zones: list[str]
    nodes: list[str]


def endpoints_of(
    objects: list[Object], service: Object, port: Object, packet: NaivePacket, here: str
) -> list[NaiveEndpoint]:
    """Every endpoint of a Service port in the packet's family; of duplicates, the most useful."""
    found: list[NaiveEndpoint] = []
    slices = [item for item in objects if item["kind"] == "EndpointSlice" and belongs(item, service, packet)]
    for piece in sorted(slices, key=lambda item: str(item["metadata"]["name"])):
        for slice_port in piece["ports"]:
            same_name = (slice_port.get("name") or "") == port.get("name", "")
            if same_name and slice_port.get("protocol", "TCP") == packet.protocol:
                found += [read_endpoint(endpoint, slice_port["port"]) for endpoint in piece["endpoints"]]
    return [
        endpoint
        for index, endpoint in enumerate(found)
        if not any(hides(found[other], other, endpoint, index, here) for other in range(len(found)) if other != index)
    ]


def hides(one: NaiveEndpoint, one_at: int, other: NaiveEndpoint, other_at: int, here: str) -> bool:
    """Of two entries with the same address and port: whether the first mentioned hides the second mentioned."""
    if one[:2] != other[:2]:
        return False
    if one.ready != other.ready:
        return one.ready
    if one.serving != other.serving:
        return one.serving
    if one.terminating != other.terminating:
        return other.terminating
    if (one.node == here) != (other.node == here):
        return one.node == here
    return one_at < other_at


def belongs(piece: Object, service: Object, packet: NaivePacket) -> bool:
    labels = piece["metadata"].get("labels") or {}
    return (
        piece["metadata"]["namespace"] == service["metadata"]["namespace"]
        and labels.get("kubernetes.io/service-name") == service["metadata"]["name"]
        and "service.kubernetes.io/headless" not in labels
        and piece["addressType"] == f"IPv{ip_address(packet.destination).version}"
    )


def read_endpoint(endpoint: Object, port: int) -> NaiveEndpoint:
    conditions = endpoint.get("conditions") or {}
    ready = conditions.get("ready")
    ready = True if ready is None else ready
    serving = conditions.get("serving")
    hints = endpoint.get("hints") or {}
    return NaiveEndpoint(
        endpoint["addresses"][0],
        port,
        ready,
        True if serving is None else serving,
        bool(conditions.get("terminating")),
        endpoint.get("nodeName") or "",
        [zone["name"] for zone in hints.get("forZones") or []],
        [other["name"] for other in hints.get("forNodes") or []],
    )


def cluster_wide(everyone: list[NaiveEndpoint], node: NaiveNode) -> list[NaiveEndpoint]:
    ready = [e for e in everyone if e.ready]
    if not ready:
        return [e for e in everyone if e.serving and e.terminating]
    if node.name and all(e.nodes for e in ready) and any(node.name in e.nodes for e in ready):
        return [e for e in ready if node.name in e.nodes]
    if node.zone and all(e.zones for e in ready) and any(node.zone in e.zones for e in ready):
        return [e for e in ready if node.zone in e.zones]
    return ready


def node_local(everyone: list[NaiveEndpoint], node: NaiveNode) -> list[NaiveEndpoint]:
    here = [e for e in everyone if e.node and e.node == node.name]
    return [e for e in here if e.ready] or [e for e in here if e.serving and e.terminating]


def from_pod(node: NaiveNode, packet: NaivePacket) -> bool:
    if node.bridge:
        return packet.device == node.bridge
    if node.device_prefix:
        return packet.device.startswith(node.device_prefix)
    return inside(node.pod_cidrs, packet.source)


def can_tell_pods(node: NaiveNode, packet: NaivePacket) -> bool:
    version = ip_address(packet.source).version
    cidrs = [cidr for cidr in node.pod_cidrs if ip_network(cidr).version == version]
    return bool(node.bridge or node.device_prefix or cidrs)


def from_node(node: NaiveNode, packet: NaivePacket) -> bool:
    return loopback(packet.source) or any(same(own, packet.source) for own in node.addresses)


def served(
    service: Object, port: Object, kind: str, everyone: list[NaiveEndpoint], node: NaiveNode, packet: NaivePacket
) -> Answer:
    anywhere, here = cluster_wide(everyone, node), node_local(everyone, node)
    guarded = kind == "loadBalancer" and not let_in(service, node, packet)
    name = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
    name += f":{port['name']}" if port.get("name") else ""
    if not anywhere and not here:
        return Answer("drop" if guarded and not node.iptables else "reject", service=name)
    if guarded:
        return Answer("drop", service=name)
    pod = from_pod(node, packet)
    if kind == "clusterIP":
        candidates = here if service["spec"].get("internalTrafficPolicy") == "Local" else anywhere
        masquerade = node.masquerade_all or (can_tell_pods(node, packet) and not pod)
    elif service["spec"].get("externalTrafficPolicy") != "Local":
        candidates, masquerade = anywhere, True
    elif pod:
        candidates, masquerade = anywhere, False
    elif from_node(node, packet):
        candidates, masquerade = anywhere, True
    else:
        candidates, masquerade = here, False
    if not candidates:
        return Answer("drop", service=name)
    targets = {(e.address, e.port): masquerade or same(e.address, packet.source) for e in candidates}
    if not from_node(node, packet):  # what is delivered here passes no POSTROUTING
        targets |= {pair: False for pair in targets if any(same(own, pair[0]) for own in node.addresses)}
    return Answer("dnat", targets, name)


def let_in(service: Object, node: NaiveNode, packet: NaivePacket) -> bool:
    ranges = service["spec"].get("loadBalancerSourceRanges") or []
    if not ranges:
        return True
    try:
        for cidr in ranges:
            if "/" not in cidr:
                return False
            ip_network(cidr.strip(), strict=False)
    except ValueError:
        return False
    if inside(ranges, packet.source):
        return True
    own = [a for a in node.addresses if ip_address(a).version == ip_address(packet.destination).version]
    mine = any(same(ip, packet.source) for ip in load_balancer_ips(service))
    return bool(own) and inside(ranges, own[0]) and mine
