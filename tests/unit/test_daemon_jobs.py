"""Jobs that fail, and a reconcile loop of which every part fails once: reported by name, retried, nothing lost."""

import asyncio
import io
from collections.abc import Callable

import pytest

from ctl.daemon.http.health import Health
from ctl.daemon.http.metrics import Metrics
from ctl.daemon.jobs import Jobs
from ctl.daemon.log import Log
from ctl.daemon.sync import reconcile
from ctl.daemon.sync.inbox import Inbox
from ctl.daemon.sync.kernel import Kernel
from ctl.daemon.sync.pace import Pace
from ctl.daemon.sync.reconcile import Reconciler
from dataplane.backoff import Backoff
from dataplane.model.decode import DecodedObject
from dataplane.model.net import Protocol
from dataplane.model.objects import Node, ObjectRef, Service, ServicePortSpec
from dataplane.plan.change import PlanChange
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan, Table
from dataplane.planes.base import Plane
from dataplane.policy.node import NodeConfig


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff.__init__, "__defaults__", (0.01, 0.02))


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def test_a_job_that_fails_is_told_by_name_and_tried_again() -> None:
    async def scenario() -> None:
        out, calls = io.StringIO(), 0
        failed: list[str] = []

        async def work() -> None:
            nonlocal calls
            calls += 1
            if calls < 4:
                raise BlockingIOError(11, "Resource temporarily unavailable")

        jobs = Jobs(Log(out=out), failed.append)
        jobs.start("once", work)
        await _until(lambda: calls == 4)
        jobs.every("often", 0.001, work)
        await _until(lambda: calls > 8)
        await jobs.close()
        assert failed == ["once"] * 3
        assert out.getvalue().count('job failed job=once reason="BlockingIOError: [Errno 11]') == 3
        assert "test_daemon_jobs.py:" in out.getvalue()
        assert out.getvalue().count("job works again job=once after_s=") == 1
        assert "job works again job=often" not in out.getvalue(), "it never failed"

    asyncio.run(scenario())


def test_a_job_without_an_end_works_again_once_it_has_run_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.daemon.jobs.STANDS_SECONDS", 0.02)

    async def scenario() -> None:
        out, calls = io.StringIO(), 0

        async def work() -> None:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise OSError(12, "Cannot allocate memory")
            await asyncio.sleep(60)

        jobs = Jobs(Log(out=out))
        jobs.start("watch", work)
        await _until(lambda: "job works again job=watch" in out.getvalue())
        await jobs.close()

    asyncio.run(scenario())


def _service(name: str, number: int) -> Service:
    port = ServicePortSpec(name="", protocol=Protocol.TCP, port=80)
    return Service(namespace="default", name=name, cluster_ips=(f"10.96.0.{number}",), ports=(port,))


class _Plane(Plane):
    """Holds a plan; `broken` makes every call fail in a way that no plane promises."""

    name = "memory"

    def __init__(self) -> None:
        self.broken = False
        self.held = Plan(NodeConfig(name="n1"))

    def load(self, plan: Plan) -> PlanChange:
        self._check()
        self.held = Plan(plan.node, dict(plan.entries), plan.service_cidrs, dict(plan.health_checks))
        return PlanChange()

    def apply(self, change: PlanChange) -> None:
        self._check()
        for entry in change.entries:
            self.held.entries.pop(entry.key, None)
            if entry.new is not None:
                self.held.entries[entry.key] = entry.new

    def read_back(self) -> Table:
        return rows(self.held)

    def cleanup(self) -> None:
        self.held = Plan(NodeConfig(name="n1"))

    def _check(self) -> None:
        if self.broken:
            raise OSError(24, "Too many open files")


class _Loop:
    """A reconcile loop over that plane."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        log, self.inbox, self.plane = Log(out=self.out), Inbox(("Service", "Node")), _Plane()
        self.broken = False
        self.kernel = Kernel(lambda *_: None)
        self.jobs = Jobs(log)
        self.reconciler = Reconciler(
            "n1",
            self.inbox,
            self.kernel,
            self._describe,
            Health(60.0),
            Metrics(),
            log,
            Pace(0.0),
            self._after,
            self.jobs,
        )
        self.followed = 0

    async def _describe(self, node: Node | None) -> NodeConfig:
        if self.broken:
            raise OSError(24, "Too many open files")
        return NodeConfig(name="n1", zone=node.zone if node else "")

    async def _after(self, _: PlanChange) -> None:
        self.followed += 1

    def put(self, item: Service | Node) -> None:
        self.inbox.put(DecodedObject(item, item.ref, ()))

    async def __aenter__(self) -> "_Loop":
        await self.kernel.use(lambda: self.plane)
        self.put(_service("a", 1))
        for kind in self.inbox.kinds:
            self.inbox.complete(kind, {("default", "a")} if kind == "Service" else set())

        async def work() -> None:
            await self.reconciler.start()
            await self.reconciler.run()

        self.jobs.start("reconcile", work)
        await _until(lambda: self.names() == {"a"})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.jobs.close()
        self.kernel.close()

    def names(self) -> set[str]:
        return {key.name for key in list(self.plane.held.entries)}  # the kernel's thread changes them meanwhile

    @property
    def failures(self) -> int:
        return self.out.getvalue().count("job failed")


def test_who_waits_for_the_first_lists_says_for_which_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is asked for something meanwhile, as by SIGHUP or a new address of the node."""
    monkeypatch.setattr(reconcile, "SILENT_SECONDS", 0.01)
    turns = 0

    async def scenario() -> None:
        nonlocal turns
        loop = _Loop()
        loop.inbox.complete("Service", set())
        start = asyncio.create_task(loop.reconciler.start())

        async def nothing() -> None:
            pass

        loop.reconciler.request("reload", nothing)
        await _until(lambda: "nothing is loaded yet" in loop.out.getvalue())
        assert "nothing is loaded yet lacks=Node waited_s=0" in loop.out.getvalue()
        sleep = asyncio.sleep

        async def counted(seconds: float) -> None:
            nonlocal turns
            turns += 1
            await sleep(seconds)

        monkeypatch.setattr(asyncio, "sleep", counted)
        await sleep(0.05)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        assert not start.done()
        assert turns == 0
        assert loop.out.getvalue().count("nothing is loaded yet") == 1
        await loop.kernel.use(lambda: loop.plane)
        loop.inbox.complete("Node", set())
        async with asyncio.timeout(60):
            await start
        loop.kernel.close()

    asyncio.run(scenario())


def test_a_plane_that_fails_as_none_should() -> None:
    async def scenario() -> None:
        async with _Loop() as loop:
            loop.plane.broken = True
            loop.put(_service("b", 2))
            await _until(lambda: loop.failures >= 2)
            loop.put(_service("c", 3))
            loop.inbox.remove(ObjectRef("Service", "default", "a"))
            loop.plane.broken = False
            await _until(lambda: loop.names() == {"b", "c"})
            await _until(lambda: "job works again job=reconcile" in loop.out.getvalue())

    asyncio.run(scenario())


def test_a_planner_and_a_node_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the update done or none of it; what is heard meanwhile counts; sums are right in the end."""

    async def scenario() -> None:
        async with _Loop() as loop:
            planner = loop.reconciler.planner
            whole = planner.update

            def half(*given: object) -> PlanChange:
                whole(*given)  # type: ignore[arg-type]
                raise MemoryError

            def none(*given: object) -> PlanChange:
                raise MemoryError

            monkeypatch.setattr(planner, "update", none)
            loop.put(_service("d", 4))
            await _until(lambda: loop.failures >= 1)
            monkeypatch.setattr(planner, "update", whole)
            await _until(lambda: loop.names() == {"a", "d"})
            loop.inbox.remove(ObjectRef("Service", "default", "d"))
            await _until(lambda: loop.names() == {"a"})
            before = loop.failures
            monkeypatch.setattr(planner, "update", half)
            loop.put(_service("b", 2))
            loop.inbox.remove(ObjectRef("Service", "default", "a"))
            await _until(lambda: loop.failures >= before + 2)
            loop.put(_service("c", 3))
            monkeypatch.setattr(planner, "update", whole)
            await _until(lambda: loop.names() == {"b", "c"})
            assert loop.reconciler.tally.entries == 2
            loop.broken = True
            loop.put(Node(name="n1", zone="z"))
            before = loop.failures
            await _until(lambda: loop.failures > before)
            loop.broken = False
            await _until(lambda: loop.plane.held.node.zone == "z")
            assert loop.names() == {"b", "c"}

    asyncio.run(scenario())


def test_what_is_asked_for_and_fails_keeps_nothing_else_waiting() -> None:
    async def scenario() -> None:
        async with _Loop() as loop:
            done: list[str] = []

            async def fails() -> None:
                done.append("tried")
                if len(done) < 5:
                    raise ValueError("no")

            async def works() -> str:
                return "answer"

            loop.reconciler.request("bad", fails)
            assert await loop.reconciler.between("good", works) == "answer"
            with pytest.raises(ValueError, match="no"):
                await loop.reconciler.between("bad once", fails)
            await _until(lambda: len(done) >= 5)
            loop.put(_service("b", 2))
            await _until(lambda: loop.names() == {"a", "b"})

    asyncio.run(scenario())
