"""Everything at once: modes, hooks and endpoints change, processes are killed on the way, while transfers go on and new
connections are made without a pause. Nothing is lost, what the kernel holds is the plan, and nothing is left.

`tests/run --soak` does the random sequence for minutes, in both pod routings.
"""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec, PodLink, Routing
from dataplane.lab.traffic.probe import Probe
from dataplane.model.net import Family
from tests.kernel.bulk import BLOCK, Bulk, start_servers
from tests.kernel.chaos import BULK, BULK_PORT, EXTERNAL, HOOKS, MODES, NODE_PORT, VIP, ChaosNode, Cluster
from tests.kernel.traffic import Traffic, lost

SHAPES = {"vxlan": (Routing.VXLAN, PodLink.BRIDGE), "direct": (Routing.DIRECT, PodLink.VETH)}
SOAK_SECONDS = 300.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lab" in metafunc.fixturenames:
        shapes = list(SHAPES) if metafunc.config.getoption("--soak") else list(SHAPES)[:1]
        metafunc.parametrize("lab", shapes, indirect=True, scope="module")


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    routing, pod_link = SHAPES[request.param]
    spec = LabSpec(name=f"x{os.getpid()}", nodes=2, pods=3, routing=routing, pod_link=pod_link)
    with Lab.up(spec) as lab:
        lab.start_echo([pod for pod in lab.pods if pod.name[-1] != "3"], [8080])
        start_servers(lab, tuple(BULK), BULK_PORT)
        yield lab


@pytest.fixture
def cluster(lab: Lab) -> Cluster:
    return Cluster(lab, seed=7)


@pytest.fixture
def nodes(lab: Lab, cluster: Cluster, tmp_path: Path) -> Iterator[list[ChaosNode]]:
    nodes = [ChaosNode(lab, node, tmp_path) for node in lab.nodes]
    for node in nodes:
        cluster.write(node.manifests)
        node.apply("ebpf")
    try:
        yield nodes
    finally:
        for node in nodes:
            node.cleanup()


class Load:
    """Transfers and new connections on every way, from now until `end`."""

    def __init__(self, lab: Lab) -> None:
        node = lab.place("node1").addresses[Family.IPV4]
        ways = {f"outside to {pod}": ("client", node, port) for pod, (_, port) in BULK.items()}
        self._bulk = Bulk(lab, ways | {f"pod to {pod}": ("pod1-3", vip, 80) for pod, (vip, _) in BULK.items()})
        self._traffic = Traffic(
            lab,
            {
                "pod to clusterIP": ("pod1-3", VIP, 80),
                "other node's pod to node port": ("pod2-3", node, NODE_PORT),
                "node to clusterIP": ("node1", VIP, 80),
                "outside to node port": ("client", node, NODE_PORT),
                "outside to externalIP": ("client", EXTERNAL, 80),
            },
        )

    def end(self, told: list[str], events: int) -> None:
        """Nothing was lost. told: what was done, for who has to find out why."""
        self._traffic.until_used()
        transfers, reports = self._bulk.end(), self._traffic.end()
        broken = {name: each.broken for name, each in transfers.items() if each.broken} | lost(reports)
        if broken:
            pytest.fail("\n".join([*told, *map(str, broken.items())]))
        for name, transfer in transfers.items():
            assert min(transfer.carried) > 20 * BLOCK, (name, transfer)
        for name, report in reports.items():
            assert report.opened >= 20, (name, report)
            assert report.exchanges > 2 * report.held, (name, report)
            # A datagram that is under way while its flow is decided anew may meet the old decision on one of its ways.
            assert report.unanswered <= 1 + events // 2, (name, report)


def serves_everybody(lab: Lab, nodes: list[ChaosNode]) -> None:
    """From every side, every endpoint of the Service and no other answers, and the checks agree."""
    for node in nodes:
        node.check()
    wanted = {pod.name for pod in lab.pods if pod.name[-1] != "3"}
    for place, address, port in (("pod1-3", VIP, 80), ("client", lab.nodes[0].addresses[Family.IPV4], NODE_PORT)):
        [result] = lab.probe(place, Probe(address, port, count=60, timeout=60.0))
        assert {attempt.server or attempt.outcome for attempt in result.attempts} == wanted


def _write(cluster: Cluster, nodes: list[ChaosNode]) -> None:
    for node in nodes:
        cluster.write(node.manifests)


def test_programs_are_replaced_under_transfers(lab: Lab, cluster: Cluster, nodes: list[ChaosNode], soak: bool) -> None:
    load, told = Load(lab), []
    rounds = 40 if soak else 2
    for number in range(rounds):
        hooks = HOOKS[number % len(HOOKS)]
        told.append(f"{hooks} {time.monotonic():.2f}")
        for node in nodes:
            node.apply("ebpf", hooks)
    load.end(told, rounds)
    serves_everybody(lab, nodes)


def test_modes_switch_under_transfers(lab: Lab, cluster: Cluster, nodes: list[ChaosNode], soak: bool) -> None:
    for node in nodes:
        node.apply("iptables")
    load, told = Load(lab), []
    rounds = 10 if soak else 1
    for _ in range(rounds):
        for mode in ("nftables", "ebpf", "nftables", "iptables"):
            told.append(f"{mode} {time.monotonic():.2f}")
            for node in nodes:
                node.apply(mode)
            time.sleep(0.3)
    load.end(told, 4 * rounds)
    serves_everybody(lab, nodes)


def test_random_disturbances(lab: Lab, cluster: Cluster, nodes: list[ChaosNode], soak: bool) -> None:
    """Any mode after any other, any hooks, endpoints that change, and half of the processes killed on the way."""
    draw, load, told = random.Random(3), Load(lab), list[str]()
    end = time.monotonic() + (SOAK_SECONDS if soak else 6.0)
    while time.monotonic() < end:
        cluster.change()
        _write(cluster, nodes)
        for node in draw.sample(nodes, draw.choice((1, 2))):
            mode, hooks = draw.choice((*MODES, "ebpf", "ebpf")), draw.choice(HOOKS)
            kill_after = draw.choice((None, draw.uniform(0, 0.6)))
            began = time.monotonic()
            done = node.apply(mode, hooks, kill_after)
            told.append(
                f"{node.node.name} {mode} {hooks} {'done' if done else 'killed'} {began:.2f}-{time.monotonic():.2f}"
            )
    cluster.web("pod1-1", "pod1-2", "pod2-1", "pod2-2")
    _write(cluster, nodes)
    for node in nodes:
        node.apply(draw.choice(MODES))
    load.end(told, len(told))
    serves_everybody(lab, nodes)
