"""Plans under change, on random clusters: whatever the order of events, the plan is that of the objects."""

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.model.objects import ModelObject, ObjectRef
from dataplane.plan.change import PlanChange, apply_change, diff
from dataplane.plan.planner import Planner
from dataplane.plan.types import Plan
from dataplane.policy.difference import LARGE
from dataplane.policy.node import NodeConfig
from tests.unit.clusters import clusters, decoded, node_config, nodes
from tests.unit.naive import NaiveNode

Objects = list[dict[str, Any]]


def planned(objects: list[ModelObject], node: NodeConfig) -> Planner:
    planner = Planner(node)
    planner.update(objects)
    return planner


def copied(plan: Plan) -> Plan:
    return Plan(plan.node, dict(plan.entries), plan.service_cidrs, dict(plan.health_checks))


@settings(max_examples=100, deadline=None)
@given(clusters(), clusters(), nodes(), nodes())
def test_diff_leads_from_one_plan_to_the_other(one: Objects, two: Objects, here: NaiveNode, there: NaiveNode) -> None:
    old, new = planned(decoded(one), node_config(here)).plan, planned(decoded(two), node_config(there)).plan
    change = diff(old, new)
    assert bool(change) == (old != new)
    assert all(entry.old != entry.new for entry in change.entries)
    reached = copied(old)
    apply_change(reached, change)
    assert reached == new
    apply_change(reached, PlanChange(entries=tuple(change.inverse_of_entries())))
    assert reached.entries == old.entries
    assert not diff(new, copied(new))


@st.composite
def histories(draw: st.DrawFn) -> list[list[Objects]]:
    """Several states of one small cluster; on the way to each, its objects come in batches of random size."""
    states = draw(st.lists(clusters(), min_size=2, max_size=4))
    history = []
    for state in states:
        cuts = sorted(draw(st.lists(st.integers(0, len(state)), max_size=3)))
        bounds = [0, *cuts, len(state)]
        history.append([state[start:end] for start, end in pairwise(bounds)])
    return history


@settings(max_examples=150, deadline=None)
@given(histories(), nodes(), nodes(), st.booleans(), st.sampled_from((LARGE, 0)))
def test_event_by_event_is_the_same_as_all_at_once(
    history: list[list[Objects]], node: NaiveNode, later_node: NaiveNode, deletes_first: bool, large: int
) -> None:
    """The planner, the sum of its changes, and a fresh planner over the final objects agree, problems included.

    large: 0 has the planner treat every Service as one with many endpoints.
    """
    planner = Planner(node_config(node), large)
    follower = copied(planner.plan)
    known: dict[ObjectRef, ModelObject] = {}
    for batches in history:
        state = {item.ref: item for batch in batches for item in decoded(batch)}
        gone = [ref for ref in known if ref not in state]
        steps: list[tuple[list[ModelObject], list[ObjectRef]]] = [(decoded(batch), []) for batch in batches]
        steps.insert(0 if deletes_first else len(steps), ([], gone))
        for upserts, deletes in steps:
            _follow(planner, follower, planner.update(upserts, deletes))
        known = state
        fresh = planned(list(known.values()), planner.plan.node)
        assert planner.plan == fresh.plan
        assert planner.problems == fresh.problems
    _follow(planner, follower, planner.set_node(node_config(later_node)))
    assert planner.plan == planned(list(known.values()), node_config(later_node)).plan


def _follow(planner: Planner, follower: Plan, change: PlanChange) -> None:
    """Apply what the planner says that it changed to a copy of its plan; the two may never differ."""
    assert bool(change) == (follower != planner.plan)
    for entry in change.entries:
        assert follower.entries.get(entry.key) == entry.old
        assert entry.old != entry.new
    apply_change(follower, change)
    assert follower == planner.plan


@settings(max_examples=50, deadline=None)
@given(clusters(), nodes())
def test_the_same_objects_again_change_nothing(objects: Objects, node: NaiveNode) -> None:
    planner = planned(decoded(objects), node_config(node))
    assert not planner.update(decoded(objects[::-1]))
    assert not planner.set_node(node_config(node))
    emptied = planner.update((), [item.ref for item in decoded(objects)])
    assert not planner.plan.entries
    assert not planner.plan.health_checks
    assert not planner.problems
    assert all(entry.new is None for entry in emptied.entries)
