"""A load into an empty kernel: many entries at once, programs ahead, nothing before the slow path stands."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, BpfError, ProgramType
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.model.net import Family
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.rows import rows
from dataplane.plan.types import FrontendKey, Plan, Row
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach import programs
from dataplane.planes.ebpf.attach.loaded import program_name
from dataplane.planes.ebpf.attach.programs import CONNECT_PROGRAMS, ConnectHook
from dataplane.planes.ebpf.maps import fill
from dataplane.planes.ebpf.maps.adopt import adopt, read_rows
from dataplane.planes.ebpf.maps.encode import Sets, backend_records, service_bytes
from dataplane.planes.ebpf.maps.mapset import create_maps
from dataplane.planes.ebpf.maps.members import wanted_flags
from dataplane.planes.ebpf.maps.tables import Tables
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.policy.endpoints import Backend
from tests.kernel.ebpf_lab import SMALL, NoSlowPath, plan_of, service
from tests.kernel.test_ebpf_maps_lifecycle import plans


@pytest.fixture
def group() -> Iterator[Path]:
    path = cgroup.ensure_root() / f"hotplane-test-cold-{os.getpid()}"
    path.mkdir()
    yield path
    cgroup.remove(path)


@pytest.fixture
def make_plane(namespace: str, group: Path) -> Iterator[Callable[..., EbpfPlane]]:
    """Planes with the connect-time hook in one network namespace; nothing of them is left afterwards."""
    made: list[EbpfPlane] = []

    def make(slow: NoSlowPath | None = None, hook: ConnectHook | None = None) -> EbpfPlane:
        with netns.netns(namespace):
            made.append(EbpfPlane(slow or NoSlowPath(), [hook or ConnectHook(group)], SMALL))
        return made[-1]

    yield make
    for plane in made:
        plane.cleanup()


def open_files() -> int:
    """How many descriptors this process has, without those of what nobody uses any more."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def one_by_one(plan: Plan) -> dict[FrontendKey, Row]:
    """What the maps hold when entries are written one after the other."""
    with create_maps(SMALL) as maps:
        Tables(maps).apply([EntryChange(None, entry) for entry in plan.entries.values()])
        return read_rows(maps, plan.entries)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(plan=plans())
def test_entries_written_many_at_a_time_are_those_written_singly(monkeypatch, plan):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(fill, "_A_PIECE", 2)
    with create_maps(SMALL) as maps:
        tables = fill.filled(maps, plan.entries.values())
        assert {key: installed.entry for key, installed in tables.installed.items()} == plan.entries
        found, broken = adopt(maps, plan.entries)
        assert not broken
        assert {k: i.entry for k, i in found.installed.items()} == plan.entries
        assert [list(found.installed[key].backends) for key in plan.entries] == [
            list(tables.installed[key].backends) for key in plan.entries
        ]
        assert found.owners == tables.owners
        assert read_rows(maps, plan.entries) == one_by_one(plan)
        # The next one gets what nobody has.
        tables.apply([EntryChange(None, service("later", family=Family.IPV6, address="fd00:99::1"))])
        assert not adopt(maps).broken


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("count", [0, 1, 5])
def test_records_by_columns_are_those_by_entries(family: Family, count: int) -> None:
    """Of entries of one family, which share their columns, and of both; some backends are on this node."""
    four = [f"10.0.{n}.{n + 1}" for n in range(3 * count)]
    six = [f"fd00::{n + 1:x}" for n in range(3 * count)]
    for texts in (four if family is Family.IPV4 else six, [*four[: 2 * count], *six[2 * count :]]):
        sets = [texts[at * count : (at + 1) * count] for at in range(3)]
        entries = [
            service(f"s{n}", backends=tuple(Backend(text, 80 + at, at == n) for at, text in enumerate(each)))
            for n, each in enumerate(sets)
        ]
        expected = b"".join(
            record
            for entry, generation, number in zip(entries, range(70, 73), range(5, 8), strict=True)
            for record in backend_records(wanted_flags(entry), entry.key.protocol, generation, number)
        )
        assert fill._backend_records(entries, range(70, 73), range(5, 8)) == expected


def test_service_records_by_columns_are_those_by_entries() -> None:
    """Names that fill the field, are too long for it, or only as bytes; entries that differ in what is behind it."""
    entries = [
        service(name, affinity=seconds, internal_local=bool(seconds), address=f"172.30.0.{number}")
        for number, (name, seconds) in enumerate([("a", 0), ("b" * 138, 60), ("c" * 300, 0), ("\u00e9" * 100, 60)])
    ]
    bases = range(8, 40, 8)
    expected = b"".join(service_bytes(entry, Sets(base, 3)) for entry, base in zip(entries, bases, strict=True))
    assert fill._service_records(entries, bases) == expected


def test_what_does_not_fit_is_left_out_and_the_rest_is_written() -> None:
    plan = plan_of(*(service(f"s{n}", address=f"172.30.{n // 250}.{n % 250 + 1}") for n in range(SMALL.services + 40)))
    with create_maps(SMALL) as maps:
        tables = fill.filled(maps, plan.entries.values())
        assert len(tables.overflow) == len(plan.entries) - len(tables.installed) > 0
        assert {key: each.entry for key, each in adopt(maps).tables.installed.items()} == {
            key: plan.entries[key] for key in tables.installed
        }


def test_nothing_is_pinned_before_the_slow_path_stands(make_plane: Callable[..., EbpfPlane]) -> None:
    seen: list[object] = []

    class Looks(NoSlowPath):
        def load(self, plan: Plan) -> PlanChange:
            seen.append((plane.pins.map_versions(), plane.pins.links()))
            return super().load(plan)

    plane = make_plane(Looks())
    plane.load(plan_of(service("a")))
    assert seen == [([], {})]
    assert plane.read_back() == rows(plan_of(service("a")))
    assert plane.pins.links().keys() == CONNECT_PROGRAMS.keys()


def test_a_slow_path_that_fails_leaves_nothing(make_plane: Callable[..., EbpfPlane]) -> None:
    class Fails(NoSlowPath):
        failing = True

        def load(self, plan: Plan) -> PlanChange:
            if self.failing:
                raise PlaneError("not now")
            return super().load(plan)

    slow = Fails()
    plane, plan, before = make_plane(slow), plan_of(service("a")), open_files()
    with pytest.raises(PlaneError, match="not now"):
        plane.load(plan)
    assert open_files() == before  # the error had the memory of the maps
    assert (plane.pins.map_versions(), plane.pins.links(), plane.loaded) == ([], {}, False)
    slow.failing = False
    plane.load(plan)
    assert plane.read_back() == rows(plan)


def test_a_program_that_is_refused_is_reported(make_plane: Callable[..., EbpfPlane], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def refused(*_: object) -> int:
        raise BpfError(22, "program was refused")

    monkeypatch.setattr(bpf, "program_load", refused)
    plane = make_plane()
    with pytest.raises(PlaneError, match="connect-time programs: program was refused"):
        plane.load(plan_of(service("a")))


def pinned_programs(plane: EbpfPlane) -> set[str]:
    (version,) = plane.pins.map_versions()
    return {path.name for path in (plane.pins.maps(version) / "programs").iterdir()}


def test_a_later_daemon_verifies_nothing_again(make_plane: Callable[..., EbpfPlane], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    first, plan = make_plane(), plan_of(service("a"))
    first.load(plan)
    attached = {name: bpf.link_info(bpf.obj_get(str(path))).program_id for name, path in first.pins.links().items()}
    first.close()

    def unwanted(*_: object) -> int:
        raise AssertionError("it was loaded already")

    monkeypatch.setattr(bpf, "program_load", unwanted)
    second = make_plane()
    second.load(plan)
    assert len(pinned_programs(second)) == len(CONNECT_PROGRAMS)
    now = {name: bpf.link_info(bpf.obj_get(str(path))).program_id for name, path in second.pins.links().items()}
    assert now == attached


def test_programs_of_another_version_are_loaded_and_the_old_ones_go(
    make_plane: Callable[..., EbpfPlane], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, plan = make_plane(), plan_of(service("a"))
    first.load(plan)
    before = pinned_programs(first)
    first.close()
    name_of = program_name
    monkeypatch.setattr(programs, "program_name", lambda name, code, *rest: name_of(name, code + b"new", *rest))
    second = make_plane()
    second.load(plan)
    after = pinned_programs(second)
    assert len(after) == len(before) == len(CONNECT_PROGRAMS)
    assert not after & before


def test_pinned_programs_of_other_maps_are_not_used(make_plane: Callable[..., EbpfPlane], group: Path) -> None:
    plane, plan = make_plane(), plan_of(service("a"))
    plane.load(plan)
    hook, pins = ConnectHook(group), plane.pins
    with create_maps(SMALL) as others:
        hook.attach(others, pins)
        mine = {bpf.map_info(fd).id for fd in others.fds.values()}
        for path in pins.links().values():
            program = bpf.program_by_id(bpf.link_info(bpf.obj_get(str(path))).program_id)
            assert bpf.program_maps(program) <= mine


def test_maps_of_an_earlier_process_wait_for_the_slow_path(make_plane: Callable[..., EbpfPlane]) -> None:
    """What goes is served by the maps until the slow path has the new plan; a slow path that fails changes nothing."""

    class Looks(NoSlowPath):
        failing = True

        def load(self, plan: Plan) -> PlanChange:
            assert first.read_back() == rows(before)
            if self.failing:
                raise PlaneError("not now")
            return super().load(plan)

    before, after = plan_of(service("a"), service("b", address="172.30.0.11")), plan_of(service("a", count=2))
    first = make_plane()
    first.load(before)
    slow = Looks()
    second = make_plane(slow)
    with pytest.raises(PlaneError, match="not now"):
        second.load(after)
    assert first.read_back() == rows(before)
    slow.failing = False
    second.load(after)
    assert second.read_back() == rows(after)


def test_what_is_prepared_is_used_and_nobody_sees_it_before(make_plane: Callable[..., EbpfPlane], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    loaded: list[str] = []

    def load(code: bytes, kind: ProgramType, attach: AttachType, name: str) -> int:
        loaded.append(name)
        return program_load(code, kind, attach, name)

    program_load = bpf.program_load
    monkeypatch.setattr(bpf, "program_load", load)
    plane, plan = make_plane(), plan_of(service("a"))
    plane.prepare_load()
    plane.prepare_load()
    assert (plane.pins.map_versions(), plane.pins.links()) == ([], {})
    plane.load(plan)
    assert sorted(loaded) == sorted(CONNECT_PROGRAMS)
    assert plane.read_back() == rows(plan)
    assert plane.pins.links().keys() == CONNECT_PROGRAMS.keys()
    plane.prepare_load()  # there is nothing to prepare for
    assert len(loaded) == len(CONNECT_PROGRAMS)


def test_what_was_prepared_for_nothing_goes(make_plane: Callable[..., EbpfPlane]) -> None:
    plane, before = make_plane(), open_files()
    plane.prepare_load()
    plane.close()
    assert open_files() == before
    plane.prepare_load()
    other, plan = make_plane(), plan_of(service("a"))
    other.load(plan)  # another process was first: its maps are adopted
    plane.load(plan)
    assert plane.read_back() == rows(plan)
    assert len(plane.pins.map_versions()) == 1
