"""Real traffic of an outside client through tc and XDP: much of it, in big datagrams, over hops too narrow for it."""

import contextlib
import errno
import hashlib
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.spec import LabSpec, Node, PodLink, Routing
from dataplane.model.net import Family
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.ebpf_lab import SMALL

PORT, NODE_PORT, BYTES = 8080, 30080, 4 << 20
MANIFEST = "".join(
    f"""---
kind: Service
apiVersion: v1
metadata: {{name: {name}}}
spec:
  type: NodePort
  selector: {{app: {name}}}
  ports:
  - {{name: tcp, port: 80, targetPort: {PORT}, nodePort: {port}}}
  - {{name: udp, protocol: UDP, port: 80, targetPort: {PORT}, nodePort: {port}}}
"""
    for name, port in (("remote", NODE_PORT), ("local", NODE_PORT + 1))
)
SHAPES = [
    pytest.param((routing, link, xdp), id=f"{routing}-{'xdp' if xdp else 'tc'}")
    for (routing, link), xdp in itertools.product(
        ((Routing.DIRECT, PodLink.VETH), (Routing.VXLAN, PodLink.BRIDGE)), (False, True)
    )
]


class Server:
    """In each pod: TCP reads BYTES, answers with their digest and as many bytes; UDP answers what it gets."""

    def __init__(self, namespaces: list[str]) -> None:
        self._servers: list[socket.socket] = []
        for namespace in namespaces:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with netns(namespace):
                    sock = socket.socket(socket.AF_INET6, kind)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("::", PORT))
                self._servers.append(sock)
                work = self._accept if kind is socket.SOCK_STREAM else self._answer
                threading.Thread(target=work, args=(sock,), daemon=True).start()

    def close(self) -> None:
        for sock in self._servers:
            with contextlib.suppress(OSError):  # a UDP socket is not connected, but its reader wakes all the same
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self, sock: socket.socket) -> None:
        sock.listen()
        while sock.fileno() >= 0:
            try:
                connection, _ = sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(EOFError, ConnectionError):  # the client gave up; it tells why
            got = receive(connection, BYTES)
            connection.sendall(hashlib.sha256(got).digest() + got)

    def _answer(self, sock: socket.socket) -> None:
        while True:
            try:
                data, client = sock.recvfrom(65536)
            except OSError:
                return
            if not data:
                return
            sock.sendto(data, client)


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes. Raises EOFError."""
    parts: list[bytes] = []
    while size:
        part = sock.recv(min(size, 1 << 20))
        if not part:
            raise EOFError(f"{size} bytes are missing")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


@pytest.fixture(scope="module", params=SHAPES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    routing, link, xdp = request.param

    def make(lab: Lab, node: Node) -> Plane:
        return EbpfPlane(NftablesPlane(), [PacketHook(xdp=xdp)], SMALL)

    spec = LabSpec(name=f"traffic{os.getpid()}-{routing}", nodes=2, pods=1, routing=routing, pod_link=link, ipv6=True)
    with Lab.up(spec) as lab, LabProxy(lab, "ebpf", make) as proxy:
        workloads = {"remote": pods(lab.topology, "pod2-1"), "local": pods(lab.topology, "pod1-1")}
        decoded = cluster_objects(MANIFEST.encode(), workloads, spec.families, "manifest")
        proxy.update(decoded.objects)
        server = Server([pod.netns for pod in lab.pods])
        try:
            yield lab
        finally:
            server.close()


def client(lab: Lab, family: Family, kind: socket.SocketKind, port: int) -> socket.socket:
    """A socket of the outside client, connected to the node port of node 1."""
    with netns(lab.client.netns):
        sock = socket.socket(family.socket_family, kind)
    sock.settimeout(60)
    sock.connect((lab.nodes[0].addresses[family], port))
    return sock


def transfer(lab: Lab, family: Family, port: int) -> None:
    sent = hashlib.sha256(str((family, port)).encode()).digest() * (BYTES // 32)
    with client(lab, family, socket.SOCK_STREAM, port) as sock:
        sock.sendall(sent)
        assert receive(sock, 32) == hashlib.sha256(sent).digest()
        assert receive(sock, BYTES) == sent


PLACES = pytest.mark.parametrize("port", [NODE_PORT, NODE_PORT + 1], ids=["remote", "local"])
FAMILIES = pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])


@FAMILIES
@PLACES
def test_bulk(lab: Lab, family: Family, port: int) -> None:
    transfer(lab, family, port)


@FAMILIES
@PLACES
@pytest.mark.parametrize("size", [1, 1400, 4000, 20000])
def test_datagrams(lab: Lab, family: Family, port: int, size: int) -> None:
    with client(lab, family, socket.SOCK_DGRAM, port) as sock:
        # Where a tunnel is narrower than what the client knows, it is told by the first one's loss.
        narrow = size > 1400 and lab.spec.routing is Routing.VXLAN
        if narrow:
            sock.settimeout(2)
            with contextlib.suppress(OSError):
                sock.send(b"?" * size)
                sock.recv(65536)
        sock.settimeout(60)
        for number in range(5):
            sent = bytes([number]) * size
            told(sock.send, narrow)(sent)
            while (got := told(sock.recv, narrow)(65536)) == b"?" * size:  # which was late, not lost
                continue
            assert got == sent


def told(call: Callable[[Any], Any], narrow: bool) -> Callable[[Any], Any]:
    """The call, again when it tells that something sent earlier was too long: each fragment of that may be told of."""

    def called(argument: Any) -> Any:
        for _ in range(20 if narrow else 0):
            try:
                return call(argument)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
        return call(argument)

    return called


@FAMILIES
@PLACES
@pytest.mark.parametrize("narrow", ["towards the client", "towards the backend"])
def test_path_mtu(lab: Lab, family: Family, port: int, narrow: str) -> None:
    """A hop passes 1300 bytes only, and says so: to the backend about its answers, to the client about its packets."""
    node = lab.nodes[1 if port == NODE_PORT else 0]
    where, device = (
        ("net", "client") if narrow == "towards the client" else (node.name, node.bridge or node.pods[0].device)
    )
    learner = ("pod2-1" if port == NODE_PORT else "pod1-1") if narrow == "towards the client" else lab.client.name
    with narrowed(lab, where, device, family):
        transfer(lab, family, port)
        assert "mtu 1300" in lab.run(learner, [*ip_route(family), "show", "cache"]).stdout


def ip_route(family: Family) -> list[str]:
    return ["ip", "-6" if family is Family.IPV6 else "-4", "route"]


@contextlib.contextmanager
def narrowed(lab: Lab, where: str, device: str, family: Family) -> Iterator[None]:
    """Routes over a device of a router get an MTU of 1300. Not the device itself: a veth with a smaller MTU than its
    peer's silently drops what the peer sends, unless that happens to be one big GSO packet."""
    ip = ip_route(family)
    routes = lab.run(where, [*ip, "show", "dev", device]).stdout.splitlines()
    for route in routes:
        lab.run(where, [*ip, "change", *route.split(), "dev", device, "mtu", "1300"])
    try:
        yield
    finally:
        for route in routes:
            lab.run(where, [*ip, "change", *route.split(), "dev", device])
        for place in (lab.client.name, *(pod.name for pod in lab.pods)):
            lab.run(place, [*ip, "flush", "cache"])
