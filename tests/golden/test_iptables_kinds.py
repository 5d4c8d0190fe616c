"""One Service of each kind: the exact tables, an update, the tables again, and nothing left at the end.

The expected texts lie beside this file in `iptables/`. They are iptables-save output without counters; the kernel
tests show that the kernel prints the same.
"""

from pathlib import Path

import pytest

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import ObjectRef
from dataplane.plan.change import PlanChange
from dataplane.plan.planner import Planner
from dataplane.plan.rows import rows
from dataplane.planes.iptables.fake import FakeTables
from dataplane.planes.iptables.plane import IptablesPlane
from dataplane.planes.iptables.readback import chains_of
from dataplane.planes.iptables.rules.names import endpoint_chain, is_service_chain, service_chains
from tests.golden.iptables.plans import NODE, every_kind, slice_of

EXPECTED = Path(__file__).with_name("iptables")


def text(tables: FakeTables) -> str:
    return tables.save("filter") + tables.save("nat")


@pytest.mark.parametrize("family", list(Family))
def test_every_kind_of_service(family: Family) -> None:
    tables = FakeTables(family)
    plane = IptablesPlane(tables=[tables], ensure_sysctl=lambda name, value: None)
    planner = Planner(NODE)
    planner.update(every_kind())
    plane.load(planner.plan)
    assert text(tables) == (EXPECTED / f"kinds.ipv{family.value}").read_text()
    assert plane.read_back() == {key: row for key, row in rows(planner.plan).items() if key.family is family}

    pods = ("10.42.0.9", "10.42.0.10") if family is Family.IPV4 else ("fd00:10:42::9", "fd00:10:42::10")
    plane.apply(planner.update([slice_of("plain", *pods), slice_of("nobody", pods[0])],
                               [ObjectRef("Service", "default", "sticky")]))  # fmt: skip
    assert text(tables) == (EXPECTED / f"kinds-updated.ipv{family.value}").read_text()

    plane.apply(planner.update(deletes=[item.ref for item in every_kind()]))
    assert not any(map(is_service_chain, chains_of(text(tables))))
    assert not plane.read_back()
    assert "default/" not in text(tables)

    plane.cleanup()
    assert not [chain for chain in chains_of(text(tables)) if chain.startswith("KUBE-")]
    assert "-A " not in text(tables)


def test_an_update_restores_only_the_chains_that_changed() -> None:
    tables = FakeTables(Family.IPV4)
    plane = IptablesPlane(tables=[tables], ensure_sysctl=lambda name, value: None)
    planner = Planner(NODE)
    planner.update(every_kind())
    plane.load(planner.plan)
    plane.apply(planner.update([slice_of("plain", "10.42.0.9")]))
    balancer, gone = service_chains("default/plain", Protocol.TCP).cluster, ("10.42.0.10:8080", "10.42.1.11:8080")
    stale = {endpoint_chain("default/plain", Protocol.TCP, endpoint) for endpoint in gone}
    stays = endpoint_chain("default/plain", Protocol.TCP, "10.42.0.9:8080")
    assert set(filter(is_service_chain, chains_of(tables.restored[-1]))) == {balancer, stays, *stale}
    assert {line.removeprefix("-X ") for line in tables.restored[-1].splitlines() if line.startswith("-X ")} == stale


def test_a_change_of_the_other_family_or_of_nothing_restores_nothing() -> None:
    tables = FakeTables(Family.IPV4)
    plane = IptablesPlane(tables=[tables], ensure_sysctl=lambda name, value: None)
    planner = Planner(NODE)
    planner.update(every_kind())
    plane.load(planner.plan)
    plane.apply(planner.update([slice_of("plain", "fd00:10:42::77")]))
    plane.apply(PlanChange())
    assert len(tables.restored) == 1
