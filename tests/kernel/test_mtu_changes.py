"""The MTU of a way changes while connections carry bytes over it: they go on, and whoever sends more than fits is told
at once how much does, and of nothing any more once it has grown again."""

import contextlib
import errno
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.model.net import Family
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import unpack
from dataplane.planes.ebpf.maps.pins import default_instance
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.views.records import open_instance
from dataplane.policy.forwarding import Forwarding
from tests.kernel.forwarding_lab import NODE_PORT, PORT, ForwardingLab, forwarding_lab
from tests.kernel.test_tc_traffic import ip_route, receive

FAMILIES = (Family.IPV4, Family.IPV6)
HEADERS = {Family.IPV4: 28, Family.IPV6: 48}
OVERHEAD = {Family.IPV4: 50, Family.IPV6: 70}
BLOCK = 64 << 10
HOP_SECONDS = 0.11
"""After this XDP has asked routes again (HOP_NS of bpf/ways.h)."""
OPTIONS = {Family.IPV4: (socket.IPPROTO_IP, 10, 11), Family.IPV6: (socket.IPPROTO_IPV6, 23, 25)}
"""Level, IP_MTU_DISCOVER and IP_RECVERR, and the same of IPv6 (linux/in.h, in6.h)."""
PROBE = 3
"""IP_PMTUDISC_PROBE and IPV6_PMTUDISC_PROBE of linux/in.h and in6.h: with DF, whatever is known of the way's MTU."""


def echo_all(listener: socket.socket) -> None:
    """Send back what comes on every connection, until the socket is closed."""

    def echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(BLOCK):
                connection.sendall(data)

    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()


def echo_datagrams(sock: socket.socket) -> None:
    """The same, of datagrams."""
    with contextlib.suppress(OSError):
        while True:
            data, client = sock.recvfrom(65536)
            if client is None:  # shut down
                return
            with contextlib.suppress(OSError):  # too long by now; the client misses it
                sock.sendto(data, client)


@contextmanager
def servers(namespace: str) -> Iterator[None]:
    """Echo servers for TCP and UDP in a pod."""
    socks = []
    for kind, work in ((socket.SOCK_STREAM, echo_all), (socket.SOCK_DGRAM, echo_datagrams)):
        with netns(namespace):
            sock = socket.socket(socket.AF_INET6, kind)
        sock.bind(("::", PORT))
        if kind is socket.SOCK_STREAM:
            sock.listen()
        threading.Thread(target=work, args=(sock,), daemon=True).start()
        socks.append(sock)
    try:
        yield
    finally:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Stream:
    """A TCP connection whose blocks go to the pod and come back, all the time. blocks: that came back as they were
    sent; broken: why there are no more."""

    def __init__(self, sock: socket.socket) -> None:
        self.blocks, self.broken, self._sock, self._end = 0, "", sock, False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._end:
                block = self.blocks.to_bytes(8, "big") * (BLOCK // 8)
                self._sock.sendall(block)
                assert receive(self._sock, BLOCK) == block
                self.blocks += 1
        except (OSError, EOFError, AssertionError) as error:
            self.broken = f"{type(error).__name__} {error}"

    def close(self) -> None:
        self._end = True
        self._thread.join(60)
        self._sock.close()


class Datagrams:
    """A UDP socket that sends packets of any size, whatever its host knows of the way, and hears of errors."""

    def __init__(self, sock: socket.socket, family: Family) -> None:
        self._sock, self._family, self._numbers = sock, family, itertools.count(1)
        level, mtu_discover, errors = OPTIONS[family]
        sock.setsockopt(level, mtu_discover, PROBE)
        sock.setsockopt(level, errors, 1)

    def send(self, size: int) -> tuple[str, int]:
        """Send one packet of this size, with its headers. Returns "through" and that size when it came back, or "too
        big" and the MTU that the error names."""
        data = next(self._numbers).to_bytes(8, "big") * 1000
        data = data[: size - HEADERS[self._family]]
        self._sock.send(data)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                if self._sock.recv(65536) == data:
                    return "through", size
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                return "too big", self._mtu()
        raise TimeoutError(f"no word of a packet of {size} bytes")

    def _mtu(self) -> int:
        _, ancillary, _, _ = self._sock.recvmsg(1, 512, socket.MSG_ERRQUEUE)
        [(_, _, raw)] = ancillary
        number, _, _, _, _, mtu, _ = struct.unpack_from("=IBBBBII", raw)  # struct sock_extended_err
        assert number == errno.EMSGSIZE
        return int(mtu)


class Bench:
    """The lab with streams and datagrams of the client to the Service under way, in both families."""

    def __init__(self, made: ForwardingLab, stack: ExitStack) -> None:
        self.made, self._lab = made, made.lab
        self.streams = [self._stream(family, stack) for family in FAMILIES for _ in range(2)]
        self.datagrams = {}
        for family in FAMILIES:
            sock = stack.enter_context(self._socket(family, socket.SOCK_DGRAM))
            self.datagrams[family] = Datagrams(sock, family)
            assert self.datagrams[family].send(500) == ("through", 500)

    def _socket(self, family: Family, kind: socket.SocketKind) -> socket.socket:
        with netns(self._lab.client.netns):
            sock = socket.socket(family.socket_family, kind)
        sock.settimeout(30)
        sock.connect((self._lab.nodes[0].addresses[family], NODE_PORT))
        return sock

    def _stream(self, family: Family, stack: ExitStack) -> Stream:
        stream = Stream(self._socket(family, socket.SOCK_STREAM))
        stack.callback(stream.close)
        return stream

    def goes_on(self) -> None:
        """Every connection carries more, and none has ended."""
        before = [stream.blocks for stream in self.streams]
        until = time.monotonic() + 30
        while any(stream.blocks < was + 4 for stream, was in zip(self.streams, before, strict=True)):
            assert not any(stream.broken for stream in self.streams), [stream.broken for stream in self.streams]
            assert time.monotonic() < until, (before, [stream.blocks for stream in self.streams])
            time.sleep(0.005)

    def says(self, size: int, wanted: Callable[[Family], tuple[str, int]]) -> None:
        """A packet of this size meets this in either family."""
        assert {f: self.datagrams[f].send(size) for f in FAMILIES} == {f: wanted(f) for f in FAMILIES}

    def set_mtu(self, mtu: int, *devices: tuple[str, str]) -> None:
        """Of devices, by place and name."""
        for place, device in devices:
            self._lab.run(place, ["ip", "link", "set", device, "mtu", str(mtu)])
        time.sleep(HOP_SECONDS)

    def hears(self, mtu: int) -> None:
        """Wait until node 2's host routing has heard that its pod's device has this MTU."""
        node = self._lab.nodes[1]
        addresses = [address_bytes(node.pods[0].addresses[family]) for family in FAMILIES]
        with netns(node.netns):
            maps = open_instance(default_instance())
        assert maps is not None
        until = time.monotonic() + 20
        with maps:
            while any(unpack("pod", maps.get("pods", each) or b"")["mtu"] != mtu for each in addresses):
                assert time.monotonic() < until, f"the map has another MTU than {mtu}"
                time.sleep(0.01)

    def past_stack(self) -> int:
        """Packets that node 2 handed to its pod past its stack."""
        plane = self.made.proxy.nodes["node2"].plane
        assert isinstance(plane, EbpfPlane)
        assert plane.host_routing is not None
        return plane.host_routing.counts()["into_pod"]

    @contextmanager
    def routes_of(self, mtu: int) -> Iterator[None]:
        """Routes between nodes 1 and 2 have this MTU meanwhile, those to the other's pods too."""
        node1, node2 = self._lab.nodes[:2]
        ends = [(here, there, f) for here, there in ((node1, node2), (node2, node1)) for f in FAMILIES]
        for here, there, family in ends:
            ip, to, lock = ip_route(family), there.addresses[family], ["mtu", "lock", str(mtu)]
            self._lab.run(here.name, [*ip, "add", to, "dev", "eth0", *lock])
            self._lab.run(here.name, [*ip, "change", there.pod_cidrs[family], "via", to, "dev", "eth0", *lock])
        time.sleep(HOP_SECONDS)
        yield
        for here, there, family in ends:
            ip, to = ip_route(family), there.addresses[family]
            self._lab.run(here.name, [*ip, "del", to, "dev", "eth0"])
            self._lab.run(here.name, [*ip, "change", there.pod_cidrs[family], "via", to, "dev", "eth0"])
        time.sleep(HOP_SECONDS)


@pytest.fixture(scope="module", params=[False, True], ids=["tc", "xdp"])
def made(request: pytest.FixtureRequest) -> Iterator[ForwardingLab]:
    """The lab with host routing and the one endpoint on node 2, whose node has looked at it."""
    with forwarding_lab("mtus", only="pod2-1", xdp=request.param, past_stack=True, nodes=2) as lab:
        pod = lab.lab.nodes[1].pods[0]
        with servers(pod.netns), lab.watching():
            for family in FAMILIES:
                with netns(lab.lab.nodes[1].netns), socket.socket(family.socket_family, socket.SOCK_DGRAM) as sock:
                    sock.connect((pod.addresses[family], PORT))
                    sock.send(b"?")
                    sock.settimeout(10)
                    assert sock.recv(10) == b"?"
            yield lab


@pytest.fixture
def bench(made: ForwardingLab, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Transfers by the way that the test is for."""
    made.use(request.param)
    made.forget_flows()
    with ExitStack() as stack:
        bench = Bench(made, stack)
        bench.goes_on()
        yield bench
    for place in (made.lab.client.name, "pod2-1"):
        for family in FAMILIES:
            made.lab.run(place, [*ip_route(family), "flush", "cache"])


each_way = pytest.mark.parametrize("bench", list(Forwarding), indirect=True, ids=[way.value for way in Forwarding])


def added(way: Forwarding, family: Family) -> int:
    """Bytes that a packet between the nodes is longer."""
    return 0 if way is Forwarding.SNAT else OVERHEAD[family]


@each_way
def test_the_way_between_nodes(bench: Bench, request: pytest.FixtureRequest) -> None:
    """Routes between the nodes get narrower than devices are, and wider again."""
    way = request.node.callspec.params["bench"]
    full = {family: 1500 - added(way, family) for family in FAMILIES}
    bench.says(1500, lambda f: ("through", 1500) if way is Forwarding.SNAT else ("too big", full[f]))
    with bench.routes_of(1400):
        bench.says(1420, lambda f: ("too big", 1400 - added(way, f)))
        bench.says(1300, lambda _: ("through", 1300))
        bench.goes_on()
    bench.says(1420, lambda _: ("through", 1420))
    bench.goes_on()


@each_way
def test_the_uplinks(bench: Bench, request: pytest.FixtureRequest) -> None:
    """The whole network of the nodes gets narrower, and wider again: both ends of each link, as they must."""
    way = request.node.callspec.params["bench"]
    nodes = [node.name for node in bench.made.lab.nodes]
    links = [("net", name) for name in ("br0", *nodes)] + [(name, "eth0") for name in nodes]
    bench.set_mtu(1400, *links)
    try:
        bench.says(1420, lambda _: ("too big", 1400))
        bench.says(1400, lambda f: ("too big", 1400 - added(way, f)) if added(way, f) else ("through", 1400))
        bench.says(1330, lambda _: ("through", 1330))
        bench.goes_on()
    finally:
        bench.set_mtu(1500, *reversed(links))
    bench.says(1430, lambda _: ("through", 1430))
    bench.goes_on()


@each_way
def test_the_pods_device(bench: Bench, request: pytest.FixtureRequest) -> None:
    """The pod's device gets narrower, at both ends, and wider again; its node's host routing hears of it."""
    node = bench.made.lab.nodes[1]
    ends = [(node.name, node.pods[0].device), ("pod2-1", "eth0")]
    before = bench.past_stack()
    bench.goes_on()
    if request.node.callspec.params["bench"] is Forwarding.SNAT:  # what comes in a tunnel is the stack's
        assert bench.past_stack() > before + 100
    bench.set_mtu(1300, *ends)
    try:
        bench.hears(1300)
        bench.says(1400, lambda _: ("too big", 1300))
        bench.says(1300, lambda _: ("through", 1300))
        bench.goes_on()
    finally:
        bench.set_mtu(1500, *ends)
    bench.hears(1500)
    bench.says(1400, lambda _: ("through", 1400))
    bench.goes_on()
