"""Validation: tables of Services, EndpointSlices and Nodes, what they become and what is said about them."""

import json
from typing import Any

import pytest

from dataplane.model.decode import DecodedObject, decode_object
from dataplane.model.net import Protocol
from dataplane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    Service,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)

PORT = {"port": 80}


def service(spec: dict[str, Any], **more: Any) -> DecodedObject:
    """Decode a Service with this spec; `labels`, `annotations` and `ingress` are put where they belong."""
    metadata = {"name": "s", "labels": more.get("labels"), "annotations": more.get("annotations")}
    status = {"loadBalancer": {"ingress": more.get("ingress")}}
    full = {"clusterIP": "10.0.0.1", "ports": [PORT], **spec}
    return decode_object(json.dumps({"kind": "Service", "metadata": metadata, "spec": full, "status": status}).encode())


def endpoint_slice(**fields: Any) -> DecodedObject:
    labels = fields.pop("labels", {"kubernetes.io/service-name": "s"})
    item = {"kind": "EndpointSlice", "metadata": {"name": "s-1", "labels": labels}, "addressType": "IPv4", **fields}
    return decode_object(json.dumps(item).encode())


def as_service(found: DecodedObject) -> Service:
    assert isinstance(found.value, Service), found.problems
    return found.value


def as_slice(found: DecodedObject) -> EndpointSlice:
    assert isinstance(found.value, EndpointSlice), found.problems
    return found.value


def fields(found: DecodedObject) -> list[str]:
    return [problem.field for problem in found.problems]


# spec -> attributes of the Service that differ from the defaults
GOOD_SERVICES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"type": None, "sessionAffinity": "None", "externalIPs": None, "loadBalancerSourceRanges": []}, {}),
    ({"clusterIPs": ["10.0.0.1", "fd00:0::1"]}, {"cluster_ips": ("10.0.0.1", "fd00::1")}),
    ({"clusterIP": "", "clusterIPs": None}, {"cluster_ips": ()}),
    ({"clusterIP": "None"}, {"cluster_ips": (), "headless": True}),
    ({"clusterIP": "None", "clusterIPs": ["None"], "ports": None}, {"cluster_ips": (), "headless": True, "ports": ()}),
    ({"type": "ExternalName", "ports": None}, {"type": ServiceType.EXTERNAL_NAME, "cluster_ips": (), "ports": ()}),
    ({"externalIPs": ["192.0.2.1", "192.0.2.1"]}, {"external_ips": ("192.0.2.1",)}),
    ({"sessionAffinity": "ClientIP"}, {"affinity_seconds": 10800}),
    ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}, {"affinity_seconds": 10800}),
    (
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86400}}},
        {"affinity_seconds": 86400},
    ),
    ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, {}),
    ({"internalTrafficPolicy": "Local"}, {"internal_local": True}),
    ({"externalTrafficPolicy": "Local"}, {}),
    (
        {"externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"]},
        {"external_local": True, "external_ips": ("192.0.2.1",)},
    ),
    (
        {"type": "NodePort", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000},
        {"type": ServiceType.NODE_PORT, "external_local": True},
    ),
    ({"type": "LoadBalancer", "healthCheckNodePort": 31000}, {"type": ServiceType.LOAD_BALANCER}),
    (
        {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000},
        {"type": ServiceType.LOAD_BALANCER, "external_local": True, "health_check_node_port": 31000},
    ),
    (
        {"type": "LoadBalancer", "loadBalancerSourceRanges": [" 10.1.2.3/8 ", "fd00::1/64"]},
        {"type": ServiceType.LOAD_BALANCER, "source_ranges": ("10.0.0.0/8", "fd00::/64")},
    ),
    ({"loadBalancerSourceRanges": ["10.0.0.0/8"]}, {}),
    (
        {"ports": [{"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53, "protocol": "TCP"}]},
        {"ports": (ServicePortSpec("a", Protocol.UDP, 53), ServicePortSpec("b", Protocol.TCP, 53))},
    ),
    ({"ports": [{"port": 9, "protocol": "SCTP"}]}, {"ports": (ServicePortSpec("", Protocol.SCTP, 9),)}),
    (
        {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]},
        {"type": ServiceType.NODE_PORT, "ports": (ServicePortSpec("", Protocol.TCP, 80, 30080),)},
    ),
    (
        {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False, "ports": [{"port": 80, "nodePort": 0}]},
        {"type": ServiceType.LOAD_BALANCER},
    ),
]


@pytest.mark.parametrize(("spec", "changes"), GOOD_SERVICES)
def test_good_services(spec: dict[str, Any], changes: dict[str, Any]) -> None:
    found = service(spec)
    defaults = {"cluster_ips": ("10.0.0.1",), "ports": (ServicePortSpec("", Protocol.TCP, 80),)}
    assert found.value == Service("default", "s", **{**defaults, **changes})
    assert found.problems == ()


# spec -> (field of the problem, attribute and what is left in it)
FAULTS: list[tuple[dict[str, Any], str, str, Any]] = [
    ({"clusterIP": "10.0.0"}, "spec.clusterIP", "cluster_ips", ()),
    ({"clusterIP": "0x10.0.0.1"}, "spec.clusterIP", "cluster_ips", ()),
    ({"clusterIP": "010.0.0.0256"}, "spec.clusterIP", "cluster_ips", ()),
    ({"clusterIP": "127.0.0.1"}, "spec.clusterIP", "cluster_ips", ()),
    ({"clusterIPs": ["10.0.0.1", "x"]}, "spec.clusterIPs[1]", "cluster_ips", ("10.0.0.1",)),
    ({"clusterIPs": ["10.0.0.1", "10.0.0.2"]}, "spec.clusterIPs", "cluster_ips", ("10.0.0.1",)),
    ({"clusterIPs": ["10.0.0.9"]}, "spec.clusterIP", "cluster_ips", ("10.0.0.9",)),
    ({"externalIPs": ["192.0.2.1", "no"]}, "spec.externalIPs[1]", "external_ips", ("192.0.2.1",)),
    ({"externalIPs": ["169.254.1.1", "192.0.2.1"]}, "spec.externalIPs[0]", "external_ips", ("192.0.2.1",)),
    ({"externalIPs": ["0.0.0.0"]}, "spec.externalIPs[0]", "external_ips", ()),
    ({"externalIPs": ["255.255.255.255"]}, "spec.externalIPs[0]", "external_ips", ()),
    ({"externalIPs": ["fe80::1"]}, "spec.externalIPs[0]", "external_ips", ()),
    ({"externalIPs": ["ff02::1"]}, "spec.externalIPs[0]", "external_ips", ()),
    ({"externalIPs": ["::"]}, "spec.externalIPs[0]", "external_ips", ()),
    ({"externalIPs": ["ff::1", None]}, "spec.externalIPs[1]", "external_ips", ("ff::1",)),
    ({"ports": []}, "spec.ports", "ports", ()),
    ({"ports": [{"port": 0}]}, "spec.ports[0].port", "ports", ()),
    ({"ports": [{"port": 65536}]}, "spec.ports[0].port", "ports", ()),
    ({"ports": [{"port": -1}]}, "spec.ports[0].port", "ports", ()),
    ({"ports": [{"name": "a"}]}, "spec.ports[0].port", "ports", ()),
    ({"ports": [{"port": 80, "protocol": "tcp"}]}, "spec.ports[0].protocol", "ports", ()),
    ({"ports": [{"port": 80, "name": "a\nb"}]}, "spec.ports[0].name", "ports", ()),
    ({"ports": [PORT, {"port": 81}]}, "spec.ports[1].name", "ports", (ServicePortSpec("", Protocol.TCP, 80),)),
    (
        {"ports": [PORT, {"name": "b", "port": 80}]},
        "spec.ports[1].port",
        "ports",
        (ServicePortSpec("", Protocol.TCP, 80),),
    ),
    (
        {"ports": [{"port": 80, "nodePort": 30000}]},
        "spec.ports[0].nodePort",
        "ports",
        (ServicePortSpec("", Protocol.TCP, 80),),
    ),
    (
        {"type": "NodePort", "ports": [{"port": 80, "nodePort": 70000}]},
        "spec.ports[0].nodePort",
        "ports",
        (ServicePortSpec("", Protocol.TCP, 80),),
    ),
    (
        {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30000}, {"name": "b", "port": 81, "nodePort": 30000}]},
        "spec.ports[1].nodePort",
        "ports",
        (ServicePortSpec("", Protocol.TCP, 80, 30000), ServicePortSpec("b", Protocol.TCP, 81)),
    ),
    ({"sessionAffinity": "Cookie"}, "spec.sessionAffinity", "affinity_seconds", 0),
    (
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        "affinity_seconds",
        10800,
    ),
    (
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        "affinity_seconds",
        10800,
    ),
    ({"internalTrafficPolicy": "local"}, "spec.internalTrafficPolicy", "internal_local", False),
    ({"type": "NodePort", "externalTrafficPolicy": "Node"}, "spec.externalTrafficPolicy", "external_local", False),
    (
        {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 99999},
        "spec.healthCheckNodePort",
        "health_check_node_port",
        0,
    ),
    (
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0"]},
        "spec.loadBalancerSourceRanges[1]",
        "source_ranges",
        (),
    ),
    (
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/255.0.0.0"]},
        "spec.loadBalancerSourceRanges[0]",
        "source_ranges",
        (),
    ),
    (
        {"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/33"]},
        "spec.loadBalancerSourceRanges[0]",
        "source_ranges",
        (),
    ),
]


@pytest.mark.parametrize(("spec", "field", "attribute", "left"), FAULTS)
def test_a_fault_costs_only_the_value_that_has_it(spec: dict[str, Any], field: str, attribute: str, left: Any) -> None:
    found = service(spec)
    assert fields(found) == [field]
    assert getattr(as_service(found), attribute) == left
    assert len(found.problems[0].reason) > 10
    assert str(found.problems[0]).startswith(f"Service default/s: {field}: ")


# spec -> (field of the note, attribute and what it reads as): objects that were stored before the API refused these
SLOPPY: list[tuple[dict[str, Any], str, str, Any]] = [
    ({"clusterIP": "172.030.099.099"}, "spec.clusterIP", "cluster_ips", ("172.30.99.99",)),
    ({"clusterIP": "", "clusterIPs": ["10.96.001.017"]}, "spec.clusterIPs[0]", "cluster_ips", ("10.96.1.17",)),
    ({"clusterIP": "::ffff:10.96.1.17"}, "spec.clusterIP", "cluster_ips", ("10.96.1.17",)),
    ({"externalIPs": ["192.000.002.010"]}, "spec.externalIPs[0]", "external_ips", ("192.0.2.10",)),
    ({"externalIPs": ["::ffff:192.0.02.10"]}, "spec.externalIPs[0]", "external_ips", ("192.0.2.10",)),
    ({"externalIPs": ["::ffff:c000:20a"]}, "spec.externalIPs[0]", "external_ips", ("192.0.2.10",)),
    (
        {"loadBalancerSourceRanges": ["010.0.0.0/08"]},
        "spec.loadBalancerSourceRanges[0]",
        "source_ranges",
        ("10.0.0.0/8",),
    ),
    (
        {"loadBalancerSourceRanges": ["::ffff:10.1.2.3/104"]},
        "spec.loadBalancerSourceRanges[0]",
        "source_ranges",
        ("10.0.0.0/8",),
    ),
    (
        {"loadBalancerSourceRanges": ["::ffff:10.1.2.3/64"]},
        "spec.loadBalancerSourceRanges[0]",
        "source_ranges",
        ("::/64",),
    ),
]


@pytest.mark.parametrize(("spec", "field", "attribute", "read"), SLOPPY)
def test_addresses_of_old_objects_are_read_as_kube_proxy_reads_them(
    spec: dict[str, Any], field: str, attribute: str, read: Any
) -> None:
    found = service({"clusterIP": "10.0.0.1", "clusterIPs": None, "type": "LoadBalancer", **spec})
    assert found.problems == ()
    assert getattr(as_service(found), attribute) == read
    assert [note.field for note in found.notes] == [field]
    assert f"read as {read[0]}" in found.notes[0].reason


def test_load_balancer_addresses_and_endpoints_of_old_objects() -> None:
    found = service({"type": "LoadBalancer"}, ingress=[{"ip": "203.0.113.013"}, {"ip": "::ffff:203.0.113.014"}])
    assert as_service(found).load_balancer_ips == ("203.0.113.13", "203.0.113.14")
    assert [note.field for note in found.notes] == [f"status.loadBalancer.ingress[{i}].ip" for i in (0, 1)]
    texts = ["010.244.001.011", "::ffff:10.244.1.12", "10.244.1.13"]
    ends = endpoint_slice(endpoints=[{"addresses": [text]} for text in texts])
    assert [e.address for e in as_slice(ends).endpoints] == ["10.244.1.11", "10.244.1.12", "10.244.1.13"]
    assert ends.problems == ()
    assert [note.field for note in ends.notes] == [f"endpoints[{i}].addresses[0]" for i in (0, 1)]


@pytest.mark.parametrize("text", ["0127.0.0.1", "::ffff:127.0.0.1", "0169.254.0.1"])
def test_a_sloppy_address_is_judged_by_what_it_reads_as(text: str) -> None:
    assert fields(endpoint_slice(endpoints=[{"addresses": [text]}])) == ["endpoints[0].addresses[0]"]
    assert fields(service({"externalIPs": [text]})) == ["spec.externalIPs[0]"]


def test_an_unknown_type_skips_the_service() -> None:
    found = service({"type": "Magic"})
    assert found.value is None
    assert fields(found) == ["spec.type"]


def test_load_balancer_ingress() -> None:
    ingress = [
        {"hostname": "lb.example.org"},
        {"ip": "198.51.100.1", "ipMode": "Proxy"},
        {"ip": "198.51.100.2", "ipMode": "VIP"},
        {"ip": "198.51.100.3"},
        {"ip": "169.254.7.7"},
        {"ip": "bad"},
        None,
    ]
    found = service({"type": "LoadBalancer"}, ingress=ingress)
    assert as_service(found).load_balancer_ips == ("198.51.100.2", "198.51.100.3", "169.254.7.7")
    assert fields(found) == ["status.loadBalancer.ingress[5].ip", "status.loadBalancer.ingress[6]"]


def test_source_ranges_hold_wherever_there_is_a_load_balancer_address() -> None:
    found = service({"loadBalancerSourceRanges": ["10.0.0.0/8"]}, ingress=[{"ip": "198.51.100.1"}])
    assert as_service(found).source_ranges == ("10.0.0.0/8",)


def test_the_source_range_annotation_is_not_read() -> None:
    annotations = {"service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8"}
    assert as_service(service({"type": "LoadBalancer"}, annotations=annotations)).source_ranges is None


def test_labels_that_take_a_service_away() -> None:
    assert as_service(service({}, labels={"service.kubernetes.io/service-proxy-name": ""})).proxied_elsewhere
    assert as_service(service({}, labels={"service.kubernetes.io/headless": ""})).headless
    other = as_service(service({}, labels={"app": "x", "tier": 5}))
    assert not other.proxied_elsewhere
    assert not other.headless


def test_a_service_without_cluster_ip_is_noted_not_faulted() -> None:
    found = service({"clusterIP": None})
    assert found.problems == ()
    assert [note.field for note in found.notes] == ["spec.clusterIP"]
    assert service({"clusterIP": "None"}).notes == ()


ENDPOINTS: list[tuple[dict[str, Any], Endpoint]] = [
    ({}, make_endpoint("10.0.0.1")),
    ({"conditions": {}}, make_endpoint("10.0.0.1")),
    ({"conditions": {"ready": None, "serving": None, "terminating": None}}, make_endpoint("10.0.0.1")),
    ({"conditions": {"ready": False}}, make_endpoint("10.0.0.1", ready=False, serving=True)),
    (
        {"conditions": {"ready": False, "terminating": True}},
        make_endpoint("10.0.0.1", ready=False, serving=True, terminating=True),
    ),
    (
        {"conditions": {"ready": False, "serving": True, "terminating": True}},
        make_endpoint("10.0.0.1", ready=False, serving=True, terminating=True),
    ),
    ({"conditions": {"serving": False}}, make_endpoint("10.0.0.1", serving=False)),
    ({"addresses": ["10.0.0.1", "10.0.0.2"]}, make_endpoint("10.0.0.1")),
    ({"nodeName": "n1", "zone": "a", "deprecatedTopology": {"x": "y"}}, make_endpoint("10.0.0.1", node="n1")),
    ({"hints": {}}, make_endpoint("10.0.0.1")),
    ({"hints": {"forZones": [], "forNodes": None}}, make_endpoint("10.0.0.1")),
    ({"hints": {"forZones": [{"name": "a"}, {"name": "b"}]}}, make_endpoint("10.0.0.1", zone_hints=("a", "b"))),
    ({"hints": {"forNodes": [{"name": "n1"}]}}, make_endpoint("10.0.0.1", node_hints=("n1",))),
]


@pytest.mark.parametrize(("entry", "expected"), ENDPOINTS)
def test_good_endpoints(entry: dict[str, Any], expected: Endpoint) -> None:
    found = endpoint_slice(endpoints=[{"addresses": ["10.0.0.1"], **entry}])
    assert as_slice(found).endpoints == (expected,)
    assert found.problems == ()


BAD_ADDRESSES = {
    "IPv4": ["127.0.0.1", "169.254.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "fd00::1", "x", "", "1.2.3"],
    "IPv6": ["::1", "::", "fe80::1", "febf::1", "ff02::1", "::ffff:10.0.0.1", "010.0.0.1", "fd00::1%eth0", "fd00:::1"],
}
GOOD_ADDRESSES = {"IPv4": ["169.253.0.1", "0.0.0.1", "223.1.1.1"], "IPv6": ["fec0::1", "64:ff9b::1", "fd00::A"]}


@pytest.mark.parametrize("kind", ["IPv4", "IPv6"])
def test_each_bad_address_costs_one_endpoint(kind: str) -> None:
    texts = [*BAD_ADDRESSES[kind], *GOOD_ADDRESSES[kind]]
    found = endpoint_slice(addressType=kind, endpoints=[{"addresses": [text]} for text in texts])
    assert fields(found) == [f"endpoints[{index}].addresses[0]" for index in range(len(BAD_ADDRESSES[kind]))]
    assert [e.address for e in as_slice(found).endpoints] == [text.lower() for text in GOOD_ADDRESSES[kind]]
    assert all(problem.reason for problem in found.problems)


@pytest.mark.parametrize("addresses", [None, []])
def test_an_endpoint_needs_an_address(addresses: Any) -> None:
    found = endpoint_slice(endpoints=[{"addresses": addresses}, {"addresses": ["10.0.0.2"]}, None])
    assert fields(found) == ["endpoints[0].addresses", "endpoints[2]"]
    assert len(as_slice(found).endpoints) == 1


def test_slice_ports() -> None:
    ports = [
        {"port": 80},
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns", "port": 53, "protocol": "TCP"},
        {"name": "all", "port": None},
        {"name": "big", "port": 65536},
        {"name": "odd", "port": 1, "protocol": "ICMP"},
        {"name": None, "port": 81, "protocol": None},
        {"name": "a b", "port": 82},
    ]
    found = endpoint_slice(ports=ports)
    assert as_slice(found).ports == (
        EndpointPort("", Protocol.TCP, 80),
        EndpointPort("dns", Protocol.UDP, 53),
        EndpointPort("dns", Protocol.TCP, 53),
    )
    assert fields(found) == ["ports[4].port", "ports[5].protocol", "ports[6].name", "ports[7].name"]
    assert as_slice(endpoint_slice(ports=None)).ports == ()


def test_slice_identity() -> None:
    assert as_slice(endpoint_slice(labels=None)).service == ""
    labels = {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}
    found = as_slice(endpoint_slice(labels=labels))
    assert (found.service, found.headless, found.namespace) == ("web", True, "default")


@pytest.mark.parametrize("kind", [None, "", "IPv5"])
def test_a_slice_without_family_is_skipped(kind: Any) -> None:
    found = endpoint_slice(addressType=kind)
    assert found.value is None
    assert fields(found) == ["addressType"]


def test_node() -> None:
    item = {
        "kind": "Node",
        "metadata": {"name": "n", "namespace": "ignored"},
        "spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": None},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "x"}, {"type": "InternalIP", "address": "10.0.0.1"}]
        },
    }
    found = decode_object(json.dumps(item).encode())
    assert found.value == Node("n", "", ("10.0.0.1",), ("10.42.0.0/24",))
    assert fields(found) == ["status.addresses[0].address"]
