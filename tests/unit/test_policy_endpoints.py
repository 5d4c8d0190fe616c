"""Endpoint categories: the tables of what is usable, on which node, in which zone."""

from itertools import permutations

import pytest

from dataplane.model.objects import make_endpoint
from dataplane.policy.endpoints import Backend, BackendSets, Candidate, backend_sets
from dataplane.policy.node import NodeConfig

HERE = NodeConfig(name="here", zone="a")


def ready(
    address: str, node: str = "", zones: tuple[str, ...] | None = None, nodes: tuple[str, ...] | None = None
) -> Candidate:
    return (make_endpoint(address, node=node, zone_hints=zones, node_hints=nodes), 80)


def terminating(address: str, node: str = "", serving: bool = True) -> Candidate:
    return (make_endpoint(address, ready=False, serving=serving, terminating=True, node=node), 80)


def unready(address: str, node: str = "") -> Candidate:
    return (make_endpoint(address, ready=False, serving=False, node=node), 80)


def addresses(sets: BackendSets) -> tuple[list[str], list[str]]:
    return [b.address for b in sets.cluster], [b.address for b in sets.local]


@pytest.mark.parametrize(
    ("candidates", "cluster", "local"),
    [
        ([], [], []),
        ([ready("1")], ["1"], []),
        ([ready("1", "here")], ["1"], ["1"]),
        ([ready("1", "here"), ready("2", "there")], ["1", "2"], ["1"]),
        # The terminating fallback is taken separately for each set.
        ([terminating("1", "here"), ready("2", "there")], ["2"], ["1"]),
        ([terminating("1", "here"), terminating("2", "there")], ["1", "2"], ["1"]),
        ([terminating("1", "here"), ready("2", "here")], ["2"], ["2"]),
        ([terminating("1", "here", serving=False), unready("2", "here")], [], []),
        # Serving without terminating and without ready is not a state that helps.
        ([(make_endpoint("1", ready=False, serving=True, terminating=False, node="here"), 80)], [], []),
    ],
)
def test_categories(candidates: list[Candidate], cluster: list[str], local: list[str]) -> None:
    assert addresses(backend_sets(candidates, HERE)) == (cluster, local)


@pytest.mark.parametrize(
    ("candidates", "cluster", "topology"),
    [
        ([ready("1", zones=("a",)), ready("2", zones=("b",))], ["1"], "forZones"),
        # One ready endpoint without the hint: the whole kind is ignored.
        ([ready("1", zones=("a",)), ready("2")], ["1", "2"], ""),
        ([ready("1", zones=("a",)), ready("2", zones=())], ["1", "2"], ""),
        # Nobody hinted to this zone: ignored too.
        ([ready("1", zones=("b",)), ready("2", zones=("c",))], ["1", "2"], ""),
        # forNodes goes before forZones, and falls back to it when it does not apply.
        ([ready("1", zones=("b",), nodes=("here",)), ready("2", zones=("a",), nodes=("there",))], ["1"], "forNodes"),
        ([ready("1", zones=("b",), nodes=("x",)), ready("2", zones=("a",), nodes=("there",))], ["2"], "forZones"),
        ([ready("1", zones=("b",)), ready("2", zones=("a",), nodes=("here",))], ["2"], "forZones"),
        # Endpoints that are not ready have no say in whether hints apply.
        ([ready("1", zones=("a",)), unready("3"), terminating("4")], ["1"], "forZones"),
    ],
)
def test_topology(candidates: list[Candidate], cluster: list[str], topology: str) -> None:
    sets = backend_sets(candidates, HERE)
    assert [b.address for b in sets.cluster] == cluster
    assert sets.topology == topology


def test_topology_does_not_narrow_the_local_set() -> None:
    candidates = [ready("1", "here", zones=("b",)), ready("2", "there", zones=("a",))]
    assert addresses(backend_sets(candidates, HERE)) == (["2"], ["1"])


def test_topology_needs_to_know_where_here_is() -> None:
    candidates = [ready("1", "", zones=("",), nodes=("",)), ready("2", "", zones=("b",), nodes=("x",))]
    assert addresses(backend_sets(candidates, NodeConfig())) == (["1", "2"], [])


def test_terminating_fallback_is_not_narrowed_by_hints() -> None:
    candidates = [
        (make_endpoint("1", ready=False, serving=True, terminating=True, zone_hints=("a",)), 80),
        (make_endpoint("2", ready=False, serving=True, terminating=True, zone_hints=("b",)), 80),
    ]
    sets = backend_sets(candidates, HERE)
    assert [b.address for b in sets.cluster] == ["1", "2"]
    assert sets.cluster_terminating


def test_duplicates_collapse_and_order_is_stable() -> None:
    twice = [ready("10.0.0.2", "there"), ready("10.0.0.1"), ready("10.0.0.2", "here"), (make_endpoint("10.0.0.1"), 81)]
    assert backend_sets(twice, HERE).cluster == (
        Backend("10.0.0.1", 80),
        Backend("10.0.0.1", 81),
        Backend("10.0.0.2", 80, local=True),
    )


def condition(ready: bool, serving: bool, terminating: bool, node: str = "here") -> Candidate:
    return (make_endpoint("1", ready=ready, serving=serving, terminating=terminating, node=node), 80)


@pytest.mark.parametrize(
    ("better", "worse", "served"),
    [
        (condition(True, True, False), condition(False, False, False), True),
        (condition(True, True, False), condition(False, True, True), True),
        (condition(True, True, True), condition(False, True, False), True),
        (condition(False, True, True), condition(False, False, False), True),
        (condition(False, True, True), condition(False, False, True), True),
        (condition(False, True, False), condition(False, True, True), False),
        (condition(False, False, False), condition(False, False, True), False),
    ],
)
def test_of_one_address_in_two_slices_the_more_useful_entry_stays(
    better: Candidate, worse: Candidate, served: bool
) -> None:
    for order in permutations((better, worse, worse)):
        assert addresses(backend_sets(order, HERE)) == ((["1"], ["1"]) if served else ([], []))


def test_of_equals_the_one_on_this_node_stays() -> None:
    there, here = condition(True, True, False, "there"), condition(True, True, False)
    for order in permutations((there, here)):
        assert backend_sets(order, HERE).cluster == (Backend("1", 80, local=True),)
