"""Loads in several batches: what packets see meanwhile, and what remains when one fails."""

import contextlib
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink.nfnetlink import Message
from dataplane.kernel.nft.messages import Sent
from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Family
from dataplane.plan.change import PlanChange
from dataplane.plan.planner import Planner
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables import load
from dataplane.planes.nftables.netlink.fields import Layouts, number_of
from dataplane.planes.nftables.netlink.state import TableReader, TableState, table_state
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules.flowtable import CHAIN
from dataplane.planes.nftables.rules.shapes import drawn_from, shape_of
from dataplane.planes.nftables.rules.skeleton import BASE_CHAINS
from dataplane.planes.nftables.rules.syntax import (
    BY_SOURCE_ACTION,
    DROP_ACTION,
    REJECT_ACTION,
    RESTRICTED_ACTION,
    syntax_for,
)
from tests.kernel.nftables_listing import nft
from tests.kernel.nftables_net import entry, plan_of, pods
from tests.unit.clusters import clusters, decoded, node_config, nodes

SYNTAX = {family: syntax_for(family, "hotplane") for family in Family}


class Store(ElementStore):
    """Refuses one transaction of elements, by its number."""

    refused = 0

    def send(self, messages: list[Message], *commands: Sequence[Sent]) -> None:
        self.refused -= 1
        if self.refused == 0:
            raise PlaneError("no more of this")
        super().send(messages, *commands)


class NoDeletions(Nft):
    """Refuses to delete tables."""

    def run(self, transaction: str) -> None:
        if "delete table" in transaction:
            raise PlaneError("not that")
        super().run(transaction)


class Kernel:
    """A namespace with a plane in it that loads in small batches."""

    def __init__(self, namespace: str, handle: type[Nft] = Nft) -> None:
        self.namespace = namespace
        self.store = in_netns(namespace, Store, Layouts(SYNTAX.values()))
        self.plane = in_netns(namespace, NftablesPlane, nft=in_netns(namespace, handle), store=self.store, text_limit=0)

    def states(self) -> dict[Family, TableState]:
        return {f: table_state(w, self.store) for f, w in SYNTAX.items() if self.store.has_table(w.own)}


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ELEMENTS_A_TRANSACTION", 7)


@pytest.fixture
def kernel(namespace: str) -> Kernel:
    return Kernel(namespace)


def services(count: int, *numbers: int) -> Plan:
    """Services of all shapes, sticky ones among them."""
    return plan_of(
        *(
            entry(v, pods(v, *numbers), port=1000 + n, name=f"s{n}", affinity=60 if n % 3 == 0 else 0)
            for v in (4, 6)
            for n in range(count)
        )
    )


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_load_that_fails_over_nothing_leaves_nothing(kernel: Kernel, batch: int) -> None:
    plan = services(10, 0, 1)
    kernel.store.refused = batch
    with pytest.raises(PlaneError, match="no more of this; what had been loaded was removed again: there is no table"):
        kernel.plane.load(plan)
    assert nft(kernel.namespace, "list", "ruleset") == ""
    with pytest.raises(PlaneError, match="load first"):
        kernel.plane.apply(PlanChange())
    kernel.plane.load(plan)
    assert kernel.plane.read_back() == rows(plan)


def test_what_cannot_be_removed_again_is_told_and_meets_no_packet(namespace: str) -> None:
    kernel = Kernel(namespace, NoDeletions)
    plan = services(10, 0, 1)
    kernel.store.refused = 3
    with pytest.raises(PlaneError, match=r"a part of the table stands, which no packet enters.*not that"):
        kernel.plane.load(plan)
    states = kernel.states()
    assert all(state.elements["services"] for family, state in states.items() if family is Family.IPV4)
    always = BASE_CHAINS.keys() - {CHAIN}  # that of the flowtable is there where it is asked for
    assert {state.rules[chain] for state in states.values() for chain in always} == {0}
    assert kernel.plane.read_back() == {}
    kernel.plane.load(plan)
    assert kernel.plane.read_back() == rows(plan)


def test_a_table_of_another_version_that_cannot_go_stands_beside_what_serves(namespace: str) -> None:
    kernel, plan = Kernel(namespace, NoDeletions), services(3, 0, 1)
    nft(namespace, "add", "table", "ip", "hotplane")
    with pytest.raises(PlaneError, match=r"not that; tables ip hotplane-stand-in and .* serve beside them: load again"):
        kernel.plane.load(plan)
    stand_in = in_netns(namespace, NftablesPlane, table="hotplane-stand-in")
    assert stand_in.read_back() == rows(plan)
    again = in_netns(namespace, NftablesPlane)
    again.load(plan)
    assert again.read_back() == rows(plan)
    assert in_netns(namespace, Nft).tables() == {("ip", "hotplane"), ("ip6", "hotplane")}


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_a_load_that_fails_over_a_table_says_so_and_can_be_repeated(kernel: Kernel, batch: int) -> None:
    before, after = services(12, 0, 1), services(8, 1, 2)
    kernel.plane.load(before)
    kernel.store.refused = batch
    with pytest.raises(PlaneError, match=r"no more of this; the table stands between .*: load again"):
        kernel.plane.load(after)
    assert_whole(kernel.states())
    with pytest.raises(PlaneError, match="load first"):
        kernel.plane.apply(PlanChange())
    kernel.plane.load(after)
    assert kernel.plane.read_back() == rows(after)
    assert not kernel.plane.load(after)


def test_a_load_that_fails_anywhere_can_be_repeated(kernel: Kernel) -> None:
    """Fewer endpoints, of which those that stay move: what fails, or a kill, leaves some of them twice."""
    before, after = services(3, 0, 1, 2), services(3, 1, 2)
    for batch in itertools.count(1):
        kernel.plane.cleanup()
        kernel.plane.load(before)
        kernel.store.refused = batch
        with contextlib.suppress(PlaneError):
            kernel.plane.load(after)
        done = kernel.store.refused > 0
        kernel.store.refused = 0
        kernel.plane.load(after)
        assert kernel.plane.read_back() == rows(after)
        if done:
            break
    assert batch > 3


def assert_whole(states: dict[Family, TableState]) -> None:
    """Whatever a frontend's element says leads somewhere: to a chain that exists, with as many backends as it draws
    from."""
    for family, state in states.items():
        syntax = SYNTAX[family]
        reader = TableReader(syntax, family, state)
        for kind in (syntax.services, syntax.nodeports):
            for key, value in state.elements[kind.first].items():
                actions = [value[:4]]
                if number_of(actions[0]) == RESTRICTED_ACTION:
                    actions = [state.elements["restricted"][key]]
                if number_of(actions[0]) == BY_SOURCE_ACTION:
                    actions = [state.elements[name][key] for name in (kind.pod, kind.node, kind.outside)]
                for action in actions:
                    if number_of(action) in (DROP_ACTION, REJECT_ACTION):
                        continue
                    name = state.elements["shapes"][action].decode()
                    shape = shape_of(name)
                    assert shape is not None
                    assert name in state.rules
                    placed = reader.order(key)
                    assert drawn_from(len(placed.local if shape.local else placed.cluster)) >= shape.size


class Watched(Store):
    """Looks at the tables after every transaction of elements."""

    def send(self, messages: list[Message], *commands: Sequence[Sent]) -> None:
        super().send(messages, *commands)
        assert_whole({f: table_state(w, self) for f, w in SYNTAX.items() if self.has_table(w.own)})


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(node=nodes(), before=clusters(), after=clusters())
def test_nothing_dangles_between_two_plans(namespace, node, before, after):  # type: ignore[no-untyped-def]
    layouts = Layouts(SYNTAX.values())
    plane = in_netns(namespace, NftablesPlane, store=in_netns(namespace, Watched, layouts), text_limit=0)
    plane.cleanup()
    for cluster in (before, after):
        planner = Planner(node_config(node))
        planner.update(decoded(cluster))
        plane.load(planner.plan)
        assert plane.read_back() == rows(planner.plan)
