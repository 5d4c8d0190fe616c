"""The eBPF plane under disturbance: what goes wrong around it must cost no connection that nobody asked to end."""

import os
import random
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import enter, netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import node_config
from dataplane.lab.spec import LabSpec, Node
from dataplane.model.net import Family
from dataplane.plan.planner import Planner
from dataplane.plan.rows import rows
from dataplane.plan.types import Table
from dataplane.planes.ebpf.make import make_ebpf_plane
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.views import records as views
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from tests.kernel.test_mode_switch import NODE_PORT, objects, used, ways
from tests.kernel.traffic import Traffic, lost

PODS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
BURST = 32


@contextmanager
def _served(name: str) -> Iterator[Lab]:
    with Lab.up(LabSpec(name=f"{name}{os.getpid()}", nodes=2, pods=3)) as lab:
        lab.start_echo([pod for pod in lab.pods if pod.name[-1] != "3"], [8080])
        yield lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with _served("c") as lab:
        yield lab


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """A lab for one test, which leaves it full of what others would stumble over."""
    with _served("d") as lab:
        yield lab


class EbpfNode:
    """A node in ebpf mode; the plane can be forgotten and made anew, as when its process is killed."""

    def __init__(self, lab: Lab, node: Node, sizes: Sizes | None = None) -> None:
        self._lab, self.node, self._sizes = lab, node, sizes
        self._instance = f"hp-{os.getpid()}-chaos-{node.name}"  # a killed child's is this one's
        self.told: list[str] = []
        self.planner = Planner(node_config(lab.spec, node, "ebpf"))
        self.planner.update(objects(lab, *PODS))
        self.plane = self._make()
        with netns(node.netns):
            self.plane.load(self.planner.plan)

    def _make(self) -> EbpfPlane:
        options = PlaneOptions(cgroup=str(self._lab.cgroup(self.node.name)), instance=self._instance)
        with netns(self.node.netns):
            return make_ebpf_plane(Making(options, warn=self.told.append), sizes=self._sizes)

    def endpoints(self, *pods: str) -> None:
        """The Service has these pods from now on."""
        change = self.planner.update(objects(self._lab, *pods))
        with netns(self.node.netns):
            self.plane.apply(change)

    def restart(self) -> None:
        """Another process takes the node over: nothing of this one's memory is used."""
        self.plane.close()
        self.plane = self._make()
        with netns(self.node.netns):
            self.plane.load(self.planner.plan)

    def killed_while_loading(self, seconds: float) -> None:
        """A process that loads the plan is killed on the way."""
        child = os.fork()
        if child == 0:
            enter(self.node.netns)
            self._make().load(self.planner.plan)
            os._exit(0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def read_back(self) -> Table:
        with netns(self.node.netns):
            return self.plane.read_back()

    def counters(self, hook: str) -> dict[str, int]:
        return views.counters(self.plane.tables.maps).get(hook, {})

    def cleanup(self) -> None:
        with netns(self.node.netns):
            self.plane.cleanup()


@pytest.fixture
def nodes(lab: Lab) -> Iterator[list[EbpfNode]]:
    nodes = [EbpfNode(lab, node) for node in lab.nodes]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.cleanup()


def test_endpoints_that_come_and_go(lab: Lab, nodes: list[EbpfNode], soak: bool) -> None:
    """One endpoint of four is away at any time; who had a connection to it keeps that, nobody new is sent there."""
    traffic, draw = Traffic(lab, ways(lab)), random.Random(1)
    for _ in range(600 if soak else 60):
        kept = draw.sample(PODS, 3)
        for node in nodes:
            node.endpoints(*kept)
        time.sleep(0.05)
    traffic.until_used()
    reports = traffic.end()
    assert not lost(reports), reports
    assert used(reports), reports


def test_killed_and_started_again(lab: Lab, nodes: list[EbpfNode], soak: bool) -> None:
    """Killed at any moment of a load, taken over, endpoints changed in between: no connection notices."""
    traffic, draw = Traffic(lab, ways(lab)), random.Random(2)
    for _ in range(40 if soak else 3):
        for node in nodes:
            node.killed_while_loading(draw.uniform(0, 0.4))
            node.restart()
            node.endpoints(*draw.sample(PODS, 3))
    traffic.until_used()
    reports = traffic.end()
    assert not lost(reports), reports
    assert used(reports), reports


def _wait_for_processors() -> None:
    """Wait until no processor has many packets left to receive: it would drop those of all namespaces of this machine
    (softnet_data.input_pkt_queue holds net.core.netdev_max_backlog packets, 1,000 by default)."""
    while any(int(line.split()[11], 16) > BURST for line in Path("/proc/net/softnet_stat").read_text().splitlines()):
        time.sleep(0.001)


def _flood(address: str, port: int, count: int) -> None:
    """SYNs from made-up sources: raw IPv4 with a TCP header whose checksum is right."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    target = socket.inet_aton(address)
    for number in range(count):
        if number % BURST == 0:
            _wait_for_processors()
        source = struct.pack("=BB", 198, 51) + struct.pack("!H", 0x6464 + (number >> 14) % 100)
        header = struct.pack("!HHIIBBHHH", 1024 + number % 16384, port, number, 0, 5 << 4, 2, 1024, 0, 0)
        pseudo = source + target + struct.pack("!BBH", 0, 6, 20) + header
        total = sum(struct.unpack("!16H", pseudo))
        total = (total & 0xFFFF) + (total >> 16)
        check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, source, target)
        sock.sendto(ip + header[:16] + struct.pack("!H", check) + header[18:], (address, 0))
    sock.close()


def _run_flood(lab: Lab, place: str, address: str, port: int, count: int) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            enter(lab.place(place).netns)
            _flood(address, port, count)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_flood_of_opened_connections_pushes_out_no_used_one(own_lab: Lab, soak: bool) -> None:
    """Some times what the table of TCP flows holds comes in; connections in use go on, new ones are made, by the slow
    path, as long as it has ports. Connection tracking keeps what the flood has half opened for a minute after the
    endpoints' last SYN/ACK, and with it all ports that the node could give to others towards these endpoints: who came
    to this node afterwards would not get through (insert_failed)."""
    lab = own_lab
    small = Sizes(tcp_flows=32768, udp_flows=16384)
    nodes = [EbpfNode(lab, node, small) for node in lab.nodes]
    try:
        address = lab.place("node1").addresses[Family.IPV4]
        traffic = Traffic(lab, ways(lab))
        traffic.until_used()
        _run_flood(lab, "client", address, NODE_PORT, 1_000_000 if soak else 150_000)
        time.sleep(0.5)
        reports = traffic.end()
        counted = nodes[0].counters("xdp")
        flooded = counted.get("tcp_flows_full", 0)
    finally:
        for node in nodes:
            node.cleanup()
    broken = {name: report.broken for name, report in reports.items() if report.broken}
    assert not broken, reports
    assert all(r.held >= 2 and r.opened >= 20 for r in reports.values()), reports
    assert flooded > 2 * small.tcp_flows, flooded


def test_full_maps_are_named_and_traffic_goes_on(lab: Lab) -> None:
    """Only one of the two Service ports fits: the other is the slow path's, and both work."""
    tiny = Sizes(frontends=4, tcp_flows=4096, udp_flows=4096)
    nodes = [EbpfNode(lab, node, tiny) for node in lab.nodes]
    try:
        named = [node.plane.overflow for node in nodes]
        traffic = Traffic(lab, ways(lab))
        traffic.until_used()
        reports = traffic.end()
        same = [rows(node.planner.plan) == node.read_back() for node in nodes]
    finally:
        for node in nodes:
            node.cleanup()
    assert all(overflow == {"frontends": 1} for overflow in named), named
    assert not lost(reports), reports
    assert used(reports), reports
    assert all(same)
