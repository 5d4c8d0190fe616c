"""The plane's state in the kernel: read-back of any sequence of plans, adoption, rebuild, full maps, cleanup."""

import os
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import ntohs

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctl.store.drift import differences
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange, PlanChange, diff
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan, PlanEntry, SourceRanges
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach import programs
from dataplane.planes.ebpf.attach.programs import CONNECT_PROGRAMS, ConnectHook, connect_problem, remove_instances
from dataplane.planes.ebpf.flows.entries import ESTABLISHED, flow_flags
from dataplane.planes.ebpf.maps import members, pins
from dataplane.planes.ebpf.maps.adopt import adopt
from dataplane.planes.ebpf.maps.layout import fields_of, layout_version, unpack
from dataplane.planes.ebpf.maps.mapset import create_maps, open_any_sizes
from dataplane.planes.ebpf.maps.tables import Removed, Tables
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.policy.difference import LARGE
from dataplane.policy.endpoints import Backend
from tests.kernel.ebpf_lab import SMALL, NoSlowPath, plan_of, service
from tests.kernel.test_ebpf_collect import held, put_flow

FAMILIES = (Family.IPV4, Family.IPV6)


@st.composite
def entries(draw: st.DrawFn, number: int) -> PlanEntry:
    """A Service port with its own address, any backends and policies."""
    family = draw(st.sampled_from(FAMILIES))
    prefix, address = ("10.244.9.", "172.30.1.") if family is Family.IPV4 else ("fd00:244:9::", "fd00:30:1::")
    chosen = sorted(draw(st.sets(st.integers(2, 30), max_size=12)))
    backends = tuple(sorted(Backend(f"{prefix}{n}", 8080, n % 3 == 0) for n in chosen))
    cidrs = st.sampled_from(
        ("10.0.0.0/8", "192.0.2.7/32", "0.0.0.0/0") if family is Family.IPV4 else ("2001:db8::/32", "::/0")
    )
    ranges = st.builds(SourceRanges, st.lists(cidrs, unique=True, max_size=3).map(tuple))
    return service(
        f"s{number}",
        draw(st.sampled_from((Protocol.TCP, Protocol.UDP))),
        family,
        backends=backends,
        local=tuple(backend for backend in backends if backend.local),
        affinity=draw(st.sampled_from((0, 10800))),
        node_port=draw(st.sampled_from((0, 30000 + number))),
        address=f"{address}{number}",
        external_local=draw(st.booleans()),
        internal_local=draw(st.booleans()),
        ranges=draw(st.none() | ranges),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    numbers = draw(st.sets(st.integers(1, 8)))
    return plan_of(*(draw(entries(number)) for number in sorted(numbers)))


@pytest.fixture
def make_plane(namespace: str) -> Iterator[Callable[..., EbpfPlane]]:
    """Planes of one network namespace; nothing of them is left afterwards."""
    made: list[EbpfPlane] = []

    def make(**options: object) -> EbpfPlane:
        with netns.netns(namespace):
            made.append(EbpfPlane(NoSlowPath(), **({"sizes": SMALL} | options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for plane in made:
        plane.cleanup()


@pytest.fixture
def group() -> Iterator[Path]:
    path = cgroup.ensure_root() / f"hotplane-test-maps-{os.getpid()}"
    path.mkdir()
    yield path
    cgroup.remove(path)


def _no_index_is_lost(tables: Tables) -> None:
    """Every index is either an entry's or free: what a fresh look at the maps finds in use, the tables know as such."""
    used = {index for installed in tables.installed.values() for index in installed.backends}
    found, broken = adopt(tables.maps)
    assert not broken
    assert used == {index for installed in found.installed.values() for index in installed.backends}
    assert {i.service for i in tables.installed.values()} == {i.service for i in found.installed.values()}
    assert tables.owners == found.owners


@pytest.fixture(params=[LARGE, 1], ids=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry is treated as it is, or as one with many backends."""
    monkeypatch.setattr(members, "LARGE", request.param)


@pytest.mark.usefixtures("size")
@given(sequence=st.lists(plans(), min_size=1, max_size=5))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_sequence_of_plans_reads_back(make_plane: Callable[..., EbpfPlane], sequence: list[Plan]) -> None:
    plane, before = make_plane(), plan_of()
    plane.load(before)
    for plan in [*sequence, plan_of()]:
        plane.apply(diff(before, plan))
        assert plane.read_back() == rows(plan)
        _no_index_is_lost(plane.tables)
        before = plan
    plane.close()


@pytest.mark.usefixtures("size")
@given(before=plans(), after=plans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_later_daemon_adopts_and_goes_on(make_plane: Callable[..., EbpfPlane], before: Plan, after: Plan) -> None:
    first = make_plane()
    first.load(before)
    kept = {key: installed.service for key, installed in first.tables.installed.items()}
    first.close()
    second = make_plane()
    second.load(after)
    assert second.read_back() == rows(after)
    _no_index_is_lost(second.tables)
    for key, installed in second.tables.installed.items():
        assert kept.get(key, installed.service) == installed.service
    second.apply(diff(after, before))
    assert second.read_back() == rows(before)
    second.close()


_members = st.dictionaries(st.integers(2, 40), st.sampled_from(("here", "there", "lingers")), min_size=1, max_size=30)


@pytest.mark.usefixtures("size")
@given(
    steps=st.lists(_members, min_size=2, max_size=6),
    protocol=st.sampled_from((Protocol.TCP, Protocol.UDP)),
    affinity=st.sampled_from((0, 10800)),
    restart=st.integers(0, 6),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_service_that_changes_in_its_backends_alone(
    make_plane: Callable[..., EbpfPlane], steps: list[dict[int, str]], protocol: Protocol, affinity: int, restart: int
) -> None:
    """restart: before this step another daemon takes over."""
    found = []
    for places in steps:
        backends = {where: tuple(sorted(
            Backend(f"10.244.9.{n}", 8080 + n % 2, n % 3 == 0) for n, place in places.items() if place == where
        )) for where in ("here", "there", "lingers")}  # fmt: skip
        entry = service(
            "s1", protocol, backends=tuple(sorted((*backends["here"], *backends["there"]))), local=backends["here"],
            affinity=affinity, node_port=30001,
        )  # fmt: skip
        routes = service("s1", protocol, node_port=30001).frontends
        found.append(plan_of(msgspec.structs.replace(entry, lingering=backends["lingers"], frontends=routes)))
    plane, before = make_plane(), found[0]
    plane.load(before)
    for number, plan in enumerate(found[1:]):
        if number == restart:
            plane.close()
            plane = make_plane()
            plane.load(plan)
        plane.apply(diff(before, plan))
        assert {key: installed.entry for key, installed in plane.tables.installed.items()} == plan.entries
        assert plane.read_back() == rows(plan)
        held = adopt(plane.tables.maps).tables.installed
        assert {key: installed.entry for key, installed in held.items()} == plan.entries
        _no_index_is_lost(plane.tables)
        before = plan
    plane.close()


@pytest.mark.usefixtures("size")
@given(before=plans(), after=plans(), writes=st.integers(0, 40))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_daemon_that_dies_between_any_two_steps_is_understood(
    make_plane: Callable[..., EbpfPlane], monkeypatch: pytest.MonkeyPatch, before: Plan, after: Plan, writes: int
) -> None:
    """The writes of a change are cut off after so many; the next daemon must still arrive at its plan."""

    class Dies(Exception):
        pass

    def cut(left: list[int], function: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Dies
            return function(*arguments)

        return counted

    first, left = make_plane(), [writes]
    first.load(before)
    with monkeypatch.context() as patched:
        for target, name in (
            (first.tables, "_fill"),
            (first.tables, "_change_members"),
            (first.tables, "_move_slots"),
            (first.tables, "_compose_frontends"),
            (first.tables, "_retire"),
            (first.tables, "_finish"),
            (first.tables.maps, "put_many"),
            (first.tables.maps, "remove"),
            (first.tables.backends, "give_back"),
        ):
            patched.setattr(target, name, cut(left, getattr(target, name)))
        try:
            first.apply(diff(before, after))
        except Dies:
            left[0] = 0
    first.close()
    second = make_plane()
    second.load(after)
    assert second.read_back() == rows(after)
    _no_index_is_lost(second.tables)
    second.close()


def test_other_sizes_keep_indices_and_flow_state(make_plane: Callable[..., EbpfPlane]) -> None:
    plan = plan_of(service("a"), service("b", Protocol.UDP, Family.IPV6))
    first = make_plane()
    first.load(plan)
    flow = bytes(first.tables.maps.specs["sockets"].key_size)
    value = bytearray(first.tables.maps.specs["sockets"].value_size)
    struct.pack_into("=q", value, fields_of("socket_peer")["last_ns"], time.monotonic_ns())
    first.tables.maps.put("sockets", flow, bytes(value))
    installed = first.tables.installed
    first.close()
    second = make_plane(sizes=msgspec.structs.replace(SMALL, backends=1024, affinity=64))
    second.load(plan)
    assert second.read_back() == rows(plan)
    assert second.tables.maps.get("sockets", flow) is not None
    assert {k: i.service for k, i in second.tables.installed.items()} == {k: i.service for k, i in installed.items()}
    assert second.pins.map_versions() == [layout_version(second.sizes)]


class _Meanwhile:
    """A hook, or who looks after those for whom connect time is off: packets go by the old maps until it returns."""

    name = "meanwhile"

    def __init__(self, happens: Callable[[], None]) -> None:
        self._happens = happens

    def attach(self, *_: object) -> None:
        self._happens()

    begin = attach

    def prepare(self, *_: object) -> None:
        pass

    forward = detach = close = prepare

    def mend(self) -> list[str]:
        return []


@pytest.mark.parametrize("when", ["hooks", "off"], ids=["while programs change", "before"])
def test_what_packets_store_while_maps_are_copied_comes_along(make_plane: Callable[..., EbpfPlane], when: str) -> None:
    """Flows that begin, and that go on, between the copy of the maps and the change of the programs."""
    plan, protocol = plan_of(service("a")), 17
    first = make_plane()
    first.load(plan)
    before = first.pins.maps(layout_version(SMALL))
    put_flow(first.tables.maps, 1000, protocol, 0, (1, 1))
    put_flow(first.tables.maps, 1002, protocol, 0, (1, 1))
    first.close()

    def happens() -> None:
        old = open_any_sizes(before)
        assert old is not None
        with old:
            put_flow(old, 1000, protocol, ESTABLISHED, (0, 0))
            put_flow(old, 1001, protocol, 0, (0, 0))

    meanwhile = _Meanwhile(happens)
    sizes = msgspec.structs.replace(SMALL, udp_flows=2 * SMALL.udp_flows)
    second = make_plane(sizes=sizes, **{when: [meanwhile] if when == "hooks" else meanwhile})
    second.load(plan)
    found = {unpack("translation", value)["source_port"]: value for _, value in second.tables.maps.items("udp_flows")}
    flags = {ntohs(port): bool(flow_flags(value) & ESTABLISHED) for port, value in found.items()}
    assert {port: flags.get(port) for port in (1000, 1001, 1002)} == {1000: True, 1001: False, 1002: False}
    assert second.pins.map_versions() == [layout_version(sizes)]


def test_a_load_takes_out_flows_that_are_over(make_plane: Callable[..., EbpfPlane]) -> None:
    """Where no daemon collects, a full table has room again after the next `apply`; what lives stays."""
    plan = plan_of(service("a"))
    first = make_plane()
    first.load(plan)
    for port in range(1, SMALL.udp_flows // 2):
        put_flow(first.tables.maps, port, 17, 0, (500, 500))
    put_flow(first.tables.maps, 60000, 17, 0, (0, 500))
    with pytest.raises(PlaneError, match="udp_flows"):
        put_flow(first.tables.maps, 60001, 17, 0, (0, 0))
    first.close()
    second = make_plane()
    second.load(plan)
    assert held(second.tables.maps, "udp_flows") == 2
    put_flow(second.tables.maps, 60001, 17, 0, (0, 0))


def test_maps_of_another_layout_are_rebuilt(make_plane: Callable[..., EbpfPlane]) -> None:
    plan = plan_of(service("a"))
    first = make_plane()
    first.load(plan)
    path = first.pins.maps(layout_version(SMALL))
    first.close()
    path.rename(path.with_name("maps-0123456789abcdef-01234567"))
    second = make_plane()
    second.load(plan)
    assert second.read_back() == rows(plan)
    assert second.pins.map_versions() == [layout_version(SMALL)]


def test_what_a_change_removes_makes_room_for_what_it_adds(make_plane: Callable[..., EbpfPlane]) -> None:
    plane = make_plane(sizes=msgspec.structs.replace(SMALL, frontends=2))
    one, two, three, four = (service(f"s{n}", address=f"172.30.2.{n}") for n in range(4))
    plane.load(plan_of(one, two))
    plane.apply(PlanChange(entries=(EntryChange(one, None), EntryChange(None, three))))
    moved = service("s1", address="172.30.2.9")
    plane.apply(PlanChange(entries=(EntryChange(two, moved), EntryChange(three, None), EntryChange(None, four))))
    assert plane.overflow == {}
    assert plane.read_back() == rows(plan_of(moved, four))
    _no_index_is_lost(plane.tables)


@pytest.mark.parametrize(
    ("full", "sizes"),
    [
        ("frontends", {"frontends": 2}),
        ("slots", {"slots": 8}),
        ("backends", {"backends": 7}),
        ("services", {"services": 2}),
        ("source_ranges", {"source_ranges": 2}),
    ],
)
def test_a_full_map_is_named_and_the_rest_stays(
    make_plane: Callable[..., EbpfPlane], full: str, sizes: dict[str, int]
) -> None:
    plane = make_plane(sizes=msgspec.structs.replace(SMALL, **sizes))
    every = [service(f"s{n}", address=f"172.30.2.{n}", ranges=SourceRanges((f"10.{n}.0.0/16",))) for n in range(3)]
    plan = plan_of(*every)
    slow = plane.slow
    assert isinstance(slow, NoSlowPath)
    slow.rows = rows(plan)
    plane.load(plan)
    assert plane.overflow == {full: 1}
    assert len(plane.tables.installed) == 2
    assert plane.read_back() == rows(plan)  # the rest is the slow path's
    _no_index_is_lost(plane.tables)
    plane.apply(PlanChange(entries=(EntryChange(every[0], None),)))
    assert plane.overflow == {}, "it comes in as soon as there is room"
    assert len(plane.tables.installed) == 2
    assert plane.read_back() == rows(plan_of(*every[1:]))
    _no_index_is_lost(plane.tables)


@pytest.mark.usefixtures("size")
def test_a_rollout_in_a_full_map_leaves_its_service_in(make_plane: Callable[..., EbpfPlane]) -> None:
    """New endpoints come before the old ones go, and there is no room for both: it is out as long as that lasts, and in
    again by itself. Only an endpoint that goes has gone: nobody's socket is disconnected from the one that stays."""
    told: list[str] = []
    plane = make_plane(sizes=msgspec.structs.replace(SMALL, backends=6), report=told.append, mended=told.append)
    stays, *others = (Backend(f"10.244.9.{n}", 8080, False) for n in range(1, 8))
    old, both, new = ((stays, *others[a:b]) for a, b in ((0, 3), (0, 6), (3, 6)))
    entry, more, last = (service("web", Protocol.UDP, backends=each, address="172.30.2.1") for each in (old, both, new))
    plane.load(plan_of(entry))
    gone = _removed(plane, EntryChange(entry, more))
    assert (plane.overflow, gone) == ({"backends": 1}, [])
    assert _removed(plane, EntryChange(more, last)) == [backend.address for backend in others[:3]]
    assert plane.overflow == {}
    assert plane.read_back() == rows(plan_of(last))
    assert len(told) == 2
    assert "test/web" in told[0]
    assert "backends" in told[0]
    assert _removed(plane, EntryChange(last, entry)) == [backend.address for backend in others[3:]]
    assert plane.overflow == {}, "what goes makes room for what comes"
    _no_index_is_lost(plane.tables)


def _removed(plane: EbpfPlane, change: EntryChange) -> list[str]:
    """Make a change; the endpoints that sockets are to be disconnected from, by address."""
    found: list[str] = []

    class Cleaner:
        def disconnect(self, _: object, removed: list[Removed]) -> None:
            found.extend(each.address for each in removed)

    plane.cleaner = Cleaner()  # type: ignore[assignment]
    plane.apply(PlanChange(entries=(change,)))
    return sorted(found)


def test_maps_without_descriptors_say_so_and_leave_none() -> None:
    before = os.listdir("/proc/self/fd")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [number for number in range(len(before) + 8) if str(number) not in before]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[6], limits[1]))
    try:
        with pytest.raises(PlaneError, match="LimitNOFILE"):
            create_maps(SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_two_nodes_do_not_see_each_other(make_namespace: Callable[[str], str]) -> None:
    planes = []
    for word in ("x", "y"):
        with netns.netns(make_namespace(word)):
            planes.append(EbpfPlane(NoSlowPath(), sizes=SMALL))
    try:
        plans_of_both = [plan_of(service("a")), plan_of(service("b", Protocol.UDP))]
        for plane, plan in zip(planes, plans_of_both, strict=True):
            plane.load(plan)
        assert [plane.read_back() for plane in planes] == [rows(plan) for plan in plans_of_both]
        planes[0].cleanup()
        assert planes[1].read_back() == rows(plans_of_both[1])
    finally:
        for plane in planes:
            plane.cleanup()


def test_programs_are_replaced_in_place_and_survive_their_daemon(
    make_plane: Callable[..., EbpfPlane], group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later daemon has programs of another version."""
    plan = plan_of(service("a"))
    pid = os.fork()
    if pid == 0:
        make_plane(hooks=[ConnectHook(group)]).load(plan)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    plane = make_plane(hooks=[ConnectHook(group)])
    before = _links(plane)
    assert set(before) == set(CONNECT_PROGRAMS)
    monkeypatch.setattr(programs, "program_name", lambda name, *_: f"{name}-later")
    plane.load(plan)
    after = _links(plane)
    assert {name: link.id for name, link in after.items()} == {name: link.id for name, link in before.items()}
    assert all(after[name].program_id != before[name].program_id for name in before)
    assert all(link.target == group.stat().st_ino for link in after.values())


def test_programs_move_to_another_control_group(make_plane: Callable[..., EbpfPlane], group: Path) -> None:
    other = group / "other"
    other.mkdir()
    make_plane(hooks=[ConnectHook(group)]).load(plan_of())
    plane = make_plane(hooks=[ConnectHook(other)])
    plane.load(plan_of())
    assert {link.target for link in _links(plane).values()} == {other.stat().st_ino}
    assert _attached(group) == []


def test_cleanup_leaves_nothing(make_plane: Callable[..., EbpfPlane], group: Path) -> None:
    plane = make_plane(hooks=[ConnectHook(group)])
    plane.load(plan_of(service("a")))
    assert sorted(_attached(group)) == sorted(CONNECT_PROGRAMS)
    plane.cleanup()
    assert _attached(group) == []
    assert plane.pins.path is None
    root = pins.find_root()  # others may be using it at the same time
    assert root is None or any(entry.is_dir() for entry in root.iterdir())
    plane.cleanup()  # a second time there is nothing to do


def _links(plane: EbpfPlane) -> dict[str, bpf.LinkInfo]:
    found = {}
    for name, path in plane.pins.links().items():
        fd = bpf.obj_get(str(path))
        found[name] = bpf.link_info(fd)
        os.close(fd)
    return found


def _attached(group: Path) -> list[str]:
    """Names of our hooks that have a program on a control group."""
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return [name for name, attach in CONNECT_PROGRAMS.items() if bpf.attached_programs(fd, attach)]
    finally:
        os.close(fd)


def test_connect_problem_tells_why(group: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert connect_problem(group) == ""
    assert connect_problem(cgroup.root()) == ""
    assert "not a cgroup v2 directory" in connect_problem(tmp_path)
    monkeypatch.setitem(CONNECT_PROGRAMS, "recvmsg4", AttachType.XDP)
    assert "was refused" in connect_problem(group)


def test_instances_of_a_dead_predecessor_are_removed_by_name(namespace: str, group: Path) -> None:
    word = f"test-{os.getpid()}-"
    pid = os.fork()
    if pid == 0:
        try:
            netns.enter(namespace)
            for number in "12":
                plane = EbpfPlane(NoSlowPath(), [ConnectHook(group)], SMALL, instance=word + number)
                plane.load(plan_of(service("a")))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    netns.remove(namespace)
    assert len(_attached(group)) == len(CONNECT_PROGRAMS)
    assert remove_instances(word) == [word + "1", word + "2"]
    assert _attached(group) == []
    assert remove_instances(word) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_legal_names_are_held_adopted_and_told_apart(
    make_plane: Callable[..., EbpfPlane], family: Family
) -> None:
    def named(port: str, number: int) -> PlanEntry:
        entry = service(
            "x", family=family, address=f"172.30.2.{number}" if family is Family.IPV4 else f"fd00::2:{number}"
        )
        return msgspec.structs.replace(entry, key=entry.key._replace(namespace="n" * 63, name="s" * 63, port=port))

    long, twin, short = named("p" * 63, 1), named("p" * 62 + "q", 2), service("short", family=family)
    plan = plan_of(long, twin, short)
    first = make_plane()
    first.load(plan)
    assert first.read_back() == rows(plan)
    assert not first.left_out
    indices = {key: installed.service for key, installed in first.tables.installed.items()}
    first.close()
    unloaded = make_plane()
    assert not list(differences(rows(plan), unloaded.read_back(), unloaded.stored_name)), (
        "who does not know the plan sees no difference"
    )
    second = make_plane()
    second.load(plan)
    assert {key: installed.service for key, installed in second.tables.installed.items()} == indices
    second.apply(PlanChange(entries=(EntryChange(twin, None),)))
    assert second.read_back() == rows(plan_of(long, short))
    second.close()
    third = make_plane()
    third.load(plan_of(short))
    assert third.read_back() == rows(plan_of(short))
