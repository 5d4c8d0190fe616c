"""Maglev: tables that do not depend on the order of events, that change little, and hashes that spread."""

import logging
import random
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel import fill_table as native
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointPort, EndpointSlice, ObjectRef, Service, ServicePortSpec, make_endpoint
from dataplane.oracle.decide import Oracle, Packet
from dataplane.plan.planner import Planner
from dataplane.policy.algorithm import TABLE_SIZES, Algorithm
from dataplane.policy.endpoints import Backend
from dataplane.policy.maglev import Hashing, Turns, fill, flow_hash, seed_of, slot_of, table, turns
from dataplane.policy.node import NodeConfig

SIZE = 16381
SEEDS = tuple(seed_of(f"cluster {number}") for number in range(4))


def backends(count: int, weights: tuple[int, ...] = (1,)) -> tuple[Backend, ...]:
    made = [Backend(f"10.244.{n >> 8}.{n & 255}", 8080, weight=weights[n % len(weights)]) for n in range(count)]
    return tuple(sorted(made))


def holders(members: tuple[Backend, ...], hashing: Hashing) -> list[Backend]:
    """Who has each slot, by the compiled function."""
    take = turns(members, hashing)
    filled = compiled(take, hashing.size)
    assert filled is not None
    return [members[take.order[turn]] for turn in filled]


def compiled(take: Turns, size: int) -> "array[int] | None":
    """A table of turns, by the compiled function."""
    numbers = array("Q", range(len(take.order)))
    return native.fill_table(size, take.offsets, take.skips, take.places, numbers)


def test_table_sizes_are_prime() -> None:
    assert all(size % divisor for size in TABLE_SIZES for divisor in range(2, int(size**0.5) + 1))


@pytest.mark.parametrize("weights", [(1,), (1, 3, 7), (65535, 1)])
@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_compiled_and_python_fill_alike(count: int, weights: tuple[int, ...]) -> None:
    for size in (251, 1021):
        take = turns(backends(count, weights), Hashing(size, SEEDS[0]))
        expected = fill(size, take)
        assert list(compiled(take, size) or ()) == list(expected)
        assert set(expected) <= set(range(count))


def test_the_specification_is_the_default_size_s_too() -> None:
    members, hashing = backends(100), Hashing(SIZE, SEEDS[1])
    assert [members[at] for at in table(members, hashing)] == holders(members, hashing)


def test_a_table_does_not_depend_on_the_order_of_its_backends() -> None:
    members, hashing = backends(40, (1, 2)), Hashing(1021, SEEDS[0])
    shuffled = list(members)
    random.Random(3).shuffle(shuffled)
    assert [members[at] for at in table(members, hashing)] == [shuffled[at] for at in table(tuple(shuffled), hashing)]


def test_another_seed_is_another_table() -> None:
    members = backends(10)
    assert table(members, Hashing(251, SEEDS[0])) != table(members, Hashing(251, SEEDS[1]))


@pytest.mark.parametrize("weights", [(1,), (1, 2, 5)])
def test_slots_are_shared_out_by_weight(weights: tuple[int, ...]) -> None:
    """Evenly, each has as many slots as the others, or one less; with weights, within a hundredth of its share."""
    members = backends(99, weights)
    total = sum(backend.weight for backend in members)
    for seed in SEEDS:
        counts = Counter(holders(members, Hashing(SIZE, seed)))
        for backend in members:
            assert abs(counts[backend] - SIZE * backend.weight / total) <= 1 + SIZE * backend.weight / total / 100


def moved(before: list[Backend], after: list[Backend], gone: set[Backend]) -> float:
    """The part of the slots of those who stay that has a new owner."""
    stay = [(was, now) for was, now in zip(before, after, strict=True) if was not in gone]
    return sum(was != now for was, now in stay) / len(stay)


def test_when_one_of_a_hundred_goes_hardly_more_than_a_hundredth_of_the_others_flows_move() -> None:
    shares = []
    for seed in SEEDS:
        members = backends(100)
        before = holders(members, Hashing(SIZE, seed))
        for lost in (0, 41, 99):
            rest = members[:lost] + members[lost + 1 :]
            shares.append(moved(before, holders(rest, Hashing(SIZE, seed)), {members[lost]}))
    assert max(shares) < MOST_MOVED
    assert sum(shares) / len(shares) < MEAN_MOVED


MOST_MOVED, MEAN_MOVED = 0.017, 0.0145


def test_hashes_spread_over_the_slots() -> None:
    """Chi-square over 251 slots; 342 is exceeded once in ten thousand times."""
    clients = {
        "ports": [("192.0.2.1", port) for port in range(1024, 26124)],
        "addresses": [(f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}", 5000) for n in range(25100)],
        "ipv6": [(f"2001:db8::{n:x}", 5000 + n % 7) for n in range(25100)],
    }
    for seed in SEEDS:
        for name, sources in clients.items():
            to = "2001:db8:1::1" if name == "ipv6" else "198.51.100.1"
            values = [flow_hash(seed, a, to, (port, 80), 6, by_client=False) for a, port in sources]
            counts = Counter(slot_of(value, 251) for value in values)
            mean = len(sources) / 251
            assert sum((counts[slot] - mean) ** 2 / mean for slot in range(251)) < 342, name


def test_a_client_s_hash_is_its_address_s_alone() -> None:
    by_client = {flow_hash(1, "192.0.2.1", f"198.51.100.{n}", (n, 80 + n), 6, by_client=True) for n in range(20)}
    assert len(by_client) == 1
    assert by_client != {flow_hash(1, "192.0.2.2", "198.51.100.0", (0, 80), 6, by_client=True)}


SERVICE = Service(
    "default", "web", cluster_ips=("10.96.0.1",), load_balancer_ips=("198.51.100.1",),
    ports=(ServicePortSpec("", Protocol.TCP, 80, 30080),), lb_algorithm="maglev",
)  # fmt: skip


def slices(*addresses: str) -> list[EndpointSlice]:
    """A slice for each endpoint."""
    ports = (EndpointPort("", Protocol.TCP, 8080),)
    return [
        EndpointSlice("default", f"web-{address}", "web", Family.IPV4, ports, (make_endpoint(address),))
        for address in addresses
    ]


def node(name: str, size: int = 1021, seed: str = "a") -> NodeConfig:
    return NodeConfig(name=name, maglev_table_size=size, hash_seed=seed)


def flow(port: int, source: str = "192.0.2.7") -> Packet:
    return Packet(source, "198.51.100.1", 80, Protocol.TCP, "", port)


def test_nodes_agree_whatever_came_first() -> None:
    """One node learns of the endpoints one by one, and of some that go again; the other of all at once."""
    slow, quick = Planner(node("one")), Planner(node("two"))
    wanted = [f"10.0.0.{number}" for number in range(1, 21)]
    slow.update([SERVICE])
    for address in reversed(["10.0.0.99", *wanted, "10.0.0.98"]):
        slow.update(slices(address))
    slow.update((), [ObjectRef("EndpointSlice", "default", f"web-10.0.0.{n}") for n in (98, 99)])
    quick.update([SERVICE, *slices(*wanted)])
    one, two = Oracle(slow.plan), Oracle(quick.plan)
    chosen = [one.decide(flow(port)).chosen for port in range(2000, 2200)]
    assert chosen == [two.decide(flow(port)).chosen for port in range(2000, 2200)]
    assert len(set(chosen)) == 20
    other = Planner(node("three", seed="b"))
    other.update([SERVICE, *slices(*wanted)])
    assert chosen != [Oracle(other.plan).decide(flow(port)).chosen for port in range(2000, 2200)]


def test_explain_names_the_endpoint_once_the_source_port_is_known() -> None:
    planner = Planner(node("one"))
    planner.update([SERVICE, *slices("10.0.0.1", "10.0.0.2", "10.0.0.3")])
    oracle = Oracle(planner.plan)
    known, unknown = oracle.decide(flow(2000)), oracle.decide(flow(0))
    assert f"sent to {known.chosen}, by maglev: a hash of the addresses, ports and protocol" in " ".join(known.reasons)
    assert unknown.chosen is None
    assert "write the source port as SRC:PORT to learn which" in " ".join(unknown.reasons)
    inside = oracle.decide(Packet("192.0.2.7", "10.96.0.1", 80, Protocol.TCP, "", 2000))
    assert (inside.steady, inside.chosen) == (False, None)
    assert "each with probability 1/3" in " ".join(inside.reasons)


@pytest.mark.parametrize(
    ("asked", "annotation", "size", "algorithm"),
    [
        (Algorithm.RANDOM, "", 251, Algorithm.RANDOM),
        (Algorithm.MAGLEV, "", 251, Algorithm.MAGLEV),
        (Algorithm.MAGLEV, "random", 251, Algorithm.RANDOM),
        (Algorithm.RANDOM, "maglev", 251, Algorithm.MAGLEV),
        (Algorithm.RANDOM, "maglev", 0, Algorithm.RANDOM),
    ],
)
def test_the_annotation_goes_before_the_option(
    asked: Algorithm, annotation: str, size: int, algorithm: Algorithm
) -> None:
    planner = Planner(NodeConfig(name="n", lb_algorithm=asked, maglev_table_size=size))
    service = Service(
        "default", "web", cluster_ips=("10.96.0.1",), lb_algorithm=annotation,
        ports=(ServicePortSpec("a", Protocol.TCP, 80, 30080), ServicePortSpec("b", Protocol.TCP, 81, 30081)),
    )  # fmt: skip
    planner.update([service])
    assert {entry.algorithm for entry in planner.plan.entries.values()} == {algorithm}
    problems = [str(problem) for found in planner.problems.values() for problem in found]
    if size:
        assert problems == []
    else:
        [problem] = problems
        assert "Service default/web: metadata.annotations[service.hotplane.io/lb-algorithm]" in problem
        assert "endpoints are chosen at random" in problem


def test_a_service_that_nobody_reaches_from_outside_has_no_table() -> None:
    planner = Planner(NodeConfig(name="n", lb_algorithm=Algorithm.MAGLEV))
    planner.update(
        [Service("default", "web", cluster_ips=("10.96.0.1",), ports=(ServicePortSpec("", Protocol.TCP, 80),))]
    )
    assert {entry.algorithm for entry in planner.plan.entries.values()} == {Algorithm.RANDOM}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What is compiled goes into a folder of the test's own."""
    monkeypatch.setattr(native, "CACHE_DIRS", (tmp_path,))
    native._library.cache_clear()
    yield tmp_path
    native._library.cache_clear()


def _filled() -> "array[int] | None":
    return compiled(turns(backends(3), Hashing(251, 1)), 251)


def test_what_is_compiled_is_kept_and_checked(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _filled()
    assert expected is not None
    [kept] = elsewhere.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes((whole[-1] ^ 1,)))
    native._library.cache_clear()
    assert _filled() == expected
    assert kept.read_bytes() == whole  # compiled again
    monkeypatch.setattr(shutil, "which", lambda _: None)
    native._library.cache_clear()
    assert _filled() == expected


def test_without_a_compiler_python_fills(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert (_filled(), _filled()) == (None, None)
    assert [record.getMessage() for record in caplog.records] == [
        "Maglev tables are made in Python, twenty times slower: there is no C compiler; apt-get install gcc"
    ]
    assert list(elsewhere.iterdir()) == []
