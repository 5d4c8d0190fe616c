"""The plan that other commands find after a daemon was killed: the saved one and every change since."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck as Unhealthy
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ctl.store import journal as journal_module
from ctl.store import state
from ctl.store.journal import Journal
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import apply_change, diff
from dataplane.plan.planner import Planner
from dataplane.plan.types import EntryKey, HealthCheck, Plan, PlanEntry
from dataplane.policy.difference import LARGE
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Forwarding
from dataplane.policy.node import NodeConfig
from tests.unit.clusters import clusters, decoded, node_config, nodes


def saved(plan: Plan, journal: int = 0) -> state.Saved:
    return state.Saved.of("nftables", plan, journal=journal)


def loaded(folder: Path) -> Plan:
    found = state.load(folder)
    assert found is not None
    return found.plan()


def same(one: Plan, other: Plan) -> bool:
    return not diff(one, other)


@pytest.mark.parametrize("large", [LARGE, 0])
@settings(max_examples=25, suppress_health_check=[Unhealthy.function_scoped_fixture, Unhealthy.too_slow])
@given(data=st.data())
def test_the_plan_is_what_was_saved_and_all_changes_since(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, large: int, data: st.DataObject
) -> None:
    """large: 0 has every entry written down by what it differs in."""
    monkeypatch.setattr(journal_module, "LARGE", large)
    folder = tmp_path_factory.mktemp("state")
    plans = [Plan(NodeConfig(name="start"))]
    for _ in range(4):
        planner = Planner(node_config(data.draw(nodes())))
        planner.update(decoded(data.draw(clusters())))
        plans.append(planner.plan)
    now = saved(plans[0]).plan()
    journal = Journal(state.plan_path(folder), 1)
    state.save(folder, saved(now, 1))
    for number, plan in enumerate(plans[1:], 2):
        change = diff(now, plan)
        journal.append(change)
        apply_change(now, change)
        assert same(loaded(folder), plan)
        if data.draw(st.booleans()):
            journal.close()
            journal = Journal(state.plan_path(folder), number)
            assert same(loaded(folder), plan), "a new journal while the plan is still being saved"
            if data.draw(st.booleans()):
                state.save(folder, saved(now, number))
                assert len(list(folder.glob("*.journal-*"))) == 1, "the older ones are gone"
    journal.close()
    assert same(loaded(folder), plans[-1])


def _plans(count: int) -> list[Plan]:
    """Plans of which each has an entry that the others lack."""
    keys = [EntryKey("n", f"s{number}", "", Protocol.TCP, Family.IPV4) for number in range(count)]
    return [Plan(NodeConfig(), {key: PlanEntry(key, (Backend("10.0.0.1", 80),))}) for key in keys]


@pytest.mark.parametrize("when", ["before the journals are listed", "before they are read"])
def test_a_plan_that_is_saved_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """A daemon saves the next plan and removes the journals that the one just read asks for."""
    first, second, third = _plans(3)
    path, numbers = state.plan_path(tmp_path), journal_module._numbers
    journal = Journal(path, 1)
    state.save(tmp_path, saved(first, 1))
    journal.append(diff(first, second))
    journal.close()

    def save() -> None:
        later = Journal(path, 2)
        state.save(tmp_path, saved(second, 2))
        later.append(diff(second, third))
        later.close()

    def listed(base: Path) -> Iterator[int]:
        monkeypatch.setattr(journal_module, "_numbers", numbers)  # it happens once
        found = list(numbers(base)) if when == "before they are read" else []
        save()
        return iter(found or list(numbers(base)))

    monkeypatch.setattr(journal_module, "_numbers", listed)
    assert same(loaded(tmp_path), third)


def test_a_plan_that_becomes_stale_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [only] = _plans(1)
    state.save(tmp_path, saved(only))
    look = state.is_stale

    def is_stale(folder: Path) -> bool:
        found = look(folder)
        state.mark_stale(folder)
        return found

    monkeypatch.setattr(state, "is_stale", is_stale)
    assert same(loaded(tmp_path), only)


def test_entries_come_and_go_over_several_journals(tmp_path: Path) -> None:
    """In the order in which they were begun, whatever their names sort as: the last word on an entry counts."""
    keys = [EntryKey("n", name, "", Protocol.TCP, Family.IPV4) for name in ("a", "b")]
    steps = [
        Plan(NodeConfig(), {key: PlanEntry(key, (Backend(f"10.0.0.{number}", 80),)) for key in keys[number % 3 :]})
        for number in range(12)
    ]
    state.save(tmp_path, saved(steps[0], 1))
    for number, (before, after) in enumerate(pairwise(steps), 1):
        journal = Journal(state.plan_path(tmp_path), number)
        journal.append(diff(before, after))
        journal.close()
        assert same(loaded(tmp_path), after)


def test_half_a_change_at_the_end_does_not_count(tmp_path: Path) -> None:
    check = HealthCheck("default", "a", 30000, 1)
    first, second = Plan(NodeConfig(name="n")), Plan(NodeConfig(name="n"), health_checks={("default", "a"): check})
    journal = Journal(state.plan_path(tmp_path), 7)
    state.save(tmp_path, saved(first, 7))
    journal.append(diff(first, second))
    journal.append(diff(second, first))
    journal.close()
    [path] = tmp_path.glob("*.journal-*")
    path.write_bytes(path.read_bytes()[:-1])
    assert same(loaded(tmp_path), second)


def test_a_plan_that_is_saved_for_good_needs_no_journal(tmp_path: Path) -> None:
    journal = Journal(state.plan_path(tmp_path), 7)
    state.save(tmp_path, saved(Plan(NodeConfig(name="n")), 7))
    journal.append(diff(Plan(NodeConfig(name="n")), Plan(NodeConfig(name="m"))))
    journal.close()
    state.save(tmp_path, saved(Plan(NodeConfig(name="applied"))))
    assert loaded(tmp_path).node.name == "applied"
    assert not list(tmp_path.glob("*.journal-*"))
    assert state.forget(tmp_path)
    assert not tmp_path.exists()


def test_one_endpoint_of_many_is_a_short_step(tmp_path: Path) -> None:
    key = EntryKey("n", "s", "", Protocol.TCP, Family.IPV4)
    members = tuple(Backend(f"10.0.{n >> 8}.{n & 255}", 80) for n in range(5000))
    sets = [tuple(sorted(members[:count])) for count in (len(members), 4999)]
    plans = [Plan(NodeConfig(), {key: PlanEntry(key, found, unplaced=found)}) for found in sets]
    journal = Journal(state.plan_path(tmp_path), 1)
    state.save(tmp_path, saved(plans[0], 1))
    journal.append(diff(*plans))
    journal.close()
    [path] = tmp_path.glob("*.journal-*")
    assert path.stat().st_size < 200
    assert same(loaded(tmp_path), plans[1])


def test_ways_of_forwarded_traffic_are_written_down_by_what_changed(tmp_path: Path) -> None:
    key = EntryKey("n", "s", "", Protocol.TCP, Family.IPV4)
    members = tuple(sorted(Backend(f"10.0.{n >> 8}.{n & 255}", 80) for n in range(5000)))
    ways = tuple(f"192.0.2.{n % 50}" for n in range(5000))
    fewer, moved = members[:1000] + members[1001:], (*ways[:7], "198.51.100.7", *ways[8:1000], *ways[1001:])
    steps = [PlanEntry(key, members), PlanEntry(key, members, forwarding=Forwarding.TUNNEL, tunnels=ways)]
    steps += [replace(steps[1], cluster=fewer, tunnels=moved), steps[1], PlanEntry(key, fewer)]
    plans = [Plan(NodeConfig(), {key: entry}, tunnel_peers=frozenset(entry.tunnels)) for entry in steps]
    journal = Journal(state.plan_path(tmp_path), 1)
    state.save(tmp_path, saved(plans[0], 1))
    [path] = tmp_path.glob("*.journal-*")
    sizes = [0]
    for before, after in pairwise(plans):
        journal.append(diff(before, after))
        assert same(loaded(tmp_path), after)
        sizes.append(path.stat().st_size)
    journal.close()
    for number in (2, 3, 4):
        assert sizes[number] - sizes[number - 1] < 2000, "peers are a thousand bytes of it"
    state.save(tmp_path, saved(plans[1]))
    assert same(loaded(tmp_path), plans[1])


def test_a_step_that_does_not_begin_where_the_plan_stands_is_an_error(tmp_path: Path) -> None:
    key = EntryKey("n", "s", "", Protocol.TCP, Family.IPV4)
    members = tuple(sorted(Backend(f"10.0.0.{n}", 80) for n in range(100)))
    plans = [Plan(NodeConfig(), {key: PlanEntry(key, members[first:])}) for first in range(3)]
    journal = Journal(state.plan_path(tmp_path), 1)
    state.save(tmp_path, saved(plans[1], 1))
    journal.append(diff(plans[0], plans[1]))
    journal.close()
    with pytest.raises(state.StateError, match="apply the manifests again"):
        state.load(tmp_path)
