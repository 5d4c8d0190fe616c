"""Weights with real connections, in every mode: shares, drained endpoints, what lives on."""

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import LabSpec
from dataplane.lab.traffic.probe import Outcome, Probe
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointSlice
from dataplane.plan.rows import rows
from tests.kernel.modes import lab_proxy
from tests.kernel.test_behaviours import CLIENT, PORTS, VIP, endpoints, service

PODS = ("pod1-1", "pod1-2", "pod2-1")
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.name)
COUNT = 400


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name=f"w{os.getpid()}", nodes=2, pods=(4, 1), ipv6=True)) as lab:
        lab.start_echo([pod for pod in lab.pods if pod.name != CLIENT], PORTS)
        yield lab


@pytest.fixture(scope="module", params=("iptables", "nftables", "ebpf", "ebpf-tc"))
def proxy(request: pytest.FixtureRequest, lab: Lab) -> Iterator[LabProxy]:
    with lab_proxy(lab, request.param) as proxy:
        yield proxy


def weighted(lab: Lab, **weights: int) -> list[EndpointSlice]:
    """Slices of PODS with these weights, by name without its dash."""
    made = []
    for piece in endpoints(lab, *PODS):
        items = [
            replace(endpoint, traits=replace(endpoint.traits, weight=weights[pod.replace("-", "_")]))
            for pod, endpoint in zip(PODS, piece.endpoints, strict=True)
        ]
        made.append(replace(piece, endpoints=tuple(items)))
    return made


def shares(lab: Lab, family: Family, place: str = CLIENT, address: str = "", port: int = 80) -> Counter[str]:
    probe = Probe(address or VIP[family], port, count=COUNT, timeout=60.0)
    (result,) = lab.probe(place, probe)
    assert result.count(Outcome.ANSWERED) == COUNT, result.outcomes
    return result.servers


def fits(seen: Counter[str], weights: dict[str, int]) -> None:
    """Chi-square of the shares; 30 is exceeded once in three million times, or less often where there are two."""
    total = sum(weights.values())
    assert set(seen) == {pod for pod, weight in weights.items() if weight}
    wanted = {pod: COUNT * weight / total for pod, weight in weights.items() if weight}
    assert sum((seen[pod] - mean) ** 2 / mean for pod, mean in wanted.items()) < 30, (seen, wanted)


def test_shares_follow_the_weights(lab: Lab, proxy: LabProxy) -> None:
    """By clusterIP from a pod and by node port from outside; then one is drained, and all of them."""
    proxy.update([service(node_port=30090)])
    node = lab.place("node1").addresses
    proxy.update(weighted(lab, pod1_1=6, pod1_2=3, pod2_1=1))
    fits(shares(lab, Family.IPV4), {"pod1-1": 6, "pod1-2": 3, "pod2-1": 1})
    fits(shares(lab, Family.IPV6, "client", node[Family.IPV6], 30090), {"pod1-1": 6, "pod1-2": 3, "pod2-1": 1})
    proxy.update(weighted(lab, pod1_1=0, pod1_2=4, pod2_1=12))
    fits(shares(lab, Family.IPV6), {"pod1-2": 1, "pod2-1": 3})
    fits(shares(lab, Family.IPV4, "client", node[Family.IPV4], 30090), {"pod1-2": 1, "pod2-1": 3})
    proxy.update(weighted(lab, pod1_1=0, pod1_2=0, pod2_1=0))
    fits(shares(lab, Family.IPV4), dict.fromkeys(PODS, 1))


@FAMILIES
def test_who_is_drained_keeps_what_it_has(lab: Lab, proxy: LabProxy, family: Family) -> None:
    """An open connection, a connected UDP socket, and a client of session affinity, which moves."""
    protocols = (Protocol.TCP, Protocol.UDP)
    proxy.update([service(*protocols), *weighted(lab, pod1_1=1, pod1_2=0, pod2_1=0)])
    with netns(lab.place(CLIENT).netns):
        stream = socket.create_connection((VIP[family], 80), timeout=60.0)
        datagrams = socket.socket(family.socket_family, socket.SOCK_DGRAM)
    with stream, datagrams:
        datagrams.settimeout(60.0)
        datagrams.connect((VIP[family], 80))

        def ask() -> set[str]:
            answers = set()
            for sock in (stream, datagrams):
                sock.sendall(b"x\n")
                answers.add(json.loads(sock.recv(1000))["server"])
            return answers

        first = ask()
        proxy.update(weighted(lab, pod1_1=0, pod1_2=1, pod2_1=0))
        for _ in range(3):
            assert ask() == first
        assert set(shares(lab, family)) == {"pod1-2"}
        assert ask() == first
    proxy.update([service(*protocols, affinity_seconds=600), *weighted(lab, pod1_1=5, pod1_2=0, pod2_1=0)])
    assert set(shares(lab, family)) == {"pod1-1"}
    proxy.update(weighted(lab, pod1_1=0, pod1_2=3, pod2_1=0))
    assert set(shares(lab, family)) == {"pod1-2"}


def test_the_kernel_holds_the_weights(lab: Lab, proxy: LabProxy) -> None:
    """Read back, after a load and after each change."""
    node = proxy.nodes["node1"]
    proxy.update([service(node_port=30090), *weighted(lab, pod1_1=1, pod1_2=1, pod2_1=1)])
    for weights in ((6, 3, 1), (6, 3, 2), (0, 3, 2), (7, 7, 7), (65535, 1, 100), (1, 1, 1)):
        proxy.update(weighted(lab, **dict(zip(("pod1_1", "pod1_2", "pod2_1"), weights, strict=True))))
        with netns(node.node.netns):
            assert node.plane.read_back() == rows(node.planner.plan), weights
    proxy.update(weighted(lab, pod1_1=6, pod1_2=3, pod2_1=1))
    with netns(node.node.netns):
        node.plane.load(node.planner.plan)
        assert node.plane.read_back() == rows(node.planner.plan)
