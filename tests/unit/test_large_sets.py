"""Large backend sets: their difference, and sets kept up by slices against sets made of all endpoints at once."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    EndpointPort,
    EndpointSlice,
    Node,
    ObjectRef,
    Service,
    ServicePortSpec,
    make_endpoint,
)
from dataplane.plan.places import Places
from dataplane.plan.planner import Planner
from dataplane.plan.types import EntryKey
from dataplane.policy.difference import at_address, difference, holds, spliced
from dataplane.policy.endpoints import Backend, backend_sets, lingering, nodes_of
from dataplane.policy.forwarding import LbMode
from dataplane.policy.limit import Limit
from dataplane.policy.merged import MergedEndpoints
from dataplane.policy.node import NodeConfig

HERE = NodeConfig(name="here", zone="a")
MANY = [Backend(f"10.{n >> 8}.0.{n & 255}", 80 + n % 3, n % 5 == 0) for n in range(700)]

sets = st.sets(st.sampled_from(MANY)).map(lambda found: tuple(sorted(found)))
few = st.sets(st.sampled_from(MANY), max_size=4)


@settings(max_examples=200)
@given(sets, sets)
def test_any_two_sets_differ_in_what_they_differ_in(old: tuple[Backend, ...], new: tuple[Backend, ...]) -> None:
    found = difference(old, new)
    assert found.removed == sorted(set(old) - set(new))
    assert found.added == sorted(set(new) - set(old))
    assert spliced(old, *found) == new


@settings(max_examples=200)
@given(few, few)
def test_large_sets_that_differ_in_little(gone: set[Backend], come: set[Backend]) -> None:
    everybody = tuple(sorted(MANY))
    old = tuple(b for b in everybody if b not in come)
    new = tuple(b for b in everybody if b not in gone)
    found = difference(old, new)
    assert set(found.removed) == gone - come
    assert set(found.added) == come - gone
    assert spliced(old, *found) == new
    for backend in MANY:
        assert holds(new, backend.address, backend.port) == (backend not in gone)
        assert at_address(new, backend.address) == (() if backend in gone else (backend,))


def test_unsorted_sets_differ_in_no_more_than_they_do() -> None:
    assert difference(tuple(MANY), (*MANY[100:], *MANY[:90])) == (sorted(MANY[90:100]), [])


_HINTS = st.sampled_from((None, (), ("here",), ("there",), ("a",), ("b", "a")))
_endpoints = st.builds(
    make_endpoint,
    st.sampled_from([f"10.0.0.{n}" for n in range(8)]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(("here", "there", "")),
    _HINTS,
    _HINTS,
)
_ports = st.sampled_from((80, 80, 80, 81, None))


@st.composite
def _slices(draw: st.DrawFn, name: str) -> EndpointSlice | None:
    if not draw(st.integers(0, 5)):
        return None
    number = draw(_ports)
    ports = (EndpointPort("p", Protocol.UDP, number),) if number else ()
    found = draw(st.lists(_endpoints, max_size=6))
    return EndpointSlice("n", name, "s", Family.IPV4, ports, tuple(found))


_NAMES = ("a", "b", "c")
_events = st.sampled_from(_NAMES).flatmap(lambda name: st.tuples(st.just(name), _slices(name)))
_nodes = st.sampled_from((HERE, NodeConfig(name="here"), NodeConfig(name="", zone="a"), NodeConfig()))


@settings(max_examples=400)
@given(st.lists(_events, min_size=1, max_size=8), _nodes, st.sets(st.integers(0, 7)))
def test_slice_by_slice_is_the_same_as_all_at_once(
    events: list[tuple[str, EndpointSlice | None]], node: NodeConfig, unseen: set[int]
) -> None:
    """unseen: events after which nobody looks."""
    slices: dict[str, EndpointSlice] = {}
    merged = MergedEndpoints(lambda piece: piece.ports[0].port if piece.ports else None, (), node.name, node.zone)
    for number, (name, item) in enumerate(events):
        merged.replace(slices.pop(name, None), item)
        if item is not None:
            slices[name] = item
        if number in unseen and number + 1 < len(events):
            continue
        candidates = [
            (endpoint, piece.ports[0].port) for _, piece in sorted(slices.items()) if piece.ports
            for endpoint in piece.endpoints
        ]  # fmt: skip
        wanted = backend_sets(candidates, node)
        found, left = merged.sets(lingering=True)
        assert found == wanted
        assert left == (lingering(candidates, wanted, node) if candidates else ())


def _service(count: int, change: Callable[[int], dict[str, object]] = lambda _: {}) -> list[Service | EndpointSlice]:
    port = EndpointPort("", Protocol.TCP, 80)
    slices = [
        EndpointSlice(
            "n", f"s-{first:05}", "s", Family.IPV4, (port,),
            tuple(
                make_endpoint(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", node=f"n{n % 50}", **change(n))  # type: ignore[arg-type]
                for n in range(first, min(first + 100, count))
            ),
        )
        for first in range(0, count, 100)
    ]  # fmt: skip
    service = Service("n", "s", cluster_ips=("10.96.0.1",), ports=(ServicePortSpec("", Protocol.TCP, 80),))
    return [service, *slices]


@settings(max_examples=200)
@given(st.lists(_events, min_size=1, max_size=8), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_who_may_run_here_is_found_slice_by_slice_as_it_is_all_at_once(
    events: list[tuple[str, EndpointSlice | None]], unasked: set[int], learned: set[int]
) -> None:
    """unasked: looks after which nobody asks. learned: events with which another node's name becomes known, or goes."""
    slices: dict[str, EndpointSlice] = {}
    places = Places("here", vouched=False)
    places.add_node("here")
    merged = MergedEndpoints(lambda piece: piece.ports[0].port if piece.ports else None, (), "here", "a")
    for number, (name, item) in enumerate(events):
        if number in learned:
            (places.remove_node if places.elsewhere("there") else places.add_node)("there")
        merged.replace(slices.pop(name, None), item)
        if item is not None:
            slices[name] = item
        sets, _ = merged.sets(lingering=False)
        if number in unasked:
            continue
        candidates = [(e, p.ports[0].port) for p in slices.values() if p.ports for e in p.endpoints]
        found = merged.doubted(places.doubtful, places.knowledge)
        assert found == places.unplaced(candidates, sets)
        assert found is sets.cluster or found != sets.cluster


@settings(max_examples=200)
@given(st.lists(_events, min_size=1, max_size=8), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_which_node_a_backend_is_on_is_followed_slice_by_slice(
    events: list[tuple[str, EndpointSlice | None]], unasked: set[int], learned: set[int]
) -> None:
    """unasked: looks after which nobody asks. learned: events with which another node's address becomes known, or
    goes."""
    slices: dict[str, EndpointSlice] = {}
    ways: dict[str, str] = {}
    merged = MergedEndpoints(lambda piece: piece.ports[0].port if piece.ports else None, (), "here", "a")
    for number, (name, item) in enumerate(events):
        if number in learned:
            ways = {} if ways else {"there": f"192.0.2.{number}"}
        merged.replace(slices.pop(name, None), item)
        if item is not None:
            slices[name] = item
        sets, _ = merged.sets(lingering=False)
        if number in unasked:
            continue
        pieces = [piece for _, piece in sorted(slices.items()) if piece.ports]
        nodes = nodes_of([(e, p.ports[0].port) for p in pieces for e in p.endpoints], HERE)
        wanted = tuple("" if b.local else ways.get(nodes[b.address, b.port], "") for b in sets.cluster)
        assert merged.tunnels(ways, tuple(ways.items())) == wanted
        assert set(merged.nodes) == set(nodes.values())


def test_one_change_of_many_forwarded_endpoints_looks_at_few() -> None:
    planner, looks = Planner(NodeConfig(name="me", addresses=("198.51.100.1",), lb_mode=LbMode.DSR)), 0
    offer = planner.plan.node.offer
    found = _service(3000)
    outside = [replace(each, external_ips=("203.0.113.1",)) if isinstance(each, Service) else each for each in found]
    speakers = [Node(f"n{n}", addresses=(f"192.0.2.{n}",), forwarding=offer, announced=str(offer)) for n in range(50)]
    speakers.append(replace(speakers[0], name="me", addresses=("198.51.100.1",)))
    planner.update([*outside, *speakers])
    (entry,) = planner.plan.entries.values()
    assert entry.tunnels[entry.cluster.index(Backend("10.0.4.210", 80))] == "192.0.2.34"

    class Counted(dict[str, str]):
        def get(self, name: str, missing: str = "") -> str:  # type: ignore[override]
            nonlocal looks
            looks += 1
            return super().get(name, missing)

    ways = Counted(planner.tunnels.ways(Family.IPV4))
    planner.tunnels.ways = lambda _: ways  # type: ignore[method-assign,assignment]
    for ready in (False, True, False):
        planner.update(_service(3000, lambda n, ready=ready: {"ready": ready or n != 1234})[13:14])  # type: ignore[misc]
        (entry,) = planner.plan.entries.values()
        assert entry.tunnels == tuple(f"192.0.2.{_number(b) % 50}" for b in entry.cluster)
    assert looks <= 6


def _number(backend: Backend) -> int:
    _, high, middle, low = map(int, backend.address.split("."))
    return high << 16 | middle << 8 | low


def test_the_local_set_falls_back_by_itself_slice_by_slice() -> None:
    """A ready endpoint elsewhere does not keep this node from those of its own that serve while they terminate."""
    merged = MergedEndpoints(lambda piece: piece.ports[0].port, (), "here", "")
    ready = make_endpoint("10.0.0.1", True, True, False, "there")
    draining = make_endpoint("10.0.0.2", False, True, True, "here")
    ports = (EndpointPort("p", Protocol.TCP, 80),)
    for number, endpoint in enumerate((ready, draining)):
        merged.replace(None, EndpointSlice("n", f"s-{number}", "s", Family.IPV4, ports, (endpoint,)))
        found, _ = merged.sets(lingering=False)
    assert (found.cluster, found.local) == ((Backend("10.0.0.1", 80),), (Backend("10.0.0.2", 80, True),))
    assert (found.cluster_terminating, found.local_terminating) == (False, True)


def test_one_change_where_nobody_has_this_nodes_name_looks_at_few_endpoints() -> None:
    """And takes no memory beside that of the set."""
    planner, looks = Planner(NodeConfig(name="me")), 0
    planner.update(_service(3000))
    doubtful = planner.places.doubtful

    def counted(name: str) -> bool:
        nonlocal looks
        looks += 1
        return doubtful(name)

    planner.places.doubtful = counted  # type: ignore[method-assign]
    for ready in (False, True, False):
        planner.update(_service(3000, lambda n, ready=ready: {"ready": ready or n != 1234})[13:14])  # type: ignore[misc]
        (entry,) = planner.plan.entries.values()
        assert entry.unplaced is entry.cluster
    assert looks <= 6


def test_backends_that_stay_are_the_same_objects() -> None:
    """What compares and finds differences counts on it."""
    planner = Planner(NodeConfig(name="n1"))
    planner.update(_service(3000))
    (entry,) = planner.plan.entries.values()
    planner.update(_service(3000, lambda n: {"ready": n != 1234})[13:14])
    (after,) = planner.plan.entries.values()
    assert difference(entry.cluster, after.cluster) == ([Backend("10.0.4.210", 80)], [])
    ours = {backend.address: backend for backend in entry.cluster}
    assert all(backend is ours[backend.address] for backend in after.cluster)


@pytest.mark.parametrize("count", [3000, 30])
def test_slices_that_go_and_ports_that_change(count: int) -> None:
    """A Service with many endpoints that loses slices and ports, and goes, leaves what a small one leaves."""
    planner = Planner(NodeConfig(name="n1"))
    objects = _service(count)
    planner.update(objects)
    key = EntryKey("n", "s", "", Protocol.TCP, Family.IPV4)
    assert len(planner.plan.entries[key].cluster) == count
    planner.update((), [item.ref for item in objects[2:]])
    assert len(planner.plan.entries[key].cluster) == min(100, count)
    planner.update((), [ObjectRef("Service", "n", "s")])
    assert not planner.plan.entries
    planner.update(objects[:1])
    assert len(planner.plan.entries[key].cluster) == min(100, count)
    planner.set_node(NodeConfig(name="n2"))
    assert [b.address for b in planner.plan.entries[key].local] == [
        f"10.0.0.{n}" for n in sorted(range(2, min(100, count), 50), key=str)
    ]


@settings(max_examples=200)
@given(st.lists(st.tuples(few, few), max_size=6), st.integers(1, 700))
def test_a_limited_set_follows_its_changes(steps: list[tuple[set[Backend], set[Backend]]], most: int) -> None:
    """What is kept is the same as if it were chosen anew, and nobody changes places without need."""
    limit, members = Limit(most, "here"), tuple(sorted(MANY[:650]))
    kept = limit.keep(members)
    for gone, come in steps:
        before, members = kept, tuple(sorted(set(members).difference(gone).union(come)))
        kept = limit.keep(members)
        assert kept == Limit(most, "here").keep(members)
        assert set(kept) <= set(members)
        assert len(kept) == min(most, len(members))
        assert limit.reached == (len(members) > most)
        assert len(difference(before, kept).added) <= len(gone) + len(come)


def test_nodes_use_different_endpoints_of_too_many() -> None:
    members = tuple(sorted(MANY))
    kept = [set(Limit(350, f"node{number}").keep(members)) for number in range(40)]
    assert set().union(*kept) == set(members)


def test_a_service_with_more_endpoints_than_a_plane_holds_is_limited_and_told() -> None:
    planner = Planner(NodeConfig(name="n1", most_backends=1000))
    other = Service("n", "other", cluster_ips=("10.96.0.2",), ports=(ServicePortSpec("", Protocol.TCP, 80),))
    objects = _service(1200)
    planner.update([*objects, other])
    key = EntryKey("n", "s", "", Protocol.TCP, Family.IPV4)
    before = planner.plan.entries[key]
    assert (len(before.cluster), before.limited) == (1000, True)
    assert [(str(p.ref), p.field) for found in planner.problems.values() for p in found] == [
        ("Service n/s", "endpoints of port without a name/tcp (IPv4)")
    ]
    assert not planner.update(objects[:3])
    (change,) = planner.update(_service(1200, lambda n: {"ready": n != 300})[4:5]).entries
    assert change.new is not None
    assert len(change.new.cluster) == 1000
    assert len(difference(before.cluster, change.new.cluster).added) <= 1
    planner.update((), [item.ref for item in objects[-2:]])
    assert (len(planner.plan.entries[key].cluster), planner.plan.entries[key].limited) == (999, False)
    assert not planner.problems
    planner.update(objects[-2:])
    assert planner.problems
    planner.set_node(NodeConfig(name="n1", most_backends=0))
    assert len(planner.plan.entries[key].cluster) == 1199
    assert not planner.problems
