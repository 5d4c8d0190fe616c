"""Weights of endpoints: what the annotation says, who is chosen from, and how often each is drawn."""

import json
from collections import Counter
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.model.decode import decode_object
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointPort, EndpointSlice, Service, ServicePortSpec, make_endpoint
from dataplane.oracle.choose import AffinityTable, choose
from dataplane.oracle.decide import Oracle, Packet
from dataplane.plan.planner import Planner
from dataplane.plan.types import EntryKey, PlanEntry
from dataplane.planes.iptables.readback import _drawn
from dataplane.planes.iptables.rules.chances import probability
from dataplane.planes.nftables.elements.placement import place
from dataplane.policy.endpoints import Backend, Candidate, backend_sets, lingering
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import Scope
from dataplane.policy.weights import MOST_PLACES, drawn, places

HERE = NodeConfig(name="here", zone="a")
KEY = EntryKey("default", "web", "", Protocol.TCP, Family.IPV4)


def decoded(annotation: object, *names: str) -> tuple[list[int], list[str], list[str]]:
    """The weights of a slice's endpoints 10.0.0.1 on, whose Pods have these names; problems and notes."""
    item: dict[str, Any] = {
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "annotations": {"service.hotplane.io/weights": annotation}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": [f"10.0.0.{number}"], "targetRef": {"kind": "Pod", "name": name}}
            for number, name in enumerate(names, 1)
        ],
        "ports": [{"port": 80}],
    }
    found = decode_object(json.dumps(item).encode())
    assert isinstance(found.value, EndpointSlice)
    weights = [endpoint.weight for endpoint in found.value.endpoints]
    return weights, [str(problem) for problem in found.problems], [str(note) for note in found.notes]


@pytest.mark.parametrize(
    ("annotation", "weights"),
    [
        ("", [1, 1]),
        ("7", [7, 7]),
        ("0", [0, 0]),
        ("10.0.0.1=5", [5, 1]),
        ("web-b=0", [1, 0]),
        (" 10.0.0.1 = 5 , web-b = 65535 ,", [5, 65535]),
        ("3,web-b=0", [3, 0]),
        ("web-a=2,10.0.0.1=4", [4, 1]),  # the address goes first
    ],
)
def test_what_the_annotation_says(annotation: str, weights: list[int]) -> None:
    assert decoded(annotation, "web-a", "web-b") == (weights, [], [])


@pytest.mark.parametrize("part", ["web-a=65536", "web-a=-1", "web-a=", "x", "1.5", "web-a=1=2", "web-a=\u0663", "=3"])
def test_what_cannot_be_read_is_reported_and_the_rest_counts(part: str) -> None:
    weights, problems, notes = decoded(f"{part},web-b=2", "web-a", "web-b")
    if part in ("web-a=1=2", "=3"):  # such a name is of nobody
        assert (weights, problems, len(notes)) == ([1, 2], [], 1)
        return
    assert weights == [1, 2]
    [problem] = problems
    assert problem.startswith(
        f"EndpointSlice default/web-1: metadata.annotations[service.hotplane.io/weights]: {part!r} has no weight"
    )


def test_a_name_that_nobody_has_is_noted() -> None:
    weights, problems, [note] = decoded("web-z=5", "web-a")
    assert (weights, problems) == ([1], [])
    assert "'web-z' is neither the address nor the Pod of an endpoint" in note


def ready(address: str, weight: int, node: str = "", zones: tuple[str, ...] | None = None) -> Candidate:
    return (make_endpoint(address, node=node, zone_hints=zones, weight=weight), 80)


def terminating(address: str, weight: int, node: str = "") -> Candidate:
    return (make_endpoint(address, ready=False, terminating=True, node=node, weight=weight), 80)


Chosen = dict[str, int]


@pytest.mark.parametrize(
    ("candidates", "cluster", "local"),
    [
        ([ready("1", 5), ready("2", 0), ready("3", 1)], {"1": 5, "3": 1}, {}),
        # Somebody is better than nobody, for each set alone, as with terminating endpoints.
        ([ready("1", 0), ready("2", 0)], {"1": 1, "2": 1}, {}),
        ([ready("1", 0, "here"), ready("2", 4, "there")], {"2": 4}, {"1": 1}),
        ([ready("1", 0), terminating("2", 9)], {"1": 1}, {}),
        ([terminating("1", 0), terminating("2", 9)], {"2": 9}, {}),
        ([terminating("1", 0), terminating("2", 0)], {"1": 1, "2": 1}, {}),
        # Hints are those of endpoints that may be chosen.
        ([ready("1", 0, zones=("a",)), ready("2", 1, zones=("b",))], {"2": 1}, {}),
        ([ready("1", 0), ready("2", 1, zones=("a",)), ready("3", 1, zones=("b",))], {"2": 1}, {}),
    ],
)
def test_who_is_chosen_from(candidates: list[Candidate], cluster: Chosen, local: Chosen) -> None:
    sets = backend_sets(candidates, HERE)
    assert {b.address: b.weight for b in sets.cluster} == cluster
    assert {b.address: b.weight for b in sets.local} == local
    assert sets.weighted == any(endpoint.weight > 1 for endpoint, _ in candidates)


def test_who_is_drained_keeps_its_datagrams() -> None:
    candidates = [ready("1", 5), ready("2", 0), ready("3", 1)]
    assert [b.address for b in lingering(candidates, backend_sets(candidates, HERE), HERE)] == ["2"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1], [1, 1]),
        ([10, 20], [1, 2]),
        ([65535, 65535], [1, 1]),
        ([90, 10], [9, 1]),
        ([65535, 1], [1023, 1]),
        ([65535, 65534], [1, 1]),
    ],
)
def test_places(weights: list[int], expected: list[int]) -> None:
    assert places(weights) == expected


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=300))
def test_places_are_few_and_in_proportion(weights: list[int]) -> None:
    found, total = places(weights), sum(weights)
    most = max(1024, 16 * len(weights))
    assert len(found) == len(weights)
    assert min(found) >= 1
    assert sum(found) <= max(most, len(weights))
    for weight, count in zip(weights, found, strict=True):
        if count > 1:  # a share that is less than a place is rounded up, at the cost of the largest
            share = Fraction(count, sum(found))
            assert abs(share - Fraction(weight, total)) <= Fraction(len(weights), sum(found))


def test_a_very_large_set_has_a_place_for_each() -> None:
    assert places([1 + at % 7 for at in range(MOST_PLACES)]) == [1] * MOST_PLACES


def weighted(weights: dict[str, int]) -> tuple[Backend, ...]:
    return tuple(Backend(address, 80, weight=weight) for address, weight in sorted(weights.items()))


def test_equal_weights_are_drawn_as_none() -> None:
    entry = PlanEntry(KEY, weighted({"1": 6, "2": 6}), weighted=True)
    assert [b.address for b in entry.drawn(Scope.CLUSTER)] == ["1", "2"]


def test_the_oracle_draws_by_weight() -> None:
    service = Service("default", "web", cluster_ips=("10.96.0.1",), ports=(ServicePortSpec("", Protocol.TCP, 80),))
    endpoints = (make_endpoint("10.0.0.1", weight=3), make_endpoint("10.0.0.2"), make_endpoint("10.0.0.3", weight=0))
    ports = (EndpointPort("", Protocol.TCP, 80),)
    planner = Planner(NodeConfig(name="n"))
    planner.update([service, EndpointSlice("default", "web-1", "web", Family.IPV4, ports, endpoints)])
    decision = Oracle(planner.plan).decide(Packet("192.0.2.1", "10.96.0.1", 80, Protocol.TCP))
    assert "sent to one of 10.0.0.1:80 (3/4), 10.0.0.2:80 (1/4), by the weights" in " ".join(decision.reasons)
    rng, table = Random(1), AffinityTable()
    seen = Counter(choose(decision, rng, table, 0.0).address for _ in range(4000))
    assert set(seen) == {"10.0.0.1", "10.0.0.2"}
    assert 2850 < seen["10.0.0.1"] < 3150  # 3000, five standard deviations


def test_large_and_small_services_are_planned_alike() -> None:
    """The merged endpoints of a large Service, changed slice by slice, against all endpoints at once."""
    rng = Random(7)
    service = Service("default", "web", cluster_ips=("10.96.0.1",), ports=(ServicePortSpec("", Protocol.UDP, 80),))
    planners = [Planner(NodeConfig(name="here", zone="a"), large) for large in (1, 1 << 30)]
    for planner in planners:
        planner.update([service])
    for _ in range(60):
        items = tuple(
            make_endpoint(
                f"10.0.0.{number}", ready=rng.random() < 0.7, terminating=rng.random() < 0.5,
                node=rng.choice(("here", "there")), zone_hints=rng.choice((("a",), ("b",), ("a",), None)),
                weight=rng.choice((0, 0, 1, 5)),
            )
            for number in range(1, 6)
        )  # fmt: skip
        name = rng.choice(("web-1", "web-2"))
        piece = EndpointSlice("default", name, "web", Family.IPV4, (EndpointPort("", Protocol.UDP, 80),), items)
        for planner in planners:
            planner.update([piece])
        one, other = (dict(planner.plan.entries) for planner in planners)
        assert one == other


def test_a_weight_that_changes_moves_no_other_place() -> None:
    one = PlanEntry(KEY, weighted({"1": 2, "2": 1, "3": 3}), weighted=True)
    other = PlanEntry(KEY, weighted({"1": 1, "2": 1, "3": 3}), weighted=True)
    before = place(one)
    after = place(other, before)
    assert sorted(after.cluster) == sorted((b.address, b.port) for b in other.drawn(Scope.CLUSTER))
    moved = sum(was != now for was, now in zip(before.cluster, after.cluster, strict=False))
    assert moved <= 1
    assert place(one, before) == before


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=40))
def test_iptables_probabilities_can_be_read_back(weights: list[int]) -> None:
    counts = places(weights)
    left, rules = sum(counts), []
    for number, count in enumerate(counts):
        rules.append((probability(left, count) if left > count else "", [(f"10.0.0.{number}", 80)]))
        left -= count
    expected = Counter({f"10.0.0.{number}": count for number, count in enumerate(counts)})
    assert Counter(address for address, _ in _drawn(rules)) == expected


def test_the_health_check_counts_weights() -> None:
    service = Service(
        "default", "web", cluster_ips=("10.96.0.1",), load_balancer_ips=("198.51.100.1",), external_local=True,
        health_check_node_port=32000, ports=(ServicePortSpec("", Protocol.TCP, 80),),
    )  # fmt: skip
    planner = Planner(NodeConfig(name="here"))
    for weights, expected in (((3, 1), (2, 4)), ((0, 2), (2, 2)), ((0, 0), (2, 0)), ((1, 1), (2, 2))):
        endpoints = tuple(
            make_endpoint(f"10.0.0.{n}", node="here", weight=weight) for n, weight in enumerate(weights, 1)
        )
        ports = (EndpointPort("", Protocol.TCP, 80),)
        planner.update([service, EndpointSlice("default", "web-1", "web", Family.IPV4, ports, endpoints)])
        check = planner.plan.health_checks["default", "web"]
        assert (check.local_endpoints, check.weight) == expected


def test_drawn_lists_are_made_once() -> None:
    members = weighted({"1": 2, "2": 1})
    assert drawn(members) is drawn(tuple(members))
