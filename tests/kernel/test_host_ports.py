"""hostPorts of Pods in every mode, with real packets: from outside, from pods, from the node, from the pod itself."""

import os
import socket
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import LabSpec, PodLink
from dataplane.lab.traffic.probe import Outcome, Probe, ProbeResult
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import HostPort, Pod, Service, ServicePortSpec, ServiceType
from dataplane.oracle.decide import Packet, Verdict
from dataplane.plan.rows import rows
from tests.kernel.modes import MODES, lab_proxy
from tests.kernel.test_behaviours import endpoints

PORT, HOST_PORT = 8080, 9090
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.name)
PROTOCOLS = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=lambda protocol: protocol.text)
WEB = Service(
    "default",
    "web",
    ServiceType.NODE_PORT,
    ("10.96.7.1",),
    ports=(ServicePortSpec("tcp", Protocol.TCP, 80, HOST_PORT),),
)


@pytest.fixture(scope="module", params=list(PodLink), ids=str)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    spec = LabSpec(name=f"hp{os.getpid()}", nodes=2, pods=2, ipv6=True, pod_link=request.param)
    with Lab.up(spec) as lab:
        lab.start_echo(lab.pods, [PORT])
        yield lab


@pytest.fixture(scope="module", params=MODES)
def proxy(request: pytest.FixtureRequest, lab: Lab) -> Iterator[LabProxy]:
    with lab_proxy(lab, request.param) as proxy:
        for node in proxy.nodes.values():
            change = node.planner.set_node(replace(node.planner.plan.node, host_ports=True))
            with netns(node.node.netns):
                node.plane.apply(change)
        yield proxy


@pytest.fixture(autouse=True)
def clean(lab: Lab, proxy: LabProxy) -> Iterator[None]:
    yield
    proxy.update(deletes=[pod("pod1-1", lab).ref, pod("pod1-2", lab).ref, WEB.ref])


def pod(name: str, lab: Lab, **fields: object) -> Pod:
    """A Pod of node 1 that publishes PORT as HOST_PORT, for TCP and UDP."""
    ports = tuple(HostPort(protocol, HOST_PORT, PORT) for protocol in (Protocol.TCP, Protocol.UDP))
    addresses = tuple(lab.place(name).addresses.values())
    return replace(Pod("default", name, name, "node1", addresses, host_ports=ports), **fields)


def probe(lab: Lab, where: str, address: str, protocol: Protocol = Protocol.TCP) -> ProbeResult:
    return lab.probe(where, Probe(address, HOST_PORT, protocol, count=4, timeout=60.0))[0]


@FAMILIES
@PROTOCOLS
def test_who_gets_there_and_whom_the_pod_sees(lab: Lab, proxy: LabProxy, family: Family, protocol: Protocol) -> None:
    proxy.update([pod("pod1-1", lab)])
    node = proxy.nodes["node1"]
    with netns(node.node.netns):
        assert node.plane.read_back() == rows(node.planner.plan)
    target = lab.nodes[0].addresses[family]
    oracle = proxy.oracles()["node1"]
    for where in ("client", "pod2-1", "pod1-2", "node2", "pod1-1", "node1"):
        source = lab.place(where).addresses[family]
        found = probe(lab, where, target, protocol)
        assert found.servers == {"pod1-1": 4}, (where, found.outcomes)
        decision = oracle.decide(Packet(source, target, HOST_PORT, protocol))
        assert decision.verdict is Verdict.DNAT
        assert decision.masquerade == (where == "pod1-1")
        if where == "pod1-1":
            assert source not in found.clients, "the answer would not come back through the node"
        elif where != "node1":  # whose sockets have no address before they are routed
            assert set(found.clients) == {source}, where


@FAMILIES
def test_a_terminating_pod_has_none_and_udp_goes_to_the_next(lab: Lab, proxy: LabProxy, family: Family) -> None:
    """A socket that keeps sending hears from the pod that has the port now."""
    target = lab.nodes[0].addresses[family]
    proxy.update([pod("pod1-1", lab)])
    with netns(lab.client.netns):
        sock = socket.socket(family.socket_family, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(60)
        sock.connect((target, HOST_PORT))

        def ask() -> str:
            sock.send(b"?\n")
            return sock.recv(500).split(b'"')[3].decode()

        assert ask() == "pod1-1"
        proxy.update([pod("pod1-1", lab, terminating=True), pod("pod1-2", lab)])
        assert ask() == "pod1-2"
        assert probe(lab, "client", target).servers == {"pod1-2": 4}
        proxy.update(deletes=[pod("pod1-2", lab).ref])
        assert probe(lab, "client", target).outcomes == {Outcome.REFUSED: 4}


def test_a_service_takes_the_port_and_gives_it_back(lab: Lab, proxy: LabProxy) -> None:
    target = lab.nodes[0].addresses[Family.IPV4]
    proxy.update([pod("pod1-1", lab)])
    proxy.update([WEB, *endpoints(lab, "pod1-2")])
    assert probe(lab, "client", target).servers == {"pod1-2": 4}
    assert probe(lab, "client", target, Protocol.UDP).servers == {"pod1-1": 4}, "another protocol is another port"
    proxy.update(deletes=[WEB.ref])
    assert probe(lab, "client", target).servers == {"pod1-1": 4}


@FAMILIES
def test_a_host_ip_answers_alone(lab: Lab, proxy: LabProxy, family: Family) -> None:
    first, second = lab.nodes[0].addresses[family], lab.nodes[0].second[family]
    port = HostPort(Protocol.TCP, HOST_PORT, PORT, second)
    proxy.update([pod("pod1-1", lab, host_ports=(port,))])
    assert probe(lab, "client", second).servers == {"pod1-1": 4}
    assert probe(lab, "client", first).outcomes == {Outcome.REFUSED: 4}


def test_loopback_where_the_mode_serves_it(lab: Lab, proxy: LabProxy) -> None:
    proxy.update([pod("pod1-1", lab)])
    serves = proxy.nodes["node1"].planner.plan.node.nodeports.loopback
    assert serves or proxy.mode != "iptables"
    found = probe(lab, "node1", "127.0.0.1")
    assert found.outcomes == {Outcome.ANSWERED if serves else Outcome.REFUSED: 4}
