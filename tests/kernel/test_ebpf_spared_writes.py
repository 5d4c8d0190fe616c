"""A change writes what differs; after an error that came between two writes, everything again."""

import mmap

import pytest
from msgspec.structs import replace

from dataplane.plan.change import EntryChange
from dataplane.plan.types import PlanEntry
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.maps.adopt import adopt
from dataplane.planes.ebpf.maps.fill import filled
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.tables import Tables
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Forwarding
from tests.kernel.ebpf_lab import SMALL, service

HERE, THERE = Backend("10.244.9.3", 8080, True), Backend("10.244.9.4", 8080)


def loaded(maps: MapSet, *entries: PlanEntry) -> Tables:
    tables = filled(maps, entries)
    tables.end_load()
    return tables


def holds(maps: MapSet, *entries: PlanEntry) -> bool:
    """Whether a later process finds these entries and nothing that is not theirs."""
    found, broken = adopt(maps, [entry.key for entry in entries])
    return not broken and {k: each.entry for k, each in found.installed.items()} == {e.key: e for e in entries}


def test_a_change_that_broke_off_is_written_as_a_whole() -> None:
    """The first attempt has set flags that the second one would not look at, as nothing differs any more."""
    both = service("a", backends=(HERE, THERE), local=(HERE,))
    with create_maps(SMALL) as maps:
        tables = loaded(maps, both)
        fewer = service("a", backends=(HERE, THERE))
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(maps, "put_many", _refuses)
            with pytest.raises(PlaneError, match="no"):
                tables.apply([EntryChange(both, fewer)])
        assert not holds(maps, fewer)
        tables.apply([EntryChange(both, fewer)])
        assert holds(maps, fewer)


def _refuses(*_: object) -> None:
    raise PlaneError("no")


def test_backends_that_are_no_longer_forwarded_to_lose_their_node() -> None:
    plain = service("a", backends=(THERE,), node_port=30001)
    tunnelled = replace(plain, forwarding=Forwarding.TUNNEL, tunnels=("192.0.2.2",))
    with create_maps(SMALL) as maps:
        tables = loaded(maps, tunnelled)
        assert holds(maps, tunnelled)
        tables.apply([EntryChange(tunnelled, plain)])
        assert holds(maps, plain)
        tables.apply([EntryChange(plain, tunnelled)])
        assert holds(maps, tunnelled)


def test_one_endpoint_takes_one_page_for_its_slot_and_one_for_its_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page that is mapped takes as long as everything else that is written; the new backend's is that of the one
    before it."""
    pages: list[int] = []

    def mapped(fd: int, length: int, **rest: int) -> mmap.mmap:
        pages.append(length // mmap.PAGESIZE)
        return mapping(fd, length, **rest)

    mapping, sizes = mmap.mmap, replace(SMALL, services=1024, backends=2048, slots=4096, frontends=1024)
    first, last = (
        [service(name, address=f"172.30.1.{name}", backends=(THERE, Backend(f"10.244.9.{n}", 80))) for n in (5, 6)]
        for name in ("1", "2")
    )
    others = [
        service(f"b{n}", address=f"172.31.{n // 250}.{n % 250 + 1}", backends=first[0].cluster) for n in range(600)
    ]
    with create_maps(sizes) as maps:
        tables = loaded(maps, first[0], *others, last[0])
        tables.apply([EntryChange(*first)])
        monkeypatch.setattr("dataplane.planes.ebpf.maps.window.mmap.mmap", mapped)
        tables.apply([EntryChange(*last)])
        assert pages == [1, 1]
        assert holds(maps, first[1], *others, last[1])
