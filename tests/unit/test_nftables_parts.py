"""The order in which a change is committed, what is taken back, and which elements wait for packets under way."""

import pytest
from msgspec.structs import replace

from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry, SourceRanges
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.elements import commits
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules.shapes import ShapeIds
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import external_routes
from tests.golden.test_nftables_commands import Recorder, RecorderStore


class Kernel(Recorder):
    """Takes transactions, or refuses the one of a number that is set."""

    refused = 0

    def run(self, transaction: str) -> None:
        self.refused -= 1
        if self.refused == 0:
            raise PlaneError("no more of this")
        super().run(transaction)

    def verbs(self) -> list[str]:
        """What was done since the last time, in short: waits, and each transaction's verbs and targets."""
        seen = []
        for text in self.sent:
            words = [line.split() for line in text.splitlines()]
            seen.append(", ".join(dict.fromkeys(f"{w[0]} {w[4]}" if len(w) > 4 else w[0] for w in words)))
        self.sent.clear()
        return seen


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(commits, "wait_for_packets", lambda: kernel.sent.append("wait"))
    return kernel


@pytest.fixture
def plane(kernel: Kernel) -> NftablesPlane:
    plane = NftablesPlane(families=(Family.IPV4,), nft=kernel, store=RecorderStore(kernel))
    plane.load(Plan(NodeConfig()))
    kernel.sent.clear()
    return plane


def balancer(count: int, *cidrs: str, external_local: bool = False, name: str = "web") -> PlanEntry:
    """A load balancer's address with so many endpoints, the first of which is local."""
    cluster = tuple(Backend(f"10.244.0.{number}", 8080, number == 0) for number in range(count))
    routes = external_routes(has_cluster=count > 0, has_local=count > 0, external_local=external_local)
    ranges = SourceRanges(cidrs) if cidrs else None
    address = "198.51.100.7" if name == "web" else "198.51.100.8"
    key = FrontendKey(Family.IPV4, address, Protocol.TCP, 80)
    frontend = Frontend(FrontendKind.LOAD_BALANCER, key, routes, ranges)
    return PlanEntry(EntryKey("shop", name, "", Protocol.TCP, Family.IPV4), cluster, cluster[:1], (frontend,), 0)


def change(old: PlanEntry | None, new: PlanEntry | None) -> PlanChange:
    return PlanChange((EntryChange(old, new),))


def test_what_leads_to_a_chain_comes_after_it_and_goes_before_it(kernel: Kernel, plane: NftablesPlane) -> None:
    plane.apply(change(None, balancer(2)))
    assert kernel.verbs() == [
        "add lb-2-masq, flush lb-2-masq, add shapes",
        "add services, add endpoints, add hairpin",
    ]
    plane.apply(change(balancer(2), balancer(3)))
    assert kernel.verbs() == [
        "add lb-3-masq, flush lb-3-masq, add shapes",
        "delete services, add services, add endpoints",
        "wait",
        "delete shapes, flush lb-2-masq, delete lb-2-masq",
    ]
    assert plane.commits == 5


def test_a_way_that_others_use_takes_no_transaction_of_its_own(kernel: Kernel, plane: NftablesPlane) -> None:
    for count in (2, 3):
        plane.apply(change(None, balancer(count, name=f"other-{count}")))
    plane.apply(change(None, balancer(2)))
    kernel.sent.clear()
    plane.apply(change(balancer(2), balancer(3)))
    assert kernel.verbs() == ["delete services, add services, add endpoints"]


def test_what_a_refused_change_had_made_is_removed(kernel: Kernel, plane: NftablesPlane) -> None:
    kernel.refused = 2
    with pytest.raises(PlaneError, match=r"^no more of this$"):
        plane.apply(change(None, balancer(2, "192.0.2.0/24")))
    made, undone = kernel.verbs()
    assert made == "add lb-2-masq, flush lb-2-masq, add ranges-24, add shapes, flush restricted, add restricted"
    assert undone == (
        "delete shapes, flush restricted, add restricted, flush lb-2-masq, delete lb-2-masq, delete ranges-24"
    )
    plane.apply(change(None, balancer(2, "192.0.2.0/24")))
    assert len(kernel.verbs()) == 2, "the next attempt makes it all again"


def test_a_refused_structure_leaves_nothing(kernel: Kernel, plane: NftablesPlane) -> None:
    kernel.refused = 1
    with pytest.raises(PlaneError, match=r"^no more of this$"):
        plane.apply(change(None, balancer(2)))
    assert kernel.verbs() == []


def test_what_cannot_be_removed_afterwards_asks_for_a_load(kernel: Kernel, plane: NftablesPlane) -> None:
    plane.apply(change(None, balancer(2)))
    kernel.refused = 2
    with pytest.raises(PlaneError, match=r"no more of this; the change itself is in effect.*load again"):
        plane.apply(change(balancer(2), None))
    with pytest.raises(PlaneError, match=r"load first"):
        plane.apply(change(None, balancer(3)))


@pytest.mark.parametrize(
    ("before", "after", "behind"),
    [
        (balancer(2, external_local=True), balancer(2), "services_pod services_node services_outside endpoints"),
        (balancer(2, "192.0.2.0/24"), balancer(2), "restricted ranges-24"),
        (balancer(2, "192.0.2.0/24"), balancer(2, "192.0.3.0/24"), "ranges-24"),
        (balancer(2), balancer(1), ""),
        (balancer(2), balancer(0), ""),
        (balancer(2, "192.0.2.0/24"), None, ""),
    ],
    ids=["policy", "unrestricted", "other-ranges", "fewer-endpoints", "none", "gone"],
)
def test_elements_that_packets_in_flight_need_go_last(
    kernel: Kernel, plane: NftablesPlane, before: PlanEntry, after: PlanEntry | None, behind: str
) -> None:
    plane.apply(change(None, before))
    for other in (balancer(1, "192.0.2.0/24", name="other-1"), balancer(2, external_local=True, name="other-2")):
        plane.apply(change(None, other))
    kernel.sent.clear()
    plane.apply(change(before, after))
    assert kernel.sent[1:2] in ([], ["wait"]), "the change, then what it left behind"
    left = [line.split()[4] for text in kernel.sent[2:] for line in text.splitlines() if "delete element" in line]
    assert [name for name in left if name != "shapes"] == behind.split()


def test_a_shape_that_is_gone_leaves_its_number_to_others(
    kernel: Kernel, plane: NftablesPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many affinity timeouts one after the other as there is no room for at once."""
    monkeypatch.setattr(ShapeIds, "_END", ShapeIds._FIRST + 4)
    stays, old = balancer(2, name="other"), balancer(2)
    plane.apply(PlanChange((EntryChange(None, stays), EntryChange(None, old))))
    for seconds in range(1, 20):
        new = replace(old, affinity_seconds=seconds)
        plane.apply(change(old, new))
        old = new
    numbers = plane._books.ids[Family.IPV4]._numbers
    assert {shape.affinity for shape in numbers} == {0, 19}
    assert len(set(numbers.values())) == len(numbers)
    plane.apply(change(old, replace(old, affinity_seconds=0)))
    assert {shape.affinity for shape in numbers} == {0}
