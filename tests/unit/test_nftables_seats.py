"""A change of a large entry by what it moves, against the same change by everything that there is."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, PlanEntry
from dataplane.planes.nftables.elements import seats
from dataplane.planes.nftables.elements.books import Books
from dataplane.planes.nftables.elements.placement import SLOTS, Placement, place
from dataplane.planes.nftables.elements.seats import Seats
from dataplane.planes.nftables.elements.transaction import Parts
from dataplane.planes.nftables.netlink.fields import Layouts
from dataplane.planes.nftables.rules.syntax import syntax_for
from dataplane.policy.difference import LARGE
from dataplane.policy.endpoints import Backend
from dataplane.policy.routes import cluster_ip_routes, external_routes

KEY = EntryKey("n", "s", "", Protocol.TCP, Family.IPV4)
_backend = st.builds(Backend, st.integers(2, 30).map(lambda n: f"10.0.0.{n}"), st.sampled_from((80, 80, 81)))
_sets = st.lists(_backend, min_size=1, max_size=12, unique=True)


def entry(members: Sequence[Backend], here: set[str], affinity: int, external_local: bool) -> PlanEntry:
    cluster = tuple(sorted(Backend(b.address, b.port, b.address in here) for b in members))
    local = tuple(b for b in cluster if b.local)
    routes = cluster_ip_routes(bool(cluster), bool(local), False, True, False)
    outside = external_routes(bool(cluster), bool(local), external_local)
    return PlanEntry(
        KEY, cluster, local,
        (
            Frontend(FrontendKind.CLUSTER_IP, FrontendKey(Family.IPV4, "10.96.0.1", Protocol.TCP, 80), routes),
            Frontend(FrontendKind.NODE_PORT, FrontendKey(Family.IPV4, "", Protocol.TCP, 30080), outside),
        ),
        affinity, external_local=external_local,
    )  # fmt: skip


def books(first: PlanEntry, placement: Placement) -> Books:
    syntax = {Family.IPV4: syntax_for(Family.IPV4, "hotplane")}
    made = Books(syntax, Layouts(syntax.values()))
    transaction = made.transaction()
    transaction.add(made.compile(first, placement))
    transaction.parts()
    transaction.commit()
    return made


def change(to: Books, old: PlanEntry, new: PlanEntry) -> Parts:
    transaction = to.transaction()
    commit = to.replace(EntryChange(old, new), transaction)
    parts = transaction.parts()
    transaction.commit()
    commit()
    return parts


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(st.tuples(_sets, st.sets(st.sampled_from([f"10.0.0.{n}" for n in range(2, 30)]))), min_size=2, max_size=6),
    st.sampled_from((0, 30)),
    st.booleans(),
)
def test_what_moves_is_all_that_changes(
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[list[Backend], set[str]]],
    affinity: int,
    external_local: bool,
) -> None:
    entries = [entry(members, here, affinity, external_local) for members, here in steps]
    monkeypatch.setattr(seats, "LARGE", LARGE)
    whole = books(entries[0], place(entries[0]))
    large = books(entries[0], place(entries[0]))
    for old, new in pairwise(entries):
        monkeypatch.setattr(seats, "LARGE", LARGE)
        wanted = change(whole, old, new)
        monkeypatch.setattr(seats, "LARGE", 1)
        found = change(large, old, new)
        assert [sorted(part) if isinstance(part, list) else part for part in found] == [
            sorted(part) if isinstance(part, list) else part for part in wanted
        ]
        assert large._placement(new) == whole._placement(new)


def test_a_change_that_is_not_taken_leaves_the_seats_as_they_were() -> None:
    old = entry([Backend(f"10.0.0.{n}", 80) for n in range(2, 100)], set(), 30, False)
    new = entry([Backend(f"10.0.0.{n}", 80) for n in range(4, 101)], {"10.0.0.9"}, 30, False)
    held = Seats(place(old))
    moves = held.moves(old, new)
    held.before(moves, old, new), held.after(moves, old, new)
    assert held.placement() == place(old)
    held.commit(moves)
    assert held.placement() == place(new, place(old))


def test_slots_stay_with_their_backends_until_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer gets a slot that is free, be it the one of a backend that goes with the same change."""
    monkeypatch.setattr("dataplane.planes.nftables.elements.placement.SLOTS", 98)
    old = entry([Backend(f"10.0.0.{n}", 80) for n in range(2, 100)], set(), 30, False)
    new = entry([Backend(f"10.0.0.{n}", 80) for n in range(3, 101)], set(), 30, False)
    held = Seats(place(old))
    moves = held.moves(old, new)
    held.commit(moves)
    slots = held.placement().slots
    assert sorted(slots.values()) == list(range(98))
    assert slots["10.0.0.100", 80] == place(old).slots["10.0.0.2", 80]
    assert SLOTS > 98
