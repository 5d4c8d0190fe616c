"""No setting of a plan is lost where a plan or a change is made from another."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ctl.daemon.sync.kernel import Kernel
from ctl.daemon.sync.ledger import Ledger
from ctl.store import state
from ctl.store.journal import Journal, replay
from ctl.store.state import Saved
from dataplane.plan.change import SETTINGS, PlanChange, apply_change, diff, merged
from dataplane.plan.rows import rows
from dataplane.plan.types import HealthCheck, OffPod, Plan, Table
from dataplane.planes.base import EntryRefused, Plane, PlaneError, load_others
from dataplane.policy.forwarding import Dispatch
from dataplane.policy.node import NodeConfig
from tests.unit.test_daemon_kernel import fresh

POD = OffPod("default", "pod", "uid", ("10.0.0.9",), False, "label")
CHANGED: dict[str, Any] = {
    "node": NodeConfig(name="n1"),
    "service_cidrs": ("10.96.0.0/12",),
    "connect_off": {("default", "pod"): POD},
    "tunnel_peers": frozenset({"192.0.2.2"}),
    "tunnel_formats": {"192.0.2.2": Dispatch.GENEVE},
    "tunnel_moves": {"192.0.2.1": "192.0.2.2"},
}
CHECKS = {("default", "web"): HealthCheck("default", "web", 30000, 1)}
EACH = pytest.mark.parametrize("name", SETTINGS)


def whole() -> Plan:
    return Plan(entries={each.key: each for each in fresh("good", "bad")}, health_checks=dict(CHECKS), **CHANGED)


class Picky(Plane):
    """Refuses plans with an entry whose name is bad; names it or not. loaded: the last plan that it took."""

    name = "picky"

    def __init__(self, *, names: bool) -> None:
        self.names = names
        self.loaded = Plan(NodeConfig())

    def load(self, plan: Plan) -> PlanChange:
        bad = [key for key in plan.entries if key.name == "bad"]
        if bad:
            raise EntryRefused(bad[0], "refused") if self.names else PlaneError("refused")
        self.loaded = plan
        return PlanChange()

    def apply(self, change: PlanChange) -> None:
        return None

    def read_back(self) -> Table:
        return rows(Plan(NodeConfig(), {each.key: each for each in fresh("good")}))

    def cleanup(self) -> None:
        return None


def test_the_values_here_are_all_settings_that_there_are() -> None:
    assert CHANGED.keys() == {*SETTINGS}
    assert {*Plan.__struct_fields__} == {*SETTINGS, "entries", "health_checks"}


@EACH
def test_a_change_has_a_setting_and_gives_it_to_a_plan(name: str) -> None:
    change = PlanChange(**{name: CHANGED[name]})
    assert change
    plan = Plan(NodeConfig())
    apply_change(plan, change)
    assert getattr(plan, name) == CHANGED[name]
    assert diff(Plan(NodeConfig()), plan) == change
    assert diff(plan, plan) == PlanChange()


@EACH
def test_of_consecutive_changes_the_later_one_counts(name: str) -> None:
    change, later = PlanChange(**{name: CHANGED[name]}), PlanChange(node=NodeConfig(name="n2"))
    assert getattr(merged(later, change), name) == CHANGED[name]
    assert merged(change, later).settings() == {name: CHANGED[name], **later.settings()}


@EACH
def test_a_setting_that_failed_is_part_of_the_next_change(name: str) -> None:
    ledger, plan = Ledger(), whole()
    ledger.behind([PlanChange(**{name: CHANGED[name]})])
    assert len(ledger) == 1
    assert ledger.due(PlanChange(), plan) == PlanChange(**{name: CHANGED[name]})
    ledger.clear()
    assert not ledger.due(PlanChange(), plan)


def test_a_plan_without_what_is_refused_has_all_settings() -> None:
    plane = Picky(names=True)
    load_others(plane, whole())
    assert plane.loaded == Plan(entries={each.key: each for each in fresh("good")}, health_checks=CHECKS, **CHANGED)


def test_a_plan_that_is_loaded_by_parts_has_all_settings() -> None:
    plane, plan = Picky(names=False), whole()

    async def load() -> None:
        kernel = Kernel(lambda *_: None)
        await kernel.use(lambda: plane)
        await kernel.load(plan)
        kernel.close()

    asyncio.run(load())
    assert plane.loaded == Plan(entries={each.key: each for each in fresh("good")}, **CHANGED)


@EACH
def test_what_is_saved_and_noted_has_all_settings(name: str, tmp_path: Path) -> None:
    assert Saved.of("nftables", whole()).plan() == whole()
    base = state.plan_path(tmp_path)
    journal = Journal(base, 1)
    journal.append(PlanChange(**{name: CHANGED[name]}))
    journal.close()
    plan = Plan(NodeConfig())
    assert replay(base, 1, plan) == 1
    assert getattr(plan, name) == CHANGED[name]
