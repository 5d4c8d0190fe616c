"""Every shape of lab carries real packets between all its places."""

import os
import socket
from collections.abc import Iterator

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.build import pod_mtu
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec, PodLink, Routing
from dataplane.lab.traffic.probe import Outcome, Probe, split_port
from dataplane.model.net import Family, Protocol, host_port

PORT = 8080
PATIENCE = 60.0
"""For packets that must arrive: only a broken lab makes anyone wait so long."""

_MTU_DISCOVER = {Family.IPV4: (socket.IPPROTO_IP, 10), Family.IPV6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_DO = 2
_HEADERS = {Family.IPV4: 20 + 8, Family.IPV6: 40 + 8}

SHAPES = [(routing, pod_link, ipv6) for routing in Routing for pod_link in PodLink for ipv6 in (False, True)]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda s: f"{s[0]}-{s[1]}-{'dual' if s[2] else 'ipv4'}")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    routing, pod_link, ipv6 = request.param
    with Lab.up(LabSpec(f"reach-{os.getpid()}", 3, (2, 2, 1), routing, pod_link, ipv6)) as lab:
        lab.start_echo([*lab.nodes, *lab.pods, lab.client], [PORT])
        yield lab


def test_everyone_reaches_everyone_with_the_own_address(lab: Lab) -> None:
    places = [*lab.nodes, *lab.pods, lab.client]
    targets = [
        (target, family, protocol)
        for target in places
        for family in lab.spec.families
        for protocol in (Protocol.TCP, Protocol.UDP)
    ]
    probes = [Probe(t.addresses[family], PORT, protocol, timeout=PATIENCE) for t, family, protocol in targets]
    results = lab.probe_all({place.name: probes for place in places})
    for place in places:
        for (target, family, _), result in zip(targets, results[place.name], strict=True):
            attempt = result.attempts[0]
            assert attempt.outcome is Outcome.ANSWERED, (place.name, target.name, attempt)
            assert attempt.server == target.name
            assert attempt.peer == host_port(target.addresses[family], PORT)
            assert attempt.client == attempt.local
            if place not in lab.nodes:  # a node has several addresses to speak from
                assert split_port(attempt.client)[0] == place.addresses[family]


def test_node_answers_on_its_second_address_from_there(lab: Lab) -> None:
    for family in lab.spec.families:
        second = lab.nodes[1].second[family]
        probes = [
            Probe(second, PORT, Protocol.UDP, timeout=PATIENCE, connected=False),
            Probe(second, PORT, timeout=PATIENCE),
        ]
        for result in lab.probe("client", *probes) + lab.probe("pod1-1", *probes):
            assert result.servers == {"node2": 1}
            assert result.attempts[0].peer == host_port(second, PORT)


def test_node_speaks_from_its_primary_address_to_the_outside(lab: Lab) -> None:
    for family in lab.spec.families:
        [result] = lab.probe("node2", Probe(lab.client.addresses[family], PORT, timeout=PATIENCE))
        assert result.clients == {lab.nodes[1].addresses[family]: 1}


def test_full_size_packets_pass_between_nodes(lab: Lab) -> None:
    """A datagram as large as the pod's MTU, never fragmented."""
    for family in lab.spec.families:
        with netns(lab.place("pod1-1").netns):
            sock = socket.socket(family.socket_family, socket.SOCK_DGRAM)
        with sock:
            sock.setsockopt(*_MTU_DISCOVER[family], _PMTUDISC_DO)
            sock.settimeout(PATIENCE)
            sock.connect((lab.place("pod3-1").addresses[family], PORT))
            sock.send(bytes(pod_mtu(lab.spec) - _HEADERS[family]))
            assert b"pod3-1" in sock.recv(1000)
            with pytest.raises(OSError, match="Message too long"):
                sock.send(bytes(pod_mtu(lab.spec) - _HEADERS[family] + 1))


def test_node_translates_between_its_own_pods(lab: Lab) -> None:
    """A Service between two pods of one node works only if the reply passes the node's rules as well: on a bridge by
    bridge-nf-call-iptables, on routed veths by itself. Also the pod that reaches itself (hairpin)."""
    service = {Family.IPV4: "10.96.0.10", Family.IPV6: "fd00:10:96::10"}
    rules = []
    for family in lab.spec.families:
        own = "ip" if family is Family.IPV4 else "ip6"
        one, two = (pod.addresses[family] for pod in lab.nodes[0].pods)
        rules.append(f"""
            add table {own} test
            add chain {own} test pre {{ type nat hook prerouting priority -100; }}
            add chain {own} test post {{ type nat hook postrouting priority 100; }}
            add rule {own} test pre {own} daddr {service[family]} tcp dport 80 dnat to {host_port(two, PORT)}
            add rule {own} test pre {own} daddr {service[family]} tcp dport 81 dnat to {host_port(one, PORT)}
            add rule {own} test post {own} saddr {one} {own} daddr {one} masquerade
            """)
    lab.run("node1", ["nft", "-f", "-"], input="\n".join(rules))
    try:
        for family in lab.spec.families:
            probes = [Probe(service[family], port, count=3, timeout=PATIENCE) for port in (80, 81)]
            other, hairpin = lab.probe("pod1-1", *probes)
            assert other.servers == {"pod1-2": 3}
            assert other.clients == {lab.place("pod1-1").addresses[family]: 3}
            assert hairpin.servers == {"pod1-1": 3}
            assert lab.place("pod1-1").addresses[family] not in hairpin.clients
    finally:
        lab.run("node1", ["nft", "flush", "ruleset"])


def test_addresses_nobody_has_enter_the_cluster_where_the_client_says(lab: Lab) -> None:
    address = {Family.IPV4: "203.0.113.10", Family.IPV6: "fd00:203:0:113::10"}
    for node in lab.nodes:
        for family in lab.spec.families:
            lab.run(node, ["ip", "address", "add", f"{address[family]}/{family.bits}", "dev", "lo"])
    for family in lab.spec.families:
        for node in lab.nodes:
            lab.set_entry(node.name)
            [result] = lab.probe("client", Probe(address[family], PORT, count=2, timeout=PATIENCE))
            assert result.servers == {node.name: 2}
        probes = [Probe(address[family], PORT, timeout=PATIENCE, source=via[family]) for via in lab.client.via.values()]
        results = lab.probe("client", *probes)
        assert [list(result.servers) for result in results] == [[name] for name in lab.client.via]
        assert [list(r.clients) for r in results] == [[via[family]] for via in lab.client.via.values()]


def test_a_default_route_that_the_router_gets_of_elsewhere_is_not_for_the_lab(lab: Lab) -> None:
    """As a machine's DHCP client brings one back each time that it renews its lease."""
    address = {Family.IPV4: "203.0.113.11", Family.IPV6: "fd00:203:0:113::11"}
    unclaimed = {Family.IPV4: "203.0.113.12", Family.IPV6: "fd00:203:0:113::12"}
    for family in lab.spec.families:
        ip, own = ["ip", f"-{family.value}"], f"{address[family]}/{family.bits}"
        lab.run("node2", [*ip, "address", "add", own, "dev", "lo"])
        lab.set_entry("node2")
        lab.run("net", [*ip, "route", "add", "default", "via", lab.client.addresses[family]])
        try:
            [entered] = lab.probe("client", Probe(address[family], PORT, timeout=PATIENCE))
            [refused] = lab.probe("node1", Probe(unclaimed[family], PORT, timeout=PATIENCE))
        finally:
            lab.run("net", [*ip, "route", "del", "default", "via", lab.client.addresses[family]])
            lab.run("node2", [*ip, "address", "del", own, "dev", "lo"])
            lab.set_entry("node1")
        assert entered.servers == {"node2": 1}
        assert refused.attempts[0].detail in ("EHOSTUNREACH", "ENETUNREACH")
