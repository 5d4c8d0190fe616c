"""The choice of a backend: uniform, and sticky where the Service says so."""

from collections import Counter
from random import Random

import pytest

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointPort, EndpointSlice, Service, ServicePortSpec, ServiceType, make_endpoint
from dataplane.oracle.choose import AffinityTable, choose
from dataplane.oracle.decide import Decision, Packet, decide
from dataplane.plan.planner import Planner
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses

NODE = NodeConfig(
    name="n1",
    addresses=("192.168.0.2",),
    detector=LocalDetector(("10.0.0.0/8",)),
    nodeports=NodePortAddresses(any_local=True),
)


def decision(
    count: int, affinity: int = 0, *, client: str = "10.9.0.1", gone: frozenset[int] = frozenset()
) -> Decision:
    """A clusterIP packet from a client to a Service whose endpoints are numbered from 1."""
    return _decision(Packet(client, "172.30.0.1", 80, Protocol.TCP), count, affinity, gone)


def _decision(packet: Packet, count: int, affinity: int, gone: frozenset[int]) -> Decision:
    planner = Planner(NODE)
    ports = (ServicePortSpec("", Protocol.TCP, 80, 30080),)
    endpoints = tuple(make_endpoint(f"10.1.0.{n}", node="n1") for n in range(1, count + 1) if n not in gone)
    planner.update(
        [
            Service(
                "ns",
                "web",
                ServiceType.NODE_PORT,
                cluster_ips=("172.30.0.1",),
                ports=ports,
                affinity_seconds=affinity,
            ),
            EndpointSlice("ns", "web-1", "web", Family.IPV4, (EndpointPort("", Protocol.TCP, 8080),), endpoints),
        ]
    )
    return decide(planner.plan, packet)


def chi_square(counts: Counter[str], cells: int) -> float:
    expected = counts.total() / cells
    return sum((count - expected) ** 2 / expected for count in counts.values()) + expected * (cells - len(counts))


# Quantiles of the chi-square distribution at 0.9999, by degrees of freedom.
LIMITS = {2: 15.14, 3: 18.42, 5: 23.51, 7: 27.86, 10: 33.72, 100: 161.3}


@pytest.mark.parametrize("backends", LIMITS)
def test_choice_is_uniform(backends: int) -> None:
    """Each backend gets 1/n: with a fixed seed, 20,000 choices lie within what chance explains."""
    found = decision(backends)
    rng, table = Random(20260101), AffinityTable()
    counts = Counter(str(choose(found, rng, table, 0)) for _ in range(20_000))
    assert chi_square(counts, backends) < LIMITS[backends]


def test_the_measure_of_fairness_sees_an_unfair_choice() -> None:
    """One percent more for one of two backends is beyond the limit at a million choices."""
    assert chi_square(Counter({"a": 505_000, "b": 495_000}), 2) > LIMITS[2]
    assert chi_square(Counter({"a": 20_000}), 2) > LIMITS[2]


def test_no_choice_without_endpoints() -> None:
    with pytest.raises(ValueError, match="reject"):
        choose(decision(0), Random(1), AffinityTable(), 0)


def test_affinity_sticks_until_the_timeout_after_the_last_connection() -> None:
    found, rng, table = decision(50, affinity=100), Random(7), AffinityTable()
    first = choose(found, rng, table, 0)
    assert [choose(found, rng, table, now) for now in (50, 149, 248)] == [first] * 3
    assert table.recall(found, 347.9) == first
    assert table.recall(found, 348) is None
    later = {choose(decision(50, 100), Random(seed), table, 348 + 200 * seed) for seed in range(40)}
    assert len(later) > 5


def test_clients_choose_each_for_itself() -> None:
    rng, table = Random(7), AffinityTable()
    clients = [decision(50, 100, client=f"10.9.0.{n}") for n in range(1, 40)]
    first = [choose(found, rng, table, 0) for found in clients]
    assert len(set(first)) > 10
    assert [choose(found, rng, table, 1) for found in clients] == first


def test_affinity_survives_changes_to_others_and_moves_when_its_own_goes() -> None:
    rng, table = Random(7), AffinityTable()
    first = choose(decision(6, 100), rng, table, 0)
    own = int(first.address.rpartition(".")[2])
    others = frozenset(range(1, 7)) - {own}
    assert choose(decision(6, 100, gone=others), rng, table, 1) == first
    assert choose(decision(9, 100), rng, table, 2) == first
    moved = choose(decision(6, 100, gone=frozenset({own})), rng, table, 3)
    assert moved != first
    assert choose(decision(6, 100), rng, table, 4) == moved


def test_all_frontends_of_a_port_share_affinity() -> None:
    rng, table = Random(7), AffinityTable()
    first = choose(decision(50, 100), rng, table, 0)
    by_node_port = _decision(Packet("10.9.0.1", "192.168.0.2", 30080, Protocol.TCP), 50, 100, frozenset())
    assert choose(by_node_port, rng, table, 1) == first


def test_without_affinity_nothing_is_remembered() -> None:
    found, rng, table = decision(10), Random(7), AffinityTable()
    assert len({choose(found, rng, table, 0) for _ in range(100)}) == 10
