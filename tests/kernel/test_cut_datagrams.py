"""Datagrams that are bigger than their way out: cut where the sender lets routers do so, refused by ICMP otherwise."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.model.net import Family
from tests.kernel.packet_lab import BOTH, FAMILIES, LOCAL, REMOTE, counted, open_socket, packet_lab

_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _DONT, _PROBE = 10, 23, 0, 3
SIZES = (1, 100, 1392, 1393, 1400, 1430, 1471, 1472, 1473, 3000, 9000, 20000, 65000)


@pytest.fixture(scope="module", params=[False, True], ids=["tc", "xdp"])
def lab(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, LabProxy]]:
    with packet_lab(request.param) as found:
        yield found


def asker(lab: Lab, family: Family, port: int, discover: int) -> socket.socket:
    """A socket of the outside client to a node port of node 1. discover: IP_PMTUDISC_*."""
    made = open_socket(lab, lab.client.name, family)
    if family is Family.IPV4:
        made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, discover)
    else:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, discover)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    made.connect((lab.nodes[0].addresses[family], port))
    return made


def answered(sock: socket.socket, size: int) -> bool:
    sent = bytes(n * 7 % 251 for n in range(size))
    sock.send(sent)
    with contextlib.suppress(TimeoutError):
        return sock.recv(1 << 16) == sent
    return False


@pytest.mark.parametrize("port", [REMOTE, LOCAL, BOTH], ids=["remote", "local", "both"])
@pytest.mark.parametrize("order", [1, -1], ids=["small first", "big first"])
def test_no_size_is_lost(lab: tuple[Lab, LabProxy], port: int, order: int) -> None:
    """IPv4 with DF clear."""
    with counted(lab[1]) as reasons, asker(lab[0], Family.IPV4, port, _DONT) as sock:
        assert [size for size in SIZES[::order] if not answered(sock, size)] == []
    if port == REMOTE:
        assert reasons.get("tc_ingress:cut", 0) > 50
        assert not [name for name in reasons if name.endswith((":no_way_out", ":rewrite_failed"))]


@pytest.mark.parametrize("size", SIZES)
def test_each_size_as_the_first(lab: tuple[Lab, LabProxy], size: int) -> None:
    with asker(lab[0], Family.IPV4, REMOTE, _DONT) as sock:
        assert [answered(sock, size) for _ in range(2)] == [True, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_who_forbids_cutting_is_told(lab: tuple[Lab, LabProxy], family: Family) -> None:
    """With DF set, and in IPv6, where routers do not cut."""
    overhead = 28 if family is Family.IPV4 else 48
    with asker(lab[0], family, REMOTE, _PROBE) as sock:
        assert answered(sock, 1450 - overhead - 20)
        sock.send(bytes(1500 - overhead))
        with pytest.raises(OSError, match=r"Message too long|Errno 90"):
            sock.recv(1 << 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_size_arrives_once_the_sender_knows(lab: tuple[Lab, LabProxy], family: Family) -> None:
    with asker(lab[0], family, REMOTE, _DONT if family is Family.IPV4 else 1) as sock:
        answered(sock, 3000)  # by its loss a sender of IPv6 is told
        assert [size for size in SIZES if not answered(sock, size)] == []


def test_answers_are_cut_for_a_narrow_way_back(lab: tuple[Lab, LabProxy]) -> None:
    """The way from node 1 back to the client is narrower than that from the endpoint."""
    node = lab[0].nodes[0].name
    default = lab[0].run(node, ["ip", "-4", "route", "show", "default"]).stdout.split()
    lab[0].run(node, ["ip", "route", "change", *default, "mtu", "lock", "1000"])
    try:
        with asker(lab[0], Family.IPV4, REMOTE, _DONT) as sock, counted(lab[1]) as reasons:
            assert [size for size in (1, 972, 973, 1300, 1380, 3000) if not answered(sock, size)] == []
    finally:
        lab[0].run(node, ["ip", "route", "change", *default])
    assert reasons.get("tc_ingress:cut", 0) >= 4


@pytest.mark.parametrize(("port", "size"), [(REMOTE, 1450), (REMOTE, 9000), (LOCAL, 9000)])
def test_no_room_for_fragments_loses_none(port: int, size: int) -> None:
    """The flow goes to the slow path, before anything of the datagram was sent on."""
    with packet_lab(False, fragments=2) as (lab, proxy), counted(proxy) as reasons:
        for _ in range(2):
            with asker(lab, Family.IPV4, port, _DONT) as sock:
                answered(sock, 1)
                assert [answered(sock, size) for _ in range(4)] == [True] * 4
    assert reasons.get("tc_ingress:left_flow", 0) >= 2
    assert reasons.get("tc_ingress:fragments_full", 0) >= 1
