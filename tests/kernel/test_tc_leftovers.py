"""Real connections leave no flow behind once both ends have closed: bulk, in aggregates and with scaled windows, over
losses, and with resets while data is on its way."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.spec import LabSpec, Node
from dataplane.model.net import Family
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.flows.entries import RST, flow_flags, state
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.ebpf_lab import SMALL
from tests.kernel.test_tc_traffic import FAMILIES, MANIFEST, PLACES, PORT, client, receive

BYTES = 24 << 20
_RESET = struct.pack("=ii", 1, 0)  # SO_LINGER: close with an RST


class Endpoint:
    """Sends what it is asked for by the first eight bytes, and closes first where the ninth says so."""

    def __init__(self, namespaces: list[str]) -> None:
        self._listeners = []
        for namespace in namespaces:
            with netns(namespace):
                listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            asked = receive(connection, 9)
            connection.sendall(bytes(int.from_bytes(asked[:8], "big")))
            if asked[8]:
                return
            while connection.recv(1 << 20):
                pass


class Site:
    """A lab with the programs on its nodes."""

    def __init__(self, lab: Lab, proxy: LabProxy) -> None:
        self.lab, self._proxy = lab, proxy

    def left(self) -> list[str]:
        """States of the TCP flows on all nodes, apart from ports that rest, and from connections that were reset, which
        the collector takes within seconds."""
        found = []
        for node in self._proxy.nodes.values():
            assert isinstance(node.plane, EbpfPlane)
            found += [flow_flags(value) for _, value in node.plane.tables.maps.items("tcp_flows")]
        states = [state(socket.IPPROTO_TCP, flags) for flags in found if not flags & RST]
        return [name for name in states if name != "resting"]

    def check_empty(self) -> None:
        """The last segments may still be on their way."""
        end = time.monotonic() + 60
        while self.left() and time.monotonic() < end:
            time.sleep(0.05)
        assert self.left() == []


@pytest.fixture(scope="module", params=[False, True], ids=["tc", "xdp"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    def make(_lab: Lab, _node: Node) -> Plane:
        return EbpfPlane(NftablesPlane(), [PacketHook(xdp=request.param)], SMALL)

    spec = LabSpec(name=f"left{os.getpid()}", nodes=2, pods=1, ipv6=True)
    with Lab.up(spec) as lab, LabProxy(lab, "ebpf", make) as proxy:
        workloads = {"remote": pods(lab.topology, "pod2-1"), "local": pods(lab.topology, "pod1-1")}
        proxy.update(cluster_objects(MANIFEST.encode(), workloads, spec.families, "manifest").objects)
        endpoint = Endpoint([pod.netns for pod in lab.pods])
        try:
            yield Site(lab, proxy)
        finally:
            endpoint.close()


def ask(size: int, closes: bool) -> bytes:
    return size.to_bytes(8, "big") + bytes([closes])


@pytest.mark.parametrize("endpoint_closes", [False, True], ids=["client closes", "endpoint closes"])
@FAMILIES
@PLACES
def test_bulk(site: Site, family: Family, port: int, endpoint_closes: bool) -> None:
    for _ in range(2):
        with client(site.lab, family, socket.SOCK_STREAM, port) as sock:
            sock.sendall(ask(BYTES, endpoint_closes))
            receive(sock, BYTES)
            if endpoint_closes:
                assert sock.recv(1) == b""
    site.check_empty()


@FAMILIES
@PLACES
def test_bulk_over_losses(site: Site, family: Family, port: int) -> None:
    """One packet in 50 is lost between client and node, one way or the other, ends of connections included."""
    rules = "table inet loss { chain lose { type filter hook forward priority 0; numgen random mod 50 0 drop; }; }"
    site.lab.run("net", ["nft", rules])
    try:
        for endpoint_closes in (False, True) * 4:
            with client(site.lab, family, socket.SOCK_STREAM, port) as sock:
                sock.sendall(ask(200_000, endpoint_closes))
                receive(sock, 200_000)
        site.check_empty()
    finally:
        site.lab.run("net", ["nft", "delete table inet loss"])


@pytest.mark.parametrize("after", [0, 1 << 16, 8 << 20])
@FAMILIES
@PLACES
def test_a_client_that_resets_while_data_comes(site: Site, family: Family, port: int, after: int) -> None:
    sock = client(site.lab, family, socket.SOCK_STREAM, port)
    sock.sendall(ask(BYTES, False))
    receive(sock, after)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
    site.check_empty()


@FAMILIES
@PLACES
def test_a_client_that_resets_while_it_sends(site: Site, family: Family, port: int) -> None:
    sock = client(site.lab, family, socket.SOCK_STREAM, port)
    sock.sendall(ask(0, False))
    for _ in range(32):
        sock.sendall(bytes(1 << 18))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
    site.check_empty()
