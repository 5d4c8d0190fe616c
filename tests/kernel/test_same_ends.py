"""One client, one port, two connections to one endpoint: through a frontend and straight to it, or through two
frontends. On the way from and to the endpoint they would have the same ends. Real packets, from pods at tc, from
outside by XDP, and all of them past the stack."""

import itertools
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dataplane.model.net import Family
from tests.kernel.host_lab import CLUSTER_IP, FAMILIES, LOCAL, PORT, HostLab, ask, host_lab

WAYS = ("a pod of this node", "a pod of another node", "from outside")
_PORTS = itertools.count(20000)
_SOON = 0.8
"""Seconds: less than TCP waits before it sends a SYN again."""
_TCP_INFO_SIZE, _LAST_ACK_RECV_AT = 104, 56  # struct tcp_info, linux/tcp.h


@pytest.fixture(scope="module", params=["tc and xdp", "past the stack"])
def lab(request: pytest.FixtureRequest) -> Iterator[HostLab]:
    past_stack = request.param == "past the stack"
    with host_lab(past_stack=past_stack, xdp=not past_stack) as made:
        yield made


class Pair:
    """A client's place and port, a frontend and the only endpoint behind it."""

    def __init__(self, lab: HostLab, way: str, family: Family, port: int = 0) -> None:
        self.lab, self.family, self.port, self.began = lab, family, port or next(_PORTS), 0.0
        self.place = "client" if way == WAYS[2] else "pod1-1"
        name, self.server = ("remote", "pod2-1") if way == WAYS[1] else ("local", "pod1-2")
        self.straight = (lab.address(self.server, family), PORT)
        outside = (lab.node.addresses[family], LOCAL)
        self.through = outside if way == WAYS[2] else (CLUSTER_IP[name][family], 80)

    def connect(self, to: tuple[str, int]) -> socket.socket:
        sock = self.lab.open(self.place, self.family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.lab.address(self.place, self.family), self.port))
        self.began = time.monotonic()
        sock.connect(to)
        return sock

    def waited(self, sock: socket.socket) -> float:
        """Seconds from the latest connect(2), which made this connection, to the answer to its SYN, by the kernel's
        clock: on a busy machine this process may hear of it much later. Before anything else is sent on it."""
        now, info = time.monotonic(), sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        (milliseconds,) = struct.unpack_from("=I", info, _LAST_ACK_RECV_AT)
        return now - float(milliseconds) / 1000 - self.began

    def check(self, *connections: socket.socket) -> None:
        """Each reaches the endpoint, which sees the client's own address."""
        for sock in connections:
            assert ask(sock) == (self.server, self.lab.address(self.place, self.family))


def _reset_at_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _everywhere(lab: HostLab, work: Callable[[Pair], None]) -> None:
    pairs = [Pair(lab, way, family) for way in WAYS for family in FAMILIES]
    with ThreadPoolExecutor(len(pairs)) as pool:
        for done in [pool.submit(work, pair) for pair in pairs]:
            done.result()


@pytest.mark.parametrize("frontend_first", [True, False], ids=["frontend first", "endpoint first"])
def test_both_live(lab: HostLab, frontend_first: bool) -> None:
    """Neither connection ends the other or waits for it, and both go on."""

    def work(pair: Pair) -> None:
        to = (pair.through, pair.straight) if frontend_first else (pair.straight, pair.through)
        with pair.connect(to[0]) as first:
            pair.check(first)
            with pair.connect(to[1]) as second:
                assert pair.waited(second) < _SOON
                pair.check(second, first, second, first)

    _everywhere(lab, work)


@pytest.mark.parametrize("frontend_first", [True, False], ids=["frontend first", "endpoint first"])
@pytest.mark.parametrize("end", ["half closed", "closed", "reset"])
def test_the_first_one_ends(lab: HostLab, frontend_first: bool, end: str) -> None:
    """The second one begins while the first one's last segments are under way. What an endpoint's kernel gets for a
    socket that its process is just closing, it looks at afterwards, and drops a SYN then without a word: that may be
    one of all SYNs from a port of which only the endpoint knows that it is taken."""
    slow: list[tuple[str, Family, float]] = []

    def work(pair: Pair) -> None:
        to = (pair.through, pair.straight) if frontend_first else (pair.straight, pair.through)
        for _ in range(3):
            with pair.connect(to[0]) as first:
                pair.check(first)
                if end == "half closed":
                    first.shutdown(socket.SHUT_WR)
                elif end == "reset":
                    _reset_at_close(first)
                if end != "half closed":
                    first.close()
                with pair.connect(to[1]) as second:
                    if (waited := pair.waited(second)) > _SOON:
                        slow.append((pair.place, pair.family, waited))
                    pair.check(second)
            pair.port = next(_PORTS)

    _everywhere(lab, work)
    assert len(slow) <= (0 if frontend_first else 1), slow


@pytest.mark.parametrize("family", FAMILIES)
def test_two_frontends(lab: HostLab, family: Family) -> None:
    """And straight to the endpoint besides: three connections from one port."""
    pair = Pair(lab, WAYS[0], family)
    node_port = (lab.node.addresses[family], LOCAL)
    with pair.connect(pair.through) as first, pair.connect(node_port) as second, pair.connect(pair.straight) as third:
        pair.check(first)
        assert ask(second)[0] == pair.server
        pair.check(third, first)
        assert ask(second)[0] == pair.server


@pytest.mark.parametrize("family", FAMILIES)
def test_a_privileged_port_stays_one(lab: HostLab, family: Family) -> None:
    """Some endpoints ask for one."""
    for first_to, second_to in (("through", "straight"), ("straight", "through")):
        pair = Pair(lab, WAYS[0], family, 700 + next(_PORTS) % 100)
        with pair.connect(getattr(pair, first_to)) as first, pair.connect(getattr(pair, second_to)) as second:
            pair.check(first, second)
            second.send(b"?\n")
            seen = int(json.loads(second.recv(4096))["client"].rpartition(":")[2])
            assert seen < 1024
            assert seen != pair.port


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_connection_again(lab: HostLab, family: Family) -> None:
    """Straight to the endpoint beside a living flow, over and over from one port: each is a connection of its own."""
    pair = Pair(lab, WAYS[0], family)
    with pair.connect(pair.through) as held:
        for _ in range(5):
            with pair.connect(pair.straight) as sock:
                pair.check(sock, held)
                _reset_at_close(sock)  # so that the client's own stack has its port free
    with pair.connect(pair.straight) as sock:
        pair.check(sock)
