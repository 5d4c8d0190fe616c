"""What a plane cannot hold is left out alone: at a load over earlier rules, and at a change."""

from collections.abc import Callable, Iterator

import pytest

from dataplane.kernel import netns
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.rows import rows
from dataplane.plan.types import PlanEntry
from dataplane.planes.base import EntryRefused, Plane, load_others
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.placement import SLOTS
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.policy.endpoints import Backend
from tests.kernel.ebpf_lab import SMALL, plan_of, service

MAKERS: dict[str, Callable[[], Plane]] = {
    "nftables": NftablesPlane,
    "ebpf": lambda: EbpfPlane(NftablesPlane(), sizes=SMALL),
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
