"""Random small clusters as Kubernetes writes them: few names, addresses and ports, so that things often collide."""

from typing import Any

import msgspec
from hypothesis import strategies as st

from dataplane.model.decode import decode_object
from dataplane.model.objects import ModelObject
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from tests.unit.naive import NaiveNode, NaivePacket

Object = dict[str, Any]

NODE_ADDRESSES = ("192.168.0.2", "fd00:168::2", "192.168.1.2")
CLUSTER_IPS = {4: ("10.96.0.1", "10.96.0.2", "10.96.0.3"), 6: ("fd00:96::1", "fd00:96::2")}
EXTERNAL_IPS = {4: ("198.51.100.1", "198.51.100.2", "192.168.0.2"), 6: ("2001:db8::51",)}
INGRESS_IPS = {4: ("198.51.100.9", "198.51.100.1"), 6: ("2001:db8::59",)}
PODS = {4: ("10.1.0.1", "10.1.0.2", "10.1.1.1", "192.168.0.2"), 6: ("fd00:10::1", "fd00:10::2")}
SOURCES = {
    4: (*PODS[4], "203.0.113.5", "203.0.113.200", "192.168.1.2", "127.0.0.1", *INGRESS_IPS[4]),
    6: (*PODS[6], "2001:db8:9::5", "fd00:168::2", "::1", *INGRESS_IPS[6]),
}
DESTINATIONS = {
    4: (*CLUSTER_IPS[4], *EXTERNAL_IPS[4], *INGRESS_IPS[4], "192.168.1.2", "127.0.0.1", "10.96.0.99", "203.0.113.9"),
    6: (*CLUSTER_IPS[6], *EXTERNAL_IPS[6], *INGRESS_IPS[6], "fd00:168::2", "::1", "fd00:96::99", "2001:db8:9::9"),
}
SERVICE_NAMES = (("a", "s1"), ("a", "s2"), ("b", "s1"), ("b", "s2"))
PROTOCOLS = st.sampled_from(("TCP", "TCP", "TCP", "UDP", "SCTP"))
RANGES = st.sampled_from(
    (
        ["203.0.113.0/25"],
        ["203.0.113.0/24", "2001:db8:9::/64"],
        [" 203.0.113.0/25", "192.168.0.0/16"],
        ["2001:db8:9::/64", "fd00:168::/64"],
        ["10.0.0.0/8", "not a range"],
        ["0.0.0.0/0", "::/0"],
        [],
    )
)


def _subset(values: tuple[str, ...], most: int = 2) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=most)


# One place, at times two, and now and then an empty list, which counts as no hint.
_HINTED_ZONES = st.sampled_from((["za"], ["zb"], ["zb"], ["za", "zb"], []))
_HINTED_NODES = st.sampled_from((["n1"], ["n2"], ["n2"], ["n1", "n2"], []))


@st.composite
def service_ports(draw: st.DrawFn, with_node_ports: bool) -> list[Object]:
    names = draw(st.sampled_from((("",), ("web",), ("web", "dns"), ("web", "dns", "alt"))))
    ports: list[Object] = []
    for name in names:
        port: Object = {"port": draw(st.sampled_from((80, 53, 30000))), "protocol": draw(PROTOCOLS)}
        if name:
            port["name"] = name
        if with_node_ports and draw(st.integers(0, 4)) != 1:
            port["nodePort"] = draw(st.sampled_from((30000, 30001, 30002)))
        # The API server lets no two ports of one Service be the same.
        taken = {(other["protocol"], number) for other in ports for number in (other["port"], other.get("nodePort"))}
        if not taken & {(port["protocol"], port["port"]), (port["protocol"], port.get("nodePort"))}:
            ports.append(port)
    return ports


@st.composite
def services(draw: st.DrawFn, namespace: str, name: str) -> Object:
    kind = draw(
        st.sampled_from(
            ("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "NodePort", "ClusterIP", "ExternalName")
        )
    )
    versions = draw(st.sampled_from(((4,), (6,), (4, 6), (6, 4))))
    ips = [draw(st.sampled_from(CLUSTER_IPS[version])) for version in versions]
    spec: Object = {"type": kind}
    metadata: Object = {"namespace": namespace, "name": name}
    created = draw(st.sampled_from((None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")))
    if created:
        metadata["creationTimestamp"] = created
    metadata["labels"] = dict.fromkeys(
        draw(st.sampled_from(((), (), (), (), ("service.kubernetes.io/service-proxy-name",), ("app",)))), "x"
    )
    if kind == "ExternalName":
        return {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": spec | {"externalName": "x.example"},
        }
    spec["clusterIP"] = "None" if kind == "ClusterIP" and draw(st.integers(0, 9)) == 1 else ips[0]
    spec["clusterIPs"] = ["None"] if spec["clusterIP"] == "None" else ips
    spec["ports"] = draw(service_ports(kind != "ClusterIP"))
    spec["internalTrafficPolicy"] = draw(st.sampled_from(("Cluster", "Cluster", "Local")))
    spec["externalIPs"] = [ip for version in (4, 6) for ip in draw(_subset(EXTERNAL_IPS[version], 1))]
    if kind != "ClusterIP":
        spec["externalTrafficPolicy"] = draw(st.sampled_from(("Cluster", "Local")))
    if draw(st.integers(0, 3)) == 1:
        spec["sessionAffinity"] = "ClientIP"
    status: Object = {}
    if kind == "LoadBalancer":
        ingress = [{"ip": ip} for version in (4, 6) for ip in draw(_subset(INGRESS_IPS[version]))]
        for entry in ingress:
            entry |= draw(st.sampled_from(({}, {}, {"ipMode": "VIP"}, {"ipMode": "Proxy"})))
        status = {"loadBalancer": {"ingress": ingress}}
        if draw(st.booleans()):
            spec["loadBalancerSourceRanges"] = draw(RANGES)
        if spec["externalTrafficPolicy"] == "Local":
            spec["healthCheckNodePort"] = 31000 + SERVICE_NAMES.index((namespace, name))
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}


@st.composite
def endpoints(draw: st.DrawFn, version: int, hint: str) -> Object:
    endpoint: Object = {"addresses": [draw(st.sampled_from(PODS[version]))]}
    mood = draw(st.sampled_from(("plain", "plain", "plain", "terminating", "unready", "any")))
    if mood == "terminating":
        endpoint["conditions"] = {"ready": False, "serving": True, "terminating": True}
    elif mood == "unready":
        endpoint["conditions"] = {"ready": False, "serving": True}
    elif mood == "any":
        flag = st.sampled_from((None, True, False))
        endpoint["conditions"] = {key: draw(flag) for key in ("ready", "serving", "terminating")}
    node = draw(st.sampled_from(("n1", "n2", None)))
    if node:
        endpoint["nodeName"] = node
    if hint in ("zones", "both"):
        endpoint["hints"] = {"forZones": [{"name": z} for z in draw(_HINTED_ZONES)]}
    if hint in ("nodes", "both"):
        endpoint.setdefault("hints", {})["forNodes"] = [{"name": n} for n in draw(_HINTED_NODES)]
    return endpoint


def _wanted_ports(service: Object) -> list[tuple[str, str]]:
    return [(port.get("name", ""), port["protocol"]) for port in service["spec"].get("ports", [])]


@st.composite
def slices(draw: st.DrawFn, namespace: str, name: str, owner: Object, version: int) -> Object:
    """A slice of a Service, whose ports it has for the most part."""
    labels = {"kubernetes.io/service-name": owner["metadata"]["name"]}
    strange = draw(st.integers(0, 19))
    if strange == 1:
        labels = {}
    elif strange == 2:
        labels["service.kubernetes.io/headless"] = ""
    hint = draw(st.sampled_from(("", "zones", "nodes", "both")))
    named = _wanted_ports(owner) or [("web", "TCP")]
    if strange == 3:
        named = [("web", draw(PROTOCOLS)), ("other", "TCP")]
    ports = [
        {"name": port_name, "protocol": protocol, "port": draw(st.sampled_from((8080, 8080, 8081)))}
        for port_name, protocol in named
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "addressType": f"IPv{version}",
        "ports": ports,
        "endpoints": draw(st.lists(endpoints(version, hint), min_size=draw(st.sampled_from((2, 1, 3, 0))), max_size=4)),
    }


@st.composite
def clusters(draw: st.DrawFn) -> list[Object]:
    """Services, EndpointSlices and at times a ServiceCIDR, in random order; each name at most once."""
    objects = [draw(services(*name)) for name in SERVICE_NAMES if draw(st.integers(0, 3)) != 1]
    for number, service in enumerate(list(objects)):
        namespace = service["metadata"]["namespace"]
        versions = {6 if ":" in ip else 4 for ip in service["spec"].get("clusterIPs", [])}
        for version in (4, 6):
            # A slice of a family that the Service does not have must do no harm.
            for extra in range(draw(st.sampled_from((1, 1, 2, 0) if version in versions else (0, 0, 0, 1)))):
                objects.append(draw(slices(namespace, f"sl{extra}-{number}-{version}", service, version)))
    if draw(st.booleans()):
        cidrs = draw(st.sampled_from((["10.96.0.0/16"], ["10.96.0.0/24", "fd00:96::/112"])))
        metadata = {"name": "kubernetes"}
        objects.append(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": metadata,
                "spec": {"cidrs": cidrs},
            }
        )
    return list(draw(st.permutations(objects)))


@st.composite
def nodes(draw: st.DrawFn) -> NaiveNode:
    detector = draw(st.sampled_from(("cluster", "cluster", "dual", "none", "bridge", "prefix")))
    iptables = draw(st.booleans())
    return NaiveNode(
        name=draw(st.sampled_from(("n1", "n1", "n2", ""))),
        zone=draw(st.sampled_from(("za", "zb", ""))),
        addresses=draw(st.sampled_from((NODE_ADDRESSES, NODE_ADDRESSES[:2], NODE_ADDRESSES[:1]))),
        pod_cidrs={"cluster": ("10.0.0.0/8",), "dual": ("10.1.0.0/16", "fd00:10::/64")}.get(detector, ()),
        bridge="cni0" if detector == "bridge" else "",
        device_prefix="veth" if detector == "prefix" else "",
        nodeport_on=draw(st.sampled_from((None, NODE_ADDRESSES[:1], NODE_ADDRESSES[:2]))),
        nodeport_on_loopback=iptables and draw(st.booleans()),
        masquerade_all=draw(st.integers(0, 4)) == 1,
        iptables=iptables,
    )


def _frontends(objects: list[Object]) -> list[tuple[str, int, str]]:
    """Addresses, ports and protocols that Services are reached by, or look as if they were."""
    found = []
    for service in objects:
        if service["kind"] == "Service":
            spec, ingress = service["spec"], service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
            exact = [*spec.get("clusterIPs", []), *spec.get("externalIPs", []), *(entry["ip"] for entry in ingress)]
            for port in spec.get("ports", []):
                found += [(address, port["port"], port["protocol"]) for address in exact if address != "None"]
                found += [(a, port["nodePort"], port["protocol"]) for a in NODE_ADDRESSES if "nodePort" in port]
    return found


@st.composite
def packets(draw: st.DrawFn, objects: list[Object]) -> NaivePacket:
    """A packet, most often for a frontend of one of the Services."""
    frontends = _frontends(objects)
    if frontends and draw(st.integers(0, 4)) != 1:
        destination, port, protocol = draw(st.sampled_from(frontends))
    else:
        destination = draw(st.sampled_from(DESTINATIONS[draw(st.sampled_from((4, 6)))]))
        port = draw(st.sampled_from((80, 53, 30000, 30001, 30002, 8080)))
        protocol = draw(PROTOCOLS)
    source = draw(st.sampled_from(SOURCES[6 if ":" in destination else 4]))
    device = draw(st.sampled_from(("", "cni0", "veth1a", "eth0")))
    return NaivePacket(source, destination, port, protocol, device)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Object], NaiveNode, list[NaivePacket]]:
    """A cluster, this node, and some packets."""
    objects = draw(clusters())
    return objects, draw(nodes()), draw(st.lists(packets(objects), min_size=6, max_size=16))


def node_config(node: NaiveNode) -> NodeConfig:
    """The same node as hotplane's settings."""
    return NodeConfig(
        name=node.name,
        zone=node.zone,
        addresses=node.addresses,
        detector=LocalDetector(node.pod_cidrs, node.bridge or node.device_prefix, bool(node.device_prefix)),
        nodeports=NodePortAddresses(node.nodeport_on is None, node.nodeport_on or (), node.nodeport_on_loopback),
        masquerade_all=node.masquerade_all,
        reject_unknown_ports=not node.iptables,
    )


def decoded(objects: list[Object]) -> list[ModelObject]:
    """The same objects as hotplane reads them from a watch."""
    values = [decode_object(msgspec.json.encode(item)).value for item in objects]
    return [value for value in values if value is not None]
