"""Faults kept apart: what a plane that refuses some entries ends up holding."""

import asyncio
import io
import json
import sys
import threading
from collections.abc import Callable, Iterable

import pytest
from msgspec.structs import replace

from ctl.daemon.http.health import Health
from ctl.daemon.http.metrics import Metrics
from ctl.daemon.jobs import Jobs
from ctl.daemon.log import Log
from ctl.daemon.sync.inbox import Inbox
from ctl.daemon.sync.kernel import Done, Kernel, Untouched
from ctl.daemon.sync.pace import Pace
from ctl.daemon.sync.reconcile import Reconciler
from dataplane.errors import HotplaneError
from dataplane.kernel.nft.generation import Generation
from dataplane.plan.change import EntryChange, PlanChange, apply_change
from dataplane.plan.rows import rows
from dataplane.plan.types import EntryKey, Plan, PlanEntry, Table
from dataplane.planes.base import EntryRefused, Plane, PlaneError
from dataplane.policy.node import NodeConfig
from tests.unit.test_daemon_parts import entry


class PickyPlane(Plane):
    """Refuses any transaction in which a bad Service occurs; forgets everything when it is `flushed`."""

    name = "nftables"

    def __init__(self) -> None:
        self.held: dict[EntryKey, PlanEntry] = {}
        self.bad: set[str] = set()
        self.flushed = False
        self.names = False
        self.loads = self.refusals = 0
        self.loaded: Callable[[], object] = lambda: None

    def load(self, plan: Plan) -> PlanChange:
        self.loads += 1
        self._check(plan.entries.values())
        old = {} if self.flushed else self.held
        changes = tuple(EntryChange(old.get(k), v) for k, v in plan.entries.items() if old.get(k) != v)
        self.held, self.flushed = dict(plan.entries), False
        self.loaded()
        return PlanChange(entries=changes)

    def apply(self, change: PlanChange) -> None:
        if self.flushed:
            raise PlaneError("no such table")
        self._check(each.new for each in change.entries if each.new is not None)
        for each in change.entries:
            assert self.held.get(each.key) == each.old, "a change starts from what the kernel holds"
        plan = Plan(NodeConfig(), self.held)
        apply_change(plan, change)

    def _check(self, entries: Iterable[PlanEntry]) -> None:
        bad = [each.key for each in entries if each.key.name in self.bad]
        if bad:
            self.refusals += 1
            others = [EntryRefused(key, "refused") for key in bad[1:]]
            raise EntryRefused(bad[0], "refused", others) if self.names else PlaneError("refused")

    def read_back(self) -> Table:
        return rows(Plan(NodeConfig(), self.held))

    def cleanup(self) -> None:
        self.held = {}


def fresh(*names: str) -> list[PlanEntry]:
    return [entry(name, "10.0.0.1", address=f"10.96.1.{number}") for number, name in enumerate(names)]


class Bench:
    """A kernel with a picky plane, and the plan beside it."""

    def __init__(self, *bad: str) -> None:
        self.plane = PickyPlane()
        self.plane.bad = set(bad)
        self.cleaned: list[PlanChange] = []
        self.refuse_cleaning = False
        self.kernel = Kernel(self._clean)
        self.plan = Plan(NodeConfig())

    async def load(self) -> Done:
        """Load the plan as it is."""
        await self.kernel.use(lambda: self.plane)
        return await self.kernel.load(self.plan)

    def _clean(self, change: PlanChange, plan: Plan, loaded: bool) -> None:
        if self.refuse_cleaning:
            raise HotplaneError("conntrack said no")
        self.cleaned.append(change)

    async def add(self, *entries: PlanEntry) -> Done:
        change = PlanChange(entries=tuple(EntryChange(self.plan.entries.get(e.key), e) for e in entries))
        apply_change(self.plan, change)
        return await self.kernel.apply(change, self.plan)

    @property
    def names(self) -> set[str]:
        return {key.name for key in self.plane.held}


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_one_bad_entry_never_keeps_out_the_others(count: int) -> None:
    async def scenario() -> None:
        bench = Bench("bad")
        await bench.load()
        names = [f"s{number}" for number in range(count)]
        done = await bench.add(*fresh(*names[: count // 2], "bad", *names[count // 2 :]))
        assert bench.names == set(names)
        assert len(done.errors) == 1
        assert "default/bad" in done.errors[0]
        assert bench.kernel.ledger.services() == ["default/bad"]
        assert bench.plane.refusals <= 2 + 2 * count.bit_length()
        bench.plane.bad = set()
        again = await bench.kernel.apply(PlanChange(), bench.plan)
        assert not again.errors
        assert bench.names == {*names, "bad"}
        assert len(bench.kernel.ledger) == 0

    asyncio.run(scenario())


def test_a_change_of_a_bad_entry_waits_and_the_old_one_keeps_working() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.load()
        [one], [other] = fresh("a"), [entry("a", "10.0.0.9", address="10.96.1.0")]
        await bench.add(one, *fresh("x", "y")[1:])
        bench.plane.bad = {"a"}
        await bench.add(other, *[entry("z", "10.0.0.1", address="10.96.9.9")])
        assert bench.plane.held[one.key] == one
        assert "z" in bench.names
        bench.plane.bad = set()
        await bench.kernel.apply(PlanChange(), bench.plan)
        assert bench.plane.held[one.key] == other

    asyncio.run(scenario())


def test_a_flushed_table_is_loaded_afresh_by_the_next_change() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.load()
        await bench.add(*fresh("a"))
        bench.plane.flushed = True
        done = await bench.add(*[entry("b", "10.0.0.1", address="10.96.7.7")])
        assert done.loaded
        assert done.errors
        assert bench.names == {"a", "b"}
        assert len(bench.kernel.ledger) == 0

    asyncio.run(scenario())


class Counter(Generation):
    """A generation that the test moves."""

    def __init__(self) -> None:
        self.now = 7

    def read(self) -> int:
        return self.now

    def close(self) -> None:
        pass


@pytest.mark.parametrize("bad", ["", "1"], ids=["whole", "in parts"])
def test_what_others_change_right_after_a_load_is_seen(bad: str) -> None:
    """Before the daemon is told that its load is done, another process flushes what was loaded."""
    bench, generation = Bench(bad), Counter()
    for each in fresh("0", "1"):
        bench.plan.entries[each.key] = each

    def flush() -> None:
        bench.plane.flushed = True
        generation.now += 2  # the load's own commit, and that of the other

    async def run() -> bool:
        kernel = bench.kernel
        await kernel.use(lambda: bench.plane, lambda _: Untouched(generation, lambda: 0))
        bench.plane.loaded = flush
        await kernel.load(bench.plan)
        assert kernel.untouched is not None
        return kernel.untouched.look()

    assert asyncio.run(run())


def test_what_others_changed_is_not_forgotten_when_a_load_fails() -> None:
    bench, generation = Bench("0"), Counter()
    [only] = fresh("0")
    bench.plan.entries[only.key] = only

    def fail() -> Table:
        raise PlaneError("cannot be read")

    async def run() -> bool:
        kernel = bench.kernel
        await kernel.use(lambda: bench.plane, lambda _: Untouched(generation, lambda: 0))
        assert kernel.untouched is not None
        generation.now += 1
        assert kernel.untouched.look()
        bench.plane.read_back = fail  # type: ignore[method-assign]
        done = await kernel.load(bench.plan)
        assert done.errors
        assert not done.loaded
        return kernel.untouched.look()

    assert asyncio.run(run())


class SlowCounter(Counter):
    """A counter that takes its time in the plane's thread, and notices when it is read by two threads at once."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.go_on = threading.Event(), threading.Event()
        self.at_once = 0
        self._readers = 0

    def read(self) -> int:
        self._readers += 1
        self.at_once = max(self.at_once, self._readers)
        if self.reading.is_set() is False and threading.current_thread() is not threading.main_thread():
            self.reading.set()
            assert self.go_on.wait(60)
        self._readers -= 1
        return self.now


def test_a_brief_change_waits_for_a_look_at_the_generation() -> None:
    """It is applied by the event loop's thread, and the socket that the generation is read by is for one at a time."""
    bench, generation = Bench(), SlowCounter()
    bench.plane.is_brief = lambda change: True  # type: ignore[method-assign]
    generation.go_on.set()

    async def run() -> bool:
        kernel = bench.kernel
        await kernel.use(lambda: bench.plane, lambda _: Untouched(generation, lambda: 0))
        await kernel.load(bench.plan)
        generation.reading.clear()
        generation.go_on.clear()
        look = asyncio.create_task(kernel.look())
        await asyncio.to_thread(generation.reading.wait, 60)
        change = asyncio.create_task(bench.add(*fresh("a")))
        for _ in range(10):
            await asyncio.sleep(0)
        generation.go_on.set()
        await change
        return await look

    assert not asyncio.run(run())
    assert bench.names == {"a"}
    assert generation.at_once == 1


def test_the_first_load_on_an_empty_kernel_leaves_out_only_the_bad() -> None:
    async def scenario() -> None:
        bench = Bench("bad")
        for item in fresh("a", "bad", "c"):
            bench.plan.entries[item.key] = item
        done = await bench.load()
        assert done.loaded
        assert done.errors
        assert bench.names == {"a", "c"}
        assert bench.kernel.ledger.services() == ["default/bad"]

    asyncio.run(scenario())


def test_a_load_over_a_working_table_leaves_out_only_the_bad() -> None:
    """Nobody names the bad one: what is held as it should be never goes, and the rest is tried part by part."""

    async def scenario() -> None:
        bench = Bench()
        kept, changed, gone = fresh("a", "changed", "gone")
        bench.plane.held = {each.key: each for each in (kept, changed, gone)}
        bench.plane.bad = {"bad"}
        wanted = [kept, replace(changed, cluster=changed.cluster * 2), *fresh("", "", "", "bad", "new")[3:]]
        bench.plan.entries = {item.key: item for item in wanted}
        done = await bench.load()
        assert done.loaded
        assert done.errors == ("default/bad: refused",)
        assert bench.plane.held == {item.key: item for item in wanted if item.key.name != "bad"}
        done = await bench.add(*[entry("later", "10.0.0.1", address="10.96.8.8")])
        assert done.errors == ("default/bad: refused",)
        assert bench.names == {"a", "changed", "new", "later"}

    asyncio.run(scenario())


def test_a_plane_that_refuses_everything_keeps_what_it_holds() -> None:
    async def scenario() -> None:
        bench = Bench()
        [old] = fresh("a")
        bench.plane.held, bench.plane.bad = {old.key: old}, {"a", "b"}
        bench.plan.entries = {item.key: item for item in fresh("a", "b")}
        done = await bench.load()
        assert not done.loaded
        assert done.errors == ("refused",)
        assert bench.plane.held == {old.key: old}

    asyncio.run(scenario())


@pytest.mark.parametrize("names", [True, False])
def test_health_tells_of_what_cannot_be_held_and_fails_for_what_may_pass(names: bool) -> None:
    """names: whether the plane says that it can never hold the entry."""

    async def scenario() -> None:
        bench, now = Bench("bad"), [0.0]
        bench.plane.names = names
        await bench.load()
        health = Health(60.0, lambda: now[0])

        async def nothing(*_: object) -> NodeConfig:
            return NodeConfig()

        log = Log("error", out=io.StringIO())
        reconciler = Reconciler(
            "n", Inbox(()), bench.kernel, nothing, health, Metrics(), log, Pace(0.0),
            nothing, Jobs(log),  # type: ignore[arg-type]
        )  # fmt: skip
        for number, added in enumerate((fresh("good", "bad"), [entry("later", "10.0.0.1", address="10.96.8.8")])):
            now[0] = 1000.0 * (number + 1)
            change = PlanChange(entries=tuple(EntryChange(None, each) for each in added))
            apply_change(bench.plan, change)
            reconciler.planner.plan = bench.plan
            await reconciler._do(change, None)
        assert bench.names == {"good", "later"}
        status, body = health.healthz()
        assert status == (200 if names else 503)
        assert json.loads(body).get("refusedServicePorts") == (["default/bad"] if names else None)
        bench.plane.bad = set()
        await reconciler._do(PlanChange(), None)
        status, body = health.livez()
        assert status == 200
        assert "refusedServicePorts" not in json.loads(body)

    asyncio.run(scenario())


@pytest.mark.parametrize("loaded", [False, True])
def test_very_many_that_cannot_be_held_keep_out_nobody_and_are_all_named(loaded: bool) -> None:
    """At a start and by a change; trying again costs one attempt, and they are told apart from what may pass."""

    async def scenario() -> None:
        names = [f"s{number}" for number in range(300)]
        bad = set(names[::2])
        bench = Bench(*bad)
        bench.plane.names = True
        if loaded:
            bench.plan.entries = {item.key: item for item in fresh(*names)}
            done = await bench.load()
        else:
            await bench.load()
            done = await bench.add(*fresh(*names))
        assert bench.names == set(names) - bad
        assert set(done.refused) == set(done.errors) == {f"default/{name}: refused" for name in bad}
        bench.plane.refusals = 0
        done = await bench.add(*[entry("later", "10.0.0.1", address="10.96.8.8")])
        assert "later" in bench.names
        assert len(done.refused) == len(bad)
        assert bench.plane.refusals <= 2

    asyncio.run(scenario())


def test_stale_flows_are_cleaned_for_what_was_done_and_a_failure_is_told() -> None:
    async def scenario() -> None:
        bench = Bench("bad")
        await bench.load()
        bench.cleaned.clear()
        await bench.add(*fresh("a", "bad", "c"))
        assert {change.key.name for each in bench.cleaned for change in each.entries} == {"a", "c"}

        bench.plane.bad, bench.refuse_cleaning = set(), True
        done = await bench.add(*[entry("d", "10.0.0.1", address="10.96.8.8")])
        assert done.errors == ("conntrack said no",)
        assert "d" in bench.names
        bench.cleaned.clear()
        bench.refuse_cleaning = False
        assert not (await bench.kernel.apply(PlanChange(), bench.plan)).errors
        assert "d" in {change.key.name for each in bench.cleaned for change in each.entries}

    asyncio.run(scenario())


def test_a_load_over_what_an_earlier_daemon_left_leaves_out_only_what_the_plane_names() -> None:
    async def scenario() -> None:
        bench = Bench("bad")
        bench.plane.names = True
        one, bad, two = fresh("one", "bad", "two")
        bench.plane.held = {one.key: one}
        bench.plan.entries = {each.key: each for each in (one, bad, two)}
        done = await bench.load()
        assert done.loaded
        assert done.errors == ("default/bad: refused",)
        assert set(bench.plane.held) == {one.key, two.key}
        loads = bench.plane.loads
        (three,) = fresh("three")
        bench.plan.entries[three.key] = three
        done = await bench.kernel.apply(PlanChange(entries=(EntryChange(None, three),)), bench.plan)
        assert set(bench.plane.held) == {one.key, two.key, three.key}
        again = await bench.kernel.apply(PlanChange(), bench.plan)
        assert again.errors == ("default/bad: refused",)
        assert bench.plane.loads == loads, "a retry costs the entry, not the plan"

    asyncio.run(scenario())


def test_the_worker_leaves_the_event_loop_its_turns() -> None:
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        Kernel(lambda *_: None).close()
        assert sys.getswitchinterval() <= 0.001, "a loop that wakes up waits that long for a worker that computes"
    finally:
        sys.setswitchinterval(before)
