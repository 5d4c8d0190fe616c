"""Clients that go on connecting while the daemon dies, comes back, changes the size of its maps, and is replaced."""

import os
import signal
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest

from dataplane.kernel.namespaces import netns
from dataplane.model.net import Family
from dataplane.planes.ebpf.attach.programs import ConnectHook
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.views import records as views
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import LocalDetector
from tests.kernel.daemon_lab import until
from tests.kernel.ebpf_lab import (
    BACKEND_PORT,
    BACKENDS,
    CLUSTER_IP,
    NODE,
    NODE_ADDRESSES,
    SMALL,
    Node,
    NoSlowPath,
    built_node,
    plan_of,
    service,
)

VIP = CLUSTER_IP[Family.IPV4]
ENOUGH = 100
"""Connections of which each of three endpoints has some: all but once in 10^17 runs."""


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with built_node("life") as node:
        yield node


def _plane(node: Node, sizes: Sizes = SMALL, hooks: bool = True, parity: bool = False) -> EbpfPlane:
    with netns.netns(node.names["node"]):
        return EbpfPlane(NoSlowPath(), [ConnectHook(node.group)] if hooks else [], sizes, kube_proxy_masquerade=parity)


class Clients:
    """Connects without a pause until told to stop; the first connect that fails ends it."""

    def __init__(self, node: Node) -> None:
        self._process, self._stop = node.process("pod"), threading.Event()
        self.seen: list[str] = []
        self.failure: OSError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.seen += self._process.call("fetch_many", socket.AF_INET, VIP, 80, 20)
        except OSError as error:
            self.failure = error

    def finish(self) -> list[str]:
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        assert self.failure is None
        return self.seen


def test_no_connect_fails_while_daemons_come_and_go(node: Node) -> None:
    plan = plan_of(service("a"))
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:  # a daemon of its own, to be killed
        try:
            _plane(node).load(plan)
            os.write(told, b"!")
            signal.pause()
        finally:
            os._exit(1)
    last = _plane(node)
    try:
        assert os.read(ready, 1) == b"!"
        clients = Clients(node)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        before = len(clients.seen)
        for round_number in range(6):
            larger = msgspec.structs.replace(SMALL, backends=512 + 64 * (round_number % 3))
            last.close()
            last = _plane(node, larger)
            last.load(plan)
        until(lambda: len(clients.seen) >= before + ENOUGH or clients.failure is not None, "clients connect")
        seen = clients.finish()
        assert set(seen) == set(BACKENDS[Family.IPV4])
    finally:
        last.cleanup()
        os.close(ready)
        os.close(told)


def test_a_hook_that_is_no_longer_wanted_is_taken_off(node: Node) -> None:
    first = _plane(node)
    first.load(plan_of(service("a")))
    second = _plane(node, hooks=False)
    try:
        second.load(plan_of(service("a")))
        assert second.pins.links() == {}
        with pytest.raises(OSError):
            node.process("pod").call("fetch", socket.AF_INET, VIP, 80)
    finally:
        first.close()
        second.cleanup()


def test_parity_leaves_masqueraded_pods_to_the_slow_path(node: Node) -> None:
    plane = _plane(node, parity=True)
    try:
        plane.load(plan_of(service("a", node_port=30080)))
        pod, own = node.process("pod"), node.process("node")
        assert pod.call("fetch", socket.AF_INET, VIP, 80)[0] in BACKENDS[Family.IPV4]  # never masqueraded
        with pytest.raises(ConnectionRefusedError):
            pod.call("fetch", socket.AF_INET, NODE_ADDRESSES[0], 30080)
        assert views.counters(plane.tables.maps)["connect"]["masquerade"] == 1
        # The node's own source address is chosen towards the backend: what masquerading would choose.
        server, client, _ = own.call("fetch", socket.AF_INET, NODE_ADDRESSES[0], 30080)
        assert server in BACKENDS[Family.IPV4]
        assert client == "10.244.2.1"
    finally:
        plane.cleanup()


def test_where_no_pod_can_be_recognised_pods_are_outsiders(node: Node) -> None:
    here = (Backend(BACKENDS[Family.IPV4][2], BACKEND_PORT, True),)
    plan = plan_of(
        service("a", local=here, node_port=30080, external_local=True),
        node=msgspec.structs.replace(NODE, detector=LocalDetector()),
    )
    plane = _plane(node)
    try:
        plane.load(plan)
        pod, own = node.process("pod"), node.process("node")
        assert set(pod.call("fetch_many", socket.AF_INET, NODE_ADDRESSES[0], 30080, 20)) == {here[0].address}
        assert len(set(own.call("fetch_many", socket.AF_INET, NODE_ADDRESSES[0], 30080, 40))) == 3
    finally:
        plane.cleanup()
