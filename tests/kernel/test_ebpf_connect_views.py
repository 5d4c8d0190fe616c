"""What people are shown of connect-time balancing: counters, flows, events."""

import socket
from collections.abc import Iterator

import pytest

from dataplane.kernel.namespaces import netns
from dataplane.model.net import Family, Protocol
from dataplane.plan.types import PlanEntry
from dataplane.planes.answers import ServiceCounters
from dataplane.planes.ebpf.attach.programs import ConnectHook
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.views import records as views
from dataplane.planes.ebpf.views.events import EventStream
from tests.kernel.ebpf_lab import (
    BACKEND_PORT,
    BACKENDS,
    CLUSTER_IP,
    SMALL,
    Node,
    NoSlowPath,
    Process,
    built_node,
    plan_of,
    service,
)

VIP, VIP6 = CLUSTER_IP[Family.IPV4], CLUSTER_IP[Family.IPV6]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with built_node("view") as node:
        yield node


def _nobody() -> PlanEntry:
    return service("nobody", backends=(), address="172.30.0.11")


@pytest.fixture
def running(node: Node) -> Iterator[tuple[MapSet, Process]]:
    """Maps opened as another process would, and a pod's process."""
    with netns.netns(node.names["node"]):
        plane = EbpfPlane(NoSlowPath(), [ConnectHook(node.group)], SMALL)
    try:
        plan = plan_of(
            service("a"),
            service("b", Protocol.UDP, Family.IPV6),
            service("none", backends=(), address="172.30.0.11"),
        )
        plane.load(plan)
        maps = views.open_instance(plane.pins.instance)
        assert maps is not None
        with maps:
            yield maps, node.process("pod")
    finally:
        plane.cleanup()


def test_counters_and_flows(running: tuple[MapSet, Process]) -> None:
    maps, pod = running
    pod.call("fetch", socket.AF_INET, VIP, 80)
    pod.call("open", "t", socket.AF_INET, socket.SOCK_STREAM)
    pod.call("connect", "t", VIP, 80)
    pod.call("open", "s", socket.AF_INET6, socket.SOCK_DGRAM)
    target = pod.call("ask_at", "s", VIP6, 80)[0]
    found = views.counters(maps)
    assert found["connect"]["connected"] == 2
    assert found["sendmsg"]["datagram"] == 1
    assert found["recvmsg"]["renamed"] == 1
    assert views.service_counters(maps) == {
        "test/a": ServiceCounters(2, 0, 0, 0, 0),
        "test/b": ServiceCounters(1, 0, 0, 0, 0),
    }
    flows = {flow.service: (flow.protocol, flow.destination, flow.backend) for flow in views.flows(maps)}
    assert flows.keys() == {"test/a", "test/b"}
    assert flows["test/a"][:2] == (socket.IPPROTO_TCP, (VIP, 80))
    assert flows["test/a"][2] in [(backend, BACKEND_PORT) for backend in BACKENDS[Family.IPV4]]
    assert flows["test/b"] == (socket.IPPROTO_UDP, (VIP6, 80), (target, BACKEND_PORT))
    for held in ("s", "t"):
        pod.call("close", held)
    assert list(views.flows(maps)) == []  # what is known of a socket goes with it
    assert {name for name, size in views.memory(maps).items() if not size} == {"source_ranges"}  # an empty trie


def test_events_come_while_somebody_watches(running: tuple[MapSet, Process]) -> None:
    maps, pod = running
    pod.call("fetch", socket.AF_INET, VIP, 80)  # nobody watches yet
    names = views.service_names(maps)
    with EventStream(maps) as stream:
        server = pod.call("fetch", socket.AF_INET, VIP, 80)[0]
        with pytest.raises(OSError):
            pod.call("fetch", socket.AF_INET, "172.30.0.11", 80)
        first, second = stream.poll(60)
        assert (first.hook, first.reason, first.protocol) == ("connect", "connected", socket.IPPROTO_TCP)
        assert first.source[0].startswith("netns:")
        assert (first.destination, first.backend) == ((VIP, 80), (server, BACKEND_PORT))
        assert first.service is not None
        assert names[first.service] == "test/a"
        assert (second.reason, second.backend) == ("no_endpoint", None)
    pod.call("fetch", socket.AF_INET, VIP, 80)
    with EventStream(maps, protocol=socket.IPPROTO_UDP) as stream:
        pod.call("fetch", socket.AF_INET, VIP, 80)
        pod.call("open", "s", socket.AF_INET6, socket.SOCK_DGRAM)
        pod.call("ask_at", "s", VIP6, 80)
        assert [event.hook for event in stream.poll(60)] == ["sendmsg"]


def test_a_full_ring_goes_on_after_it_was_read(running: tuple[MapSet, Process]) -> None:
    maps, pod = running
    with EventStream(maps, hooks=["connect"]) as stream:
        for _ in range(3):  # the ring holds 46 events: it overflows, and wraps around
            stream.watch()
            pod.call("fetch_many", socket.AF_INET, VIP, 80, 60)
            events = stream.poll(60)
            assert 20 < len(events) <= 60
            assert {event.reason for event in events} == {"connected"}
