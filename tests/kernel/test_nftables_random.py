"""Random clusters that change at random: after every change the kernel holds what the plan says, and nothing else."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.model.net import Family
from dataplane.model.objects import ModelObject
from dataplane.plan.planner import Planner
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan
from dataplane.planes.nftables import load
from dataplane.planes.nftables.elements import seats
from dataplane.planes.nftables.load import TEXT_LIMIT
from dataplane.planes.nftables.netlink.state import table_state
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules.refusals import REFUSALS
from dataplane.planes.nftables.rules.skeleton import chains, declarations
from dataplane.planes.nftables.rules.syntax import syntax_for
from dataplane.policy.difference import LARGE
from tests.unit.clusters import clusters, decoded, node_config, nodes

FAMILIES = (Family.IPV4, Family.IPV6)


def copy_of(plan: Plan) -> Plan:
    return msgspec.structs.replace(plan, entries=dict(plan.entries), health_checks=dict(plan.health_checks))


def assert_empty(plane: NftablesPlane, plan: Plan) -> None:
    """Only the skeleton is left."""
    for family in FAMILIES:
        syntax = syntax_for(family, "hotplane")
        state = table_state(syntax, plane._store)
        assert not any(state.elements.values())
        empty = {"restricted", *(refusal.capture_chain for refusal in REFUSALS)}
        assert set(state.rules) == {*chains(syntax, family, plan.node), *empty}
        assert state.sets == set(declarations(syntax))


@pytest.fixture(params=[(TEXT_LIMIT, LARGE), (0, LARGE), (TEXT_LIMIT, 1)], ids=["text", "pieces", "large"])
def plane(namespace: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> NftablesPlane:
    """Planes whose loads are one transaction of text, whose loads go in small pieces, and that treat every Service with
    backends as one with many."""
    text_limit, large = request.param
    monkeypatch.setattr(load, "ELEMENTS_A_TRANSACTION", 7)
    monkeypatch.setattr(seats, "LARGE", large)
    return in_netns(namespace, NftablesPlane, text_limit=text_limit)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(node=nodes(), stages=st.lists(clusters(), min_size=2, max_size=4), other=nodes())
def test_every_change_leaves_what_the_plan_says(plane, node, stages, other):  # type: ignore[no-untyped-def]
    plane.cleanup()
    planner = Planner(node_config(node))
    present: dict[str, ModelObject] = {}

    def change_to(objects: list[ModelObject]) -> None:
        wanted = {str(item.ref): item for item in objects}
        gone = [item.ref for name, item in present.items() if name not in wanted]
        plane.apply(planner.update(objects, gone))
        present.clear()
        present.update(wanted)

    plane.load(copy_of(planner.plan))
    for number, objects in enumerate(stages):
        change_to(decoded(objects))
        assert plane.read_back() == rows(planner.plan)
        if number == 0:
            plane.apply(planner.set_node(node_config(other)))
            assert plane.read_back() == rows(planner.plan)
        # A second instance finds nothing to change, and carries on from there.
        assert not plane.load(copy_of(planner.plan))
        assert plane.read_back() == rows(planner.plan)
    change_to([])
    assert plane.read_back() == {}
    assert_empty(plane, planner.plan)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(node=nodes(), before=clusters(), after=clusters())
def test_a_table_of_an_earlier_run_becomes_the_plan(plane, node, before, after):  # type: ignore[no-untyped-def]
    plane.cleanup()
    first, second = Planner(node_config(node)), Planner(node_config(node))
    first.update(decoded(before))
    second.update(decoded(after))
    plane.load(first.plan)
    change = plane.load(second.plan)
    assert plane.read_back() == rows(second.plan)
    old, new = rows(first.plan), rows(second.plan)
    differing = {k for k in old.keys() | new.keys() if old.get(k) != new.get(k)}
    told = {f.key for c in change.entries for e in (c.old, c.new) if e is not None for f in e.frontends}
    assert differing <= told
    assert all(c.old != c.new for c in change.entries)
