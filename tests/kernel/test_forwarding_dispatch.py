"""Each format of packets between nodes with real clients: their addresses are seen, bulk and big datagrams get through,
nodes of different formats understand each other, and connections live through a change from one to another."""

import socket
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.traffic.probe import Outcome, Probe
from dataplane.model.net import Family
from dataplane.planes.decisions import Asked
from dataplane.policy.forwarding import Dispatch, Forwarding
from tests.kernel.bpf_packets.formats import FORMATS, Format, Vxlan
from tests.kernel.forwarding_lab import INGRESS, NODE_PORT, ForwardingLab, ask, forwarding_lab, host
from tests.kernel.packet_lab import counted
from tests.kernel.test_forwarding_sizes import client, transfer
from tests.kernel.test_forwarding_traffic import share
from tests.kernel.test_tc_traffic import Server, ip_route

FAMILIES = (Family.IPV4, Family.IPV6)
WAYS = (Forwarding.DSR, Forwarding.TUNNEL)
NEW = [form for form in FORMATS if not isinstance(form, Vxlan)]
each_new = pytest.mark.parametrize("form", NEW, ids=lambda form: form.dispatch.value)
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def made() -> Iterator[ForwardingLab]:
    """With XDP, which leaves much to tc; `bulk` has tc alone."""
    with forwarding_lab("disp", xdp=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def bulk() -> Iterator[ForwardingLab]:
    """The lab with the one endpoint on node 2, and a server that sends much."""
    with forwarding_lab("dispb", only="pod2-1") as lab:
        server = Server([lab.lab.nodes[1].pods[0].netns])
        try:
            yield lab
        finally:
            server.close()


@each_way
@each_new
def test_every_pod_sees_the_client(made: ForwardingLab, form: Format, way: Forwarding) -> None:
    """Over TCP and UDP, node ports and load-balancer IPs."""
    made.send_in(form.dispatch)
    made.use(way)
    with counted(made.proxy) as ways:
        for to, port in ((made.lab.nodes[0].addresses, NODE_PORT), (INGRESS, 80)):
            made.forget_flows()  # or a socket of the last round may have the port of one of this
            share(made, to, port, count=60, least=1)
    assert sum(number for name, number in ways.items() if name.endswith(":forwarded")) > 60
    assert not [name for name in ways if ":tunnel_" in name], ways


@each_way
def test_connections_live_through_changes(made: ForwardingLab, way: Forwarding) -> None:
    """From each format to each, one node after the other, so that nodes of both are there meanwhile: connections go on
    without a reset and with the client that they have, and new ones come through at any time."""
    made.send_in(Dispatch.VXLAN)
    made.use(way)
    made.forget_flows()
    with netns(made.lab.client.netns):
        living = [
            socket.socket(family.socket_family, kind)
            for family in FAMILIES
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
            for _ in range(10)
        ]
        met = {}
        for sock in living:
            family = Family.IPV4 if sock.family == socket.AF_INET else Family.IPV6
            sock.settimeout(60)
            sock.connect((made.lab.nodes[0].addresses[family], NODE_PORT))
            met[sock] = ask(sock)
        assert len({server for server, _ in met.values()}) == 3
        for form in (*FORMATS[1:], FORMATS[0], *reversed(FORMATS)):
            for node in made.lab.nodes:
                made.send_in(form.dispatch, node.name)
                for sock in living:
                    assert ask(sock) == met[sock], (form, node.name)
                    assert host(met[sock][1]) == sock.getsockname()[0]
                address = made.lab.nodes[0].addresses[Family.IPV4]
                [result] = made.lab.probe("client", Probe(address, NODE_PORT, count=5, timeout=60))
                assert {a.outcome for a in result.attempts} == {Outcome.ANSWERED}, (form, node.name)
    for sock in living:
        sock.close()


@each_new
def test_the_format_is_told(made: ForwardingLab, form: Format) -> None:
    """By the event of a packet that is forwarded, and for a connection that there is."""
    made.send_in(form.dispatch)
    made.use(Forwarding.TUNNEL)
    made.forget_flows()
    node1 = made.proxy.nodes["node1"]
    said = f"in {form.dispatch.title}"
    with netns(node1.node.netns):
        stream = node1.plane.decisions(Asked())
        assert stream is not None
    wanted = {f"{node.addresses[Family.IPV4]} {said}" for node in made.lab.nodes[1:]}
    told: set[str] = set()
    socks: list[socket.socket] = []
    with stream:
        # Asked in between, as the programs tell only while somebody asks; chance may lead many to node 1's own pod.
        while len(socks) < 24 or (told < wanted and len(socks) < 200):
            with netns(made.lab.client.netns):
                socks.append(socket.create_connection((node1.node.addresses[Family.IPV4], NODE_PORT), 60))
            told |= {event.forwarded for event in stream.poll(60) if event.forwarded}
        with netns(node1.node.netns):
            held = {flow.forwarded for flow in node1.plane.flows() or () if flow.forwarded}
    assert held == told == wanted
    for sock in socks:
        sock.close()


@pytest.mark.parametrize("family", FAMILIES)
@each_way
@each_new
def test_bulk_and_big_datagrams(bulk: ForwardingLab, form: Format, way: Forwarding, family: Family) -> None:
    """Aggregates of segments, both ways; and the pod, like the client, learns how much the tunnel leaves."""
    bulk.send_in(form.dispatch)
    bulk.use(way)
    with counted(bulk.proxy) as ways:
        transfer(bulk, family)
    assert ways["tc_ingress:forwarded"] > 10, ways
    fits = 1500 - form.overhead(family)
    with client(bulk, family, socket.SOCK_DGRAM) as sock:
        for number in range(5):
            sent = bytes([number]) * (fits + 1 - (28 if family is Family.IPV4 else 48))
            sock.settimeout(1.5 if number < 2 else 60)
            with suppress(OSError) if number < 2 else nullcontext():  # too long, or no answer
                sock.send(sent)
                while sock.recv(65536) != sent:
                    assert number > 0, "an answer to an earlier one may come late"
    known = bulk.lab.run(bulk.lab.client.name, [*ip_route(family), "show", "cache"]).stdout
    assert f"mtu {fits}" in known
    bulk.lab.run(bulk.lab.client.name, [*ip_route(family), "flush", "cache"])
    bulk.lab.run("pod2-1", [*ip_route(family), "flush", "cache"])
