"""`--flowtable` on a kernel that has flowtables: real connections leave the forward hook and come back to it.

No part of the usual tests, since the kernel that they run on may have none: `tests/kernels --steps flowtable`.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink.conntrack import forget_all
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.planes.conntrack import clean_stale_udp
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules.flowtable import deletes_offloaded
from dataplane.policy.endpoints import Backend
from tests.kernel.ebpf_lab import SMALL
from tests.kernel.nftables_listing import nft
from tests.kernel.nftables_net import NODE_CONFIG, PODS, VIP, Network, entry, ip, network, plan_of, pods

AFTER = 10
STREAM_PORT = 9090
FAST = msgspec.structs.replace(NODE_CONFIG, flowtable=AFTER)
VERSIONS = pytest.mark.parametrize("version", [4, 6])
UDP_TOO = deletes_offloaded(os.uname().release)
_COUNTING = (
    "table inet watch { chain forward { type filter hook forward priority 0; meta l4proto { tcp, udp } counter; }; }"
)


@pytest.fixture
def net(make_namespace: Callable[[str], str]) -> Iterator[Network]:
    with network(make_namespace) as made:
        yield made


@pytest.fixture
def plane(net: Network) -> Iterator[NftablesPlane]:
    made = in_netns(net.node, lambda: NftablesPlane(watch=True))
    yield made
    made.cleanup()


def forwarded(node: str) -> int:
    """Packets that a foreign forward chain has seen."""
    words = nft(node, "list", "chain", "inet", "watch", "forward").split()
    return int(words[words.index("packets") + 1])


def echo(pod: str, version: int) -> socket.socket:
    """A server that sends everything back, on STREAM_PORT of a pod."""
    server = in_netns(pod, socket.socket, Family(version).socket_family, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("::" if version == 6 else "0.0.0.0", STREAM_PORT))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(ConnectionResetError):  # by a client whose connection was forgotten
            while data := connection.recv(100):
                connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return server


def stream(net: Network, version: int) -> socket.socket:
    """A client's connection through the VIP."""
    sock = in_netns(net.client, socket.socket, Family(version).socket_family, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect((VIP[version], 80))
    return sock


def talk(sock: socket.socket, times: int) -> None:
    for number in range(times):
        sock.sendall(b"%d" % number)
        assert sock.recv(100)


def to_stream(version: int) -> tuple[Backend, ...]:
    return (Backend(PODS[version][0], STREAM_PORT, True),)


@VERSIONS
def test_a_connection_leaves_the_forward_hook_and_is_still_translated(
    net: Network, plane: NftablesPlane, version: int
) -> None:
    plane.load(plan_of(entry(version, to_stream(version)), node=FAST))
    nft(net.node, _COUNTING)
    with echo(net.pods[0], version), stream(net, version) as client:
        talk(client, AFTER)
        before = forwarded(net.node)
        talk(client, 200)
        assert forwarded(net.node) - before < 40, "of 400 and more"
        assert "[OFFLOAD]" in connections(net.node)


def connections(node: str) -> str:
    def read() -> str:
        with open("/proc/thread-self/net/nf_conntrack", encoding="ascii") as file:
            return file.read()

    return in_netns(node, read)


@VERSIONS
def test_without_the_option_every_packet_is_seen(net: Network, plane: NftablesPlane, version: int) -> None:
    plane.load(plan_of(entry(version, to_stream(version))))
    nft(net.node, _COUNTING)
    with echo(net.pods[0], version), stream(net, version) as client:
        talk(client, 100)
        assert forwarded(net.node) >= 200
    assert "flowtable" not in nft(net.node, "list", "ruleset")


@VERSIONS
def test_a_deleted_connection_leaves_the_flowtable_where_udp_may_go_there(
    net: Network, plane: NftablesPlane, version: int
) -> None:
    """Elsewhere the kernel may keep it, and UDP stays out for that reason."""
    plane.load(plan_of(entry(version, to_stream(version)), node=FAST))
    with echo(net.pods[0], version), stream(net, version) as client:
        talk(client, 3 * AFTER)
        assert "[OFFLOAD]" in connections(net.node)
        in_netns(net.node, forget_all)
        time.sleep(3)
        assert "[OFFLOAD]" not in connections(net.node) or not UDP_TOO


def datagrams(sock: socket.socket, times: int) -> list[str]:
    """Which pod answered each."""
    found = []
    for _ in range(times):
        sock.send(b"?")
        found.append(sock.recv(100).decode().split()[0])
    return found


@VERSIONS
def test_datagrams_go_elsewhere_when_their_endpoint_is_gone(net: Network, plane: NftablesPlane, version: int) -> None:
    both = entry(version, pods(version, 0, 1), protocol=Protocol.UDP)
    plane.load(plan_of(both, node=FAST))
    nft(net.node, _COUNTING)
    with in_netns(net.client, socket.socket, Family(version).socket_family, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.connect((VIP[version], 80))
        [pod] = {*datagrams(client, 3 * AFTER)}
        before = forwarded(net.node)
        assert {*datagrams(client, 100)} == {pod}
        assert (forwarded(net.node) - before < 20) == UDP_TOO
        other = 1 - int(pod)
        change = PlanChange((EntryChange(both, entry(version, pods(version, other), protocol=Protocol.UDP)),))
        plane.apply(change)
        in_netns(net.node, clean_stale_udp, change, FAST)
        assert {*datagrams(client, 20)} == {str(other)}


def listed_devices(node: str, family: str = "ip") -> set[str]:
    text = nft(node, "list", "flowtables", family)
    inside = text.partition("devices = {")[2].partition("}")[0]
    return {name.strip(' "') for name in inside.split(",")} - {""}


def eventually(found: Callable[[], set[str]], wanted: set[str]) -> None:
    end = time.monotonic() + 20
    while found() != wanted and time.monotonic() < end:
        time.sleep(0.1)
    assert found() == wanted


def test_devices_come_and_go(net: Network, plane: NftablesPlane) -> None:
    plane.load(plan_of(entry(4, pods(4, 0)), node=FAST))
    first = {"c0", "p0", "p1", "p2"}
    for family in ("ip", "ip6"):
        assert listed_devices(net.node, family) == first
    ip(net.node, "link", "add", "new0", "type", "veth", "peer", "name", "new1")
    eventually(lambda: listed_devices(net.node), {*first, "new0", "new1"})
    ip(net.node, "link", "add", "br0", "type", "bridge")
    ip(net.node, "link", "set", "new0", "master", "br0")
    eventually(lambda: listed_devices(net.node), {*first, "br0", "new1"})
    ip(net.node, "link", "del", "new0")
    eventually(lambda: listed_devices(net.node), {*first, "br0"})
    commits = plane.commits
    assert commits is not None
    assert commits >= 3, "its own changes are no drift"


def test_it_is_there_and_gone_with_the_option(net: Network, plane: NftablesPlane) -> None:
    plan, plain = plan_of(entry(4, pods(4, 0)), node=FAST), plan_of(entry(4, pods(4, 0)))
    plane.load(plan)
    assert plane.read_back()
    nft(net.node, "flush", "chain", "ip", "hotplane", "fast-path")
    assert not plane.read_back(), "what a check sees of it"
    plane.load(plan)
    assert f"ct packets > {AFTER} flow add @fast" in nft(net.node, "list", "ruleset")
    plane.load(plain)
    assert "fast" not in nft(net.node, "list", "ruleset")
    plane.load(plan)
    plane.cleanup()
    assert nft(net.node, "list", "ruleset") == ""


def test_the_slow_path_of_the_ebpf_mode_has_it_too(net: Network) -> None:
    def load() -> EbpfPlane:
        plane = EbpfPlane(NftablesPlane(), (), SMALL)
        plane.load(plan_of(entry(4, pods(4, 0)), node=FAST))
        return plane

    plane = in_netns(net.node, load)
    assert listed_devices(net.node) == {"c0", "p0", "p1", "p2"}
    in_netns(net.node, plane.cleanup)
    assert nft(net.node, "list", "ruleset") == ""
