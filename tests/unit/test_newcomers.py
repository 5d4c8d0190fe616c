"""A whole cluster at once is planned as if its objects had come one after another."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.model.objects import Service
from dataplane.plan import planner as planning
from dataplane.plan.newcomers import is_plain
from dataplane.plan.planner import Planner
from tests.unit.clusters import clusters, decoded, node_config, nodes
from tests.unit.test_planner import NODE, endpoint_slice, key, service


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of objects is a load."""
    monkeypatch.setattr(planning, "_MANY", 1)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(node=nodes(), before=clusters(), after=clusters(), vouched=st.booleans())
def test_all_at_once_is_one_after_another(monkeypatch, node, before, after, vouched):  # type: ignore[no-untyped-def]
    one, many = (Planner(node_config(node), vouched=vouched) for _ in range(2))
    for cluster in (before, after):  # the second meets what the first has left
        objects = decoded(cluster)
        for each in objects:
            one.update([each])
        with monkeypatch.context() as patched:
            patched.setattr(planning, "_MANY", 1)
            many.update(objects)
        assert many.plan == one.plan
        assert many.problems == one.problems
    gone = [each.ref for each in decoded(before) + decoded(after)]
    assert many.update([], gone).entries == one.update([], gone).entries
    assert not many.plan.entries


@pytest.mark.usefixtures("at_once")
def test_the_change_says_what_is_new() -> None:
    planner = Planner(NODE)
    change = planner.update([service(), endpoint_slice("10.244.0.6", "10.244.0.5")])
    assert [(each.old, each.new) for each in change.entries] == [(None, planner.plan.entries[key()])]
    assert [str(b) for b in planner.plan.entries[key()].cluster] == ["10.244.0.5:8080", "10.244.0.6:8080"]


@pytest.mark.usefixtures("at_once")
def test_the_older_service_wins_whichever_comes_first() -> None:
    for order in (1, -1):
        planner = Planner(NODE)
        planner.update([service("young", created="2026-01-02"), service("old", created="2026-01-01")][::order])
        assert [len(planner.plan.entries[key(name)].frontends) for name in ("young", "old")] == [0, 1]
        assert [ref.name for ref in planner.problems] == ["young"]


def test_the_usual_service_is_plain() -> None:
    plain = service()
    assert isinstance(plain, Service)
    assert is_plain(plain)
    assert not is_plain(service(external_ips=("192.0.2.1",)))


@pytest.mark.usefixtures("at_once")
def test_what_is_said_of_one_slice_keeps_its_order() -> None:
    """It belonged to a Service that has another slice, then to one that has none."""
    planner = Planner(NODE)
    moved = [endpoint_slice("10.244.0.6", name="moved", owner=owner) for owner in ("web", "new")]
    planner.update([service(), service("new", "10.96.0.2"), endpoint_slice("10.244.0.5"), *moved])
    assert [str(b) for b in planner.plan.entries[key()].cluster] == ["10.244.0.5:8080"]
    assert [str(b) for b in planner.plan.entries[key("new")].cluster] == ["10.244.0.6:8080"]
