"""Switching modes live on a node, under a stream of connections from pods, the node and outside: none is lost."""

import errno
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from socket import htons
from typing import NamedTuple

import pytest

from ctl.loaded import replace_plane
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, BpfError
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.conntrack_list import masqueraded_connections
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import node_config
from dataplane.lab.spec import LabSpec, Node, PodLink, Routing
from dataplane.lab.traffic.probe import Probe
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    EndpointPort,
    EndpointSlice,
    ModelObject,
    Service,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.plan.planner import Planner
from dataplane.planes.base import Plane
from dataplane.planes.conntrack import clean_stale_udp
from dataplane.planes.ebpf.attach.tc import DIRECTIONS
from dataplane.planes.ebpf.flows import drain
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES, NO_HOP, TRANSLATION, flow_key, own_tuple
from dataplane.planes.ebpf.flows.ports import snat_ports
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
from dataplane.planes.ebpf.views import records as views
from dataplane.planes.ebpf.views.events import TUPLE
from dataplane.planes.mode import Making
from dataplane.planes.options import HOOKS, PlaneOptions
from dataplane.planes.registry import mode_of
from tests.kernel.daemon_lab import until
from tests.kernel.switch_steps import Steps
from tests.kernel.traffic import Report, Traffic, enough, lost

VIP, EXTERNAL, NODE_PORT = "10.96.8.1", "203.0.113.78", 30088
SHAPES = ((Routing.DIRECT, PodLink.VETH), (Routing.VXLAN, PodLink.BRIDGE))
SETTLE = 0.7
"""Seconds in each mode: some dozens of connections a client."""


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "-".join(shape))
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    routing, pod_link = request.param
    spec = LabSpec(name=f"m{os.getpid()}", nodes=2, pods=3, routing=routing, pod_link=pod_link)
    with Lab.up(spec) as lab:
        lab.start_echo([pod for pod in lab.pods if pod.name[-1] != "3"], [8080])
        yield lab


class Frontends(NamedTuple):
    """A Service and where it is reached."""

    name: str
    vip: str
    external: str
    node_port: int


WEB = Frontends("web", VIP, EXTERNAL, NODE_PORT)
FAR = Frontends("far", "10.96.8.2", "203.0.113.79", 30089)


def objects(lab: Lab, *pods: str, at: Frontends = WEB) -> list[ModelObject]:
    """One Service with every kind of frontend, TCP and UDP, and these pods behind it."""
    ports = tuple(ServicePortSpec(p.text, p, 80, at.node_port) for p in (Protocol.TCP, Protocol.UDP))
    kind = ServiceType.NODE_PORT
    service = Service("default", at.name, kind, (at.vip,), external_ips=(at.external,), ports=ports)
    items = tuple(make_endpoint(lab.place(pod).addresses[Family.IPV4], node=f"node{pod[3]}") for pod in pods)
    slice_ports = tuple(EndpointPort(p.text, p, 8080) for p in (Protocol.TCP, Protocol.UDP))
    return [service, EndpointSlice("default", f"{at.name}-1", at.name, Family.IPV4, slice_ports, items)]


class SwitchedNode:
    """A node whose mode changes as `apply --mode` changes it."""

    def __init__(self, lab: Lab, node: Node) -> None:
        self._lab, self._node = lab, node
        self._plane: Plane | None = None

    def switch(
        self, mode: str, pods: tuple[str, ...], hooks: tuple[str, ...] = HOOKS, more: Sequence[ModelObject] = ()
    ) -> int:
        """Load the mode's plane, then take the one before away; returns how many flows drain. more: Services beside."""
        planner = Planner(node_config(self._lab.spec, self._node, mode))
        planner.update([*objects(self._lab, *pods), *more])
        with netns(self._node.netns):
            options = PlaneOptions(hooks, str(self._lab.cgroup(self._node.name)))
            plane, old = mode_of(mode).make(Making(options)), self._plane
            change = plane.load(planner.plan)
            clean_stale_udp(change, planner.plan.node, planner.plan)
            self._plane = plane
            left = replace_plane(old, mode) if old is not None and old.name != mode else 0
            if mode != "ebpf":
                drain.after_change(change)
        return left

    def draining(self) -> bool:
        with netns(self._node.netns):
            return PinDirectory(default_instance()).draining

    def finish(self) -> int:
        with netns(self._node.netns):
            return drain.finish(PinDirectory(default_instance()))

    def cleanup(self) -> None:
        with netns(self._node.netns):
            for mode in ("ebpf", "nftables", "iptables"):
                mode_of(mode).make().cleanup()
            path = PinDirectory(default_instance()).path
        assert path is None, f"{path} is left"


@pytest.fixture
def nodes(lab: Lab) -> Iterator[list[SwitchedNode]]:
    nodes = [SwitchedNode(lab, node) for node in lab.nodes]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.cleanup()


def ways(lab: Lab, at: Frontends = WEB) -> dict[str, tuple[str, str, int]]:
    node = lab.place("node1").addresses[Family.IPV4]
    return {
        "pod to clusterIP": ("pod1-3", at.vip, 80),
        "pod to externalIP": ("pod1-3", at.external, 80),
        "other node's pod to node port": ("pod2-3", node, at.node_port),
        "node to clusterIP": ("node1", at.vip, 80),
        "outside to node port": ("client", node, at.node_port),
        "outside to externalIP": ("client", at.external, 80),
    }


def used(reports: dict[str, Report]) -> bool:
    """Whether every client really did something."""
    return all(enough(report, report.held) for report in reports.values())


PODS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
CHANGES = [
    ("nftables", HOOKS), ("ebpf", HOOKS), ("iptables", HOOKS), ("ebpf", ("tc", "xdp")), ("nftables", HOOKS),
    ("ebpf", ("tc",)), ("iptables", HOOKS), ("nftables", HOOKS), ("iptables", HOOKS),
]  # fmt: skip


def test_no_connection_is_lost(lab: Lab, nodes: list[SwitchedNode], soak: bool) -> None:
    for node in nodes:
        node.switch("iptables", PODS)
    traffic = Traffic(lab, ways(lab))
    drained, switched = 0, []
    for _ in range(10 if soak else 1):
        for mode, hooks in CHANGES:
            time.sleep(SETTLE)
            began = time.monotonic()
            drained += sum(node.switch(mode, PODS, hooks) for node in nodes)
            switched.append(f"{mode} {began:.2f}-{time.monotonic():.2f}")
    time.sleep(SETTLE)
    traffic.until_used()
    reports = traffic.end()
    assert not lost(reports), (lost(reports), switched)
    assert used(reports), reports
    assert drained > 0  # flows of the packet programs lived on after their plane
    # A datagram that is under way while its flow is decided anew may meet the old decision on one of its ways.
    assert all(report.unanswered <= 1 + len(switched) // 4 for report in reports.values()), reports


def test_a_drain_ends_with_its_last_flow(lab: Lab, nodes: list[SwitchedNode]) -> None:
    node = nodes[0]
    node.switch("ebpf", PODS, ("tc", "xdp"))
    traffic = Traffic(lab, {"outside": ways(lab)["outside to node port"]}, "--tcp-only", "--hold", "5")
    traffic.until_used()
    assert node.switch("nftables", PODS) > 0
    assert node.draining()
    time.sleep(0.5)
    assert node.finish() > 0
    reports = traffic.end()
    assert not lost(reports), reports
    until(lambda: not node.finish(), "the last flow ends")
    assert not node.draining()
    with netns(lab.nodes[0].netns):
        assert PinDirectory(default_instance()).path is None


def test_udp_leaves_an_endpoint_that_goes_while_its_plane_drains(lab: Lab, nodes: list[SwitchedNode]) -> None:
    """Packet programs have the flow, then another mode has the Service, then the endpoint goes."""
    node, address = nodes[0], lab.place("node1").addresses[Family.IPV4]
    flow = Probe(address, NODE_PORT, Protocol.UDP, source_port=45100, timeout=60.0)
    held = Traffic(lab, {"outside": ways(lab)["outside to node port"]}, "--tcp-only", "--hold", "1")

    def ask() -> str:
        attempt = lab.probe("client", flow)[0].attempts[0]
        return attempt.server or attempt.outcome

    node.switch("ebpf", ("pod1-1",), ("tc", "xdp"))
    held.until_used()
    assert ask() == "pod1-1"
    assert node.switch("nftables", ("pod1-1",)) > 0
    assert ask() == "pod1-1"
    node.switch("nftables", ("pod1-2",))
    assert node.draining()
    assert ask() == "pod1-2"
    broken = held.end()["outside"].broken
    assert not broken, broken


def test_masqueraded_flows_keep_their_ports(lab: Lab, nodes: list[SwitchedNode]) -> None:
    """Answers to ports that the kernel gave out before are passed on, also on the range of the packet programs, which
    is made wide here so that some are sure to be in it."""
    node, range_file = nodes[0], Path("/proc/sys/net/ipv4/ip_local_port_range")
    with netns(lab.nodes[0].netns):
        before = range_file.read_text()
        range_file.write_text("1024 33000\n")
    try:
        node.switch("iptables", PODS)
        traffic = Traffic(lab, {"outside": ways(lab)["outside to node port"]}, "--tcp-only", "--hold=1")
        traffic.until_used()
        with netns(lab.nodes[0].netns):
            [(low, high)] = snat_ports()
            until(
                lambda: sum(low <= f.client[1] <= high for f in masqueraded_connections()) > 5, "some have such ports"
            )
        node.switch("ebpf", PODS, ("tc", "xdp"))
        with netns(lab.nodes[0].netns):
            flows = [flow for flow in masqueraded_connections() if low <= flow.client[1] <= high]
            maps = views.open_instance(default_instance())
            assert maps is not None
            with maps:
                tuples = [own_tuple(value) for table in FLOW_TABLES for _, value in maps.items(table)]
                entered = {(t[2], t[3]) for t in map(TUPLE.unpack, tuples)}
        time.sleep(1)
        reports = traffic.end()
    finally:
        with netns(lab.nodes[0].netns):
            range_file.write_text(before)
    assert len(flows) > 3
    assert {(htons(flow.backend[1]), htons(flow.client[1])) for flow in flows} <= entered
    assert not lost(reports), reports


SWITCHES = (
    ("ebpf", HOOKS), ("iptables", HOOKS), ("ebpf", ("tc",)), ("nftables", HOOKS), ("iptables", HOOKS),
    ("nftables", HOOKS),
)  # fmt: skip


def ways_of_steps(lab: Lab) -> dict[str, tuple[str, str, int]]:
    """To a pod of the node, and to one of another node, where the answers may come in by another device."""
    near, far = ways(lab), ways(lab, FAR)
    return {
        **{name: near[name] for name in ("pod to clusterIP", "node to clusterIP", "outside to node port")},
        **{f"{name}, far": far[name] for name in ("pod to externalIP", "other node's pod to node port",
                                                  "outside to node port")},
    }  # fmt: skip


def test_no_connection_waits_at_any_step(lab: Lab, nodes: list[SwitchedNode], monkeypatch: pytest.MonkeyPatch) -> None:
    """From every mode to every other one; to the ebpf mode from nothing, and where it drains."""
    node, far = nodes[0], objects(lab, "pod2-1", at=FAR)
    node.switch("nftables", ("pod1-1",), more=far)
    with monkeypatch.context() as patch:
        steps = Steps(lab, ways_of_steps(lab), patch)
        for mode, hooks in SWITCHES:
            node.switch(mode, ("pod1-1",), hooks, far)
            steps.look(f"in {mode}")
    assert steps.slow == []
    assert steps.count > 40


def test_nor_on_a_kernel_without_tcx(lab: Lab, nodes: list[SwitchedNode], monkeypatch: pytest.MonkeyPatch) -> None:
    node, far, create = nodes[0], objects(lab, "pod2-1", at=FAR), bpf.link_create

    def as_before(program: int, target: int, attach: AttachType, flags: int = 0) -> int:
        if attach in DIRECTIONS.values():
            raise BpfError(errno.EINVAL, "no tcx here")
        return create(program, target, attach, flags)

    node.switch("nftables", ("pod1-1",), more=far)
    with monkeypatch.context() as patch:
        patch.setattr(bpf, "link_create", as_before)
        steps = Steps(lab, ways_of_steps(lab), patch)
        node.switch("ebpf", ("pod1-1",), ("tc",), far)
    assert steps.slow == []
    assert steps.count > 8


def test_a_flow_that_is_opened_while_frontends_go(
    lab: Lab, nodes: list[SwitchedNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program that had found its frontend before: the others stay for it."""
    node = nodes[0]
    node.switch("ebpf", ("pod1-1",), ("tc",))
    own = TUPLE.pack(address_bytes("10.244.1.99"), address_bytes(VIP), htons(40000), htons(80), 6, 0, 0, 0)

    def until_it_has_ended() -> None:
        maps = views.open_instance(default_instance())
        assert maps is not None
        with maps:
            assert not list(maps.items("frontends"))
            value = TRANSLATION.pack(
                *(bytes(16), bytes(16), 0, 0, 0, 0, 0, 0, 0, 0, time.monotonic_ns(), 0, 0), *(0, 0, 0, 0, *NO_HOP, own)
            )
            maps.put("tcp_flows", flow_key(own), value)

    monkeypatch.setattr(drain, "wait_for_packets", until_it_has_ended)
    assert node.switch("nftables", ("pod1-1",)) == 1
    assert node.draining()
