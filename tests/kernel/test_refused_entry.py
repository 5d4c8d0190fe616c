"""What a plane cannot hold is left out alone: at a load over earlier rules, and at a change."""

from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from dataplane.kernel.namespaces import netns
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.rows import rows
from dataplane.plan.types import PlanEntry
from dataplane.planes.base import EntryRefused, Plane, load_others
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables import load
from dataplane.planes.nftables.elements.placement import SLOTS
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.policy.endpoints import Backend
from tests.kernel.ebpf_lab import SMALL, plan_of, service

MAKERS: dict[str, Callable[[], Plane]] = {
    "nftables": lambda: NftablesPlane(text_limit=50),
    "ebpf": lambda: EbpfPlane(NftablesPlane(text_limit=50), sizes=SMALL),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, namespace: str) -> Iterator[Callable[[], Plane]]:
    made: list[Plane] = []

    def plane() -> Plane:
        with netns.netns(namespace):
            made.append(MAKERS[request.param]())
        return made[-1]

    with netns.netns(namespace):
        yield plane
        for each in made:
            each.cleanup()


def _too_many() -> PlanEntry:
    """More backends than a set may have."""
    backends = tuple(Backend(f"10.{n >> 8 & 255}.{n & 255}.{n >> 16}", 80) for n in range(256, 256 + SLOTS + 1))
    return service("many", address="172.30.0.99", backends=backends, affinity=60)


def test_a_refused_entry_keeps_nobody_out(make: Callable[[], Plane]) -> None:
    one, two, three = (service(f"s{n}", address=f"172.30.0.{n}") for n in (1, 2, 3))
    make().load(plan_of(one))
    plane = make()
    bad = _too_many()
    _, refusals = load_others(plane, plan_of(one, bad, two))
    assert [refusal.key for refusal in refusals] == [bad.key]
    assert plane.read_back() == rows(plan_of(one, two))
    with pytest.raises(EntryRefused, match="test/many: more than 32768 backends in a set"):
        plane.apply(PlanChange(entries=(EntryChange(None, three), EntryChange(None, bad))))
    assert plane.read_back() == rows(plan_of(one, two)), "nothing of it was applied"
    plane.apply(PlanChange(entries=(EntryChange(None, three),)))
    assert plane.read_back() == rows(plan_of(one, two, three))


def test_a_refused_load_leaves_the_plane_at_work(make: Callable[[], Plane]) -> None:
    """Nothing was sent, so changes of what is loaded go on."""
    one, two = (service(f"s{n}", address=f"172.30.0.{n}") for n in (1, 2))
    plane = make()
    plane.load(plan_of(one))
    with pytest.raises(EntryRefused):
        plane.load(plan_of(one, _too_many()))
    plane.apply(PlanChange(entries=(EntryChange(None, two),)))
    assert plane.read_back() == rows(plan_of(one, two))


@pytest.mark.parametrize("empty", [True, False])
def test_very_many_refused_entries_in_a_large_load_keep_nobody_out(
    make: Callable[[], Plane], monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    """Into an empty kernel in pieces, of which some are sent before the first refusal, and over an earlier table."""
    monkeypatch.setattr(load, "ELEMENTS_A_TRANSACTION", 50)
    good = [service(f"s{n}", address=f"172.30.1.{n}") for n in range(1, 60)]
    bad = [
        replace(each, key=each.key._replace(name=f"b{n}"), cluster=())
        for n, each in enumerate(service("b", address=f"172.30.2.{n}") for n in range(1, 80))
    ]
    mixed = [each for pair in zip(good, bad, strict=False) for each in pair] + bad[len(good) :]
    if not empty:
        make().load(plan_of(*good[:30]))
    plane = make()
    _, refusals = load_others(plane, plan_of(*mixed))
    assert {refusal.key for refusal in refusals} == {each.key for each in bad}
    assert plane.read_back() == rows(plan_of(*good))
    with pytest.raises(EntryRefused) as refused:
        plane.apply(PlanChange(entries=tuple(EntryChange(None, each) for each in bad)))
    assert {each.key for each in (refused.value, *refused.value.others)} == {each.key for each in bad}
