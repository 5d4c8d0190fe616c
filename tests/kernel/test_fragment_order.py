"""Datagrams in fragments, in every order, through the programs: to endpoints here and elsewhere, and back."""

import itertools
import json
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Raw

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.collect import sweep
from dataplane.planes.ebpf.maps.layout import fields_of
from dataplane.planes.ebpf.plane import EbpfPlane
from tests.kernel.daemon_lab import until
from tests.kernel.packet_lab import BOTH, FAMILIES, HEARD, LOCAL, REMOTE, counted, in_order, open_socket, packet_lab
from tests.kernel.test_tc_traffic import PORT

ORDERS = list(itertools.permutations(range(3)))
PIECE = 1000
_identifications = itertools.count(7000)


@pytest.fixture(scope="module", params=[False, True], ids=["tc", "xdp"])
def lab(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, LabProxy]]:
    with packet_lab(request.param) as found:
        yield found


def fragments(source: tuple[str, int], destination: tuple[str, int], data: bytes) -> list[bytes]:
    """The fragments of a datagram, PIECE bytes each, as IP packets in order."""
    number = next(_identifications)
    family = IPv6 if ":" in source[0] else IP
    whole = family(bytes(family(src=source[0], dst=destination[0]) / UDP(sport=source[1], dport=destination[1]) / data))
    payload = bytes(whole[UDP])
    found = []
    for at in range(0, len(payload), PIECE):
        more, part = int(at + PIECE < len(payload)), Raw(payload[at : at + PIECE])
        packet: Any
        if family is IP:
            packet = IP(src=source[0], dst=destination[0], id=number, flags=more, frag=at // 8, proto=17) / part
        else:
            header = IPv6ExtHdrFragment(nh=17, id=number, m=more, offset=at // 8)
            packet = IPv6(src=source[0], dst=destination[0]) / header / part
        found.append(bytes(packet))
    return found


def send_raw(namespace: str, destination: str, packets: Sequence[bytes]) -> None:
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with netns(namespace), socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw, in_order():
        for packet in packets:
            raw.sendto(packet, (destination, 0))


def inject(lab: Lab, packets: Sequence[bytes]) -> None:
    """Send from node 2 to node 1 over the overlay, past node 2's own stack, which would put fragments in order."""
    here, there = lab.nodes[1], lab.nodes[0]
    link = json.loads(lab.run(there.name, ["ip", "-j", "link", "show", there.overlay]).stdout)[0]
    kind = 0x86DD if packets[0][0] >> 4 == 6 else 0x0800
    with netns(here.netns), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as raw, in_order():
        for packet in packets:
            raw.sendto(packet, (here.overlay, kind, 0, 0, bytes.fromhex(link["address"].replace(":", ""))))


def ask(lab: Lab, sock: socket.socket, port: int, order: Sequence[int], where: str = "") -> bool:
    """Whether a datagram of three fragments, sent in this order, is answered with itself."""
    own, frontend = (
        sock.getsockname()[:2],
        lab.nodes[0].addresses[Family.IPV6 if ":" in sock.getsockname()[0] else Family.IPV4],
    )
    data = struct.pack("=I", next(_identifications)) + bytes(n % 251 for n in range(2500))
    parts = fragments(own, (frontend, port), data)
    send_raw(lab.place(where or lab.client.name).netns, frontend, [parts[index] for index in order])
    try:
        got, sender = sock.recvfrom(1 << 16)
    except TimeoutError:
        return False
    return got == data and sender[:2] == (frontend, port)


def bound(lab: Lab, family: Family, where: str = "") -> socket.socket:
    sock = open_socket(lab, where or lab.client.name, family)
    sock.bind((lab.place(where or lab.client.name).addresses[family], 0))
    return sock


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("port", [REMOTE, LOCAL], ids=["remote", "local"])
@pytest.mark.parametrize("fresh", [True, False], ids=["each a new flow", "one flow"])
def test_every_order(lab: tuple[Lab, LabProxy], family: Family, port: int, fresh: bool) -> None:
    the_lab, proxy = lab
    with counted(proxy) as reasons, bound(the_lab, family) as kept:
        lost = []
        for order in (*ORDERS, *ORDERS):
            sock = bound(the_lab, family) if fresh else kept
            if not ask(the_lab, sock, port, order):
                lost.append(order)
            if fresh:
                sock.close()
        assert lost == []
    assert reasons.get("tc_ingress:fragment_held", 0) > 0
    assert reasons.get("tc_ingress:new_flow", 0) + reasons.get("tc_ingress:flow", 0) >= 12


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_asks_in_every_order(lab: tuple[Lab, LabProxy], family: Family) -> None:
    with bound(lab[0], family, "pod1-2") as sock:
        assert [order for order in ORDERS if not ask(lab[0], sock, REMOTE, order, "pod1-2")] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backend_stays(lab: tuple[Lab, LabProxy], family: Family) -> None:
    """Of two endpoints one gets all datagrams of a flow, whole or in fragments, from one source port."""
    the_lab = lab[0]
    with bound(the_lab, family) as sock:
        frontend = the_lab.nodes[0].addresses[family]
        before = len(HEARD)
        for order in ORDERS:
            sock.sendto(b"whole", (frontend, BOTH))
            assert sock.recv(100) == b"whole"
            assert ask(the_lab, sock, BOTH, order)
    assert len(set(HEARD[before:])) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_no_services_is_not_touched(lab: tuple[Lab, LabProxy], family: Family) -> None:
    """Pod to pod over the node, and the outside client to a pod: in every order, twice."""
    the_lab = lab[0]
    with bound(the_lab, family, "pod1-1") as sock:
        target = the_lab.place("pod2-2").addresses[family]
        for order in (*ORDERS, *ORDERS):
            data = bytes(n % 241 for n in range(2600))
            parts = fragments(sock.getsockname()[:2], (target, PORT), data)
            send_raw(the_lab.place("pod1-1").netns, target, [parts[index] for index in order])
            assert sock.recvfrom(1 << 16)[0] == data


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("port", [REMOTE, LOCAL], ids=["remote", "local"])
def test_answers_in_every_order(lab: tuple[Lab, LabProxy], family: Family, port: int) -> None:
    """An endpoint whose fragments come out of order, at a port of its own."""
    the_lab = lab[0]
    pod = "pod2-1" if port == REMOTE else "pod1-1"
    orders = iter([*ORDERS, *ORDERS])
    with bound(the_lab, family) as sock:
        frontend = the_lab.nodes[0].addresses[family]
        for order in orders:
            sock.sendto(b"x", (frontend, port))
            sock.recv(100)
            client = HEARD[-1][1]
            data = bytes(n % 239 for n in range(2700))
            own = (the_lab.place(pod).addresses[family], PORT)
            parts = fragments(own, client, data)
            arrange = [parts[index] for index in order]
            if port == REMOTE:
                inject(the_lab, arrange)
            else:
                send_raw(the_lab.place(pod).netns, client[0], arrange)
            got, sender = sock.recvfrom(1 << 16)
            assert (got == data, sender[:2]) == (True, (frontend, port)), order


@pytest.mark.parametrize("family", FAMILIES)
def test_the_nodes_own_sockets_hear_every_order(lab: tuple[Lab, LabProxy], family: Family) -> None:
    """Between addresses whose fragments are held, the first of a datagram may turn out not to be a Service's."""
    the_lab, proxy = lab
    node = the_lab.nodes[0]
    with bound(the_lab, family) as client, bound(the_lab, family, node.name) as server:
        assert ask(the_lab, client, REMOTE, (2, 1, 0))
        for order in ORDERS:
            data = bytes(n % 233 for n in range(2800))
            parts = fragments(client.getsockname()[:2], server.getsockname()[:2], data)
            with counted(proxy) as reasons:
                send_raw(the_lab.client.netns, node.addresses[family], [parts[index] for index in order])
                assert server.recvfrom(1 << 16)[0] == data
            assert reasons.get("tc_ingress:fragment_held", 0) == order.index(0), order


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_of_many_fragments_the_wrong_way_round(lab: tuple[Lab, LabProxy], family: Family) -> None:
    the_lab = lab[0]
    with bound(the_lab, family) as sock:
        frontend = the_lab.nodes[0].addresses[family]
        data = bytes(n % 229 for n in range(60000))
        parts = fragments(sock.getsockname()[:2], (frontend, REMOTE), data)
        send_raw(the_lab.client.netns, frontend, parts[::-1])
        assert sock.recvfrom(1 << 16)[0] == data


def test_what_is_held_is_collected(lab: tuple[Lab, LabProxy]) -> None:
    """A first fragment that never comes costs room for as long as the stack would wait for it."""
    the_lab, proxy = lab
    plane = proxy.nodes[the_lab.nodes[0].name].plane
    assert isinstance(plane, EbpfPlane)
    maps = plane.tables.maps
    with bound(the_lab, Family.IPV4) as sock:
        frontend = the_lab.nodes[0].addresses[Family.IPV4]
        parts = fragments(sock.getsockname()[:2], (frontend, REMOTE), bytes(2500))
        before = {key for key, _ in maps.items("held")}
        send_raw(the_lab.client.netns, frontend, parts[1:])
        until(lambda: len({key for key, _ in maps.items("held")} - before) == 2, "both are held")
        kept = [(key, value) for key, value in maps.items("held") if key not in before]
        at = fields_of("held")["last_ns"]
        for key, value in kept:
            old = struct.unpack_from("=Q", value, at)[0] - 31 * 10**9
            maps.put("held", key, value[:at] + struct.pack("=Q", old) + value[at + 8 :])
        sweep(maps)
        assert not {key for key, _ in kept} & {key for key, _ in maps.items("held")}
