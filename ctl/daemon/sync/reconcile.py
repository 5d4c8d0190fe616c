"""The reconcile loop: takes events from the inbox, plans them and applies each change to the kernel."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ctl.daemon.http.health import Health
from ctl.daemon.http.metrics import Metrics, ip_family
from ctl.daemon.http.tally import Tally
from ctl.daemon.jobs import Jobs, attempt, reason
from ctl.daemon.log import Log
from ctl.daemon.sync.inbox import Batch, Inbox
from ctl.daemon.sync.kernel import Done, Kernel
from ctl.daemon.sync.pace import Pace
from ctl.store.journal import Journal
from dataplane.backoff import Backoff
from dataplane.model.net import Family
from dataplane.model.objects import Node
from dataplane.plan.change import EntryChange, PlanChange, merged
from dataplane.plan.planner import Planner
from dataplane.planes.registry import mode_of
from dataplane.policy.node import NodeConfig
from dataplane.policy.settings import Promises

_T = TypeVar("_T")
LOG_SECONDS = 0.1
SILENT_SECONDS = 15.0
"""How long the first lists may take without a word."""
SHOWN = 3
"""Number of Services that a log line names."""


class Reconciler:
    """Owns the plan. For use in one event loop; everything it does to the plan happens in `start` and `run`.

    An error loses nothing: the batch goes back to the inbox, and if the kernel may lack something, the whole plan is
    loaded at the next try.

    name: this node's. node: its Node object as it was last known. describe: the NodeConfig for a Node object (None:
    there never was one). after: called when a change has been taken in; health-check ports, Events and the like come
    then, outside of the time that counts. jobs: tells of what fails. unwritten: called for each change that the
    journal lacks. before_load: waited for between the first complete lists and the first plan. vouched: the objects
    come from an API server (see Planner).
    """

    def __init__(
        self,
        name: str,
        inbox: Inbox,
        kernel: Kernel,
        describe: Callable[[Node | None], Awaitable[NodeConfig]],
        health: Health,
        metrics: Metrics,
        log: Log,
        pace: Pace,
        after: Callable[[PlanChange], Awaitable[None]],
        jobs: Jobs,
        unwritten: Callable[[], None] = lambda: None,
        before_load: Callable[[], Awaitable[None]] | None = None,
        *,
        vouched: bool = True,
    ) -> None:
        self.inbox, self.kernel, self.describe = inbox, kernel, describe
        self.pace, self.retry, self.tally = pace, Backoff(), Tally()
        self.node: Node | None = None
        self.syncs = 0
        self.touched: set[str] = set()
        self.journal: Journal | None = None
        self.journal_failed = False
        self._node_is_gone = False
        self._logged, self._unlogged = 0.0, 0
        self._waiting: deque[tuple[str, Callable[[], Awaitable[object]], Backoff]] = deque()
        self._asked = asyncio.Event()
        self._jobs, self._unwritten, self._before_load = jobs, unwritten, before_load
        self._untrue = ""  # why the kernel may not be what the plan says
        self._replan = False
        self._health, self._metrics, self._log, self._after = health, metrics, log, after
        self._name = name
        self.planner = Planner(NodeConfig(name=name), vouched=vouched)

    async def start(self) -> None:
        """Wait for the first complete lists, then load their plan; retry until that has worked."""
        await self._first_lists()
        self._health.queued()
        if self._before_load is not None:
            await self._before_load()
        started = time.perf_counter()
        await self._first_plan()
        planned = time.perf_counter() - started
        while True:
            done = await self.kernel.load(self.planner.plan)
            self._count(done)
            if done.loaded:
                break
            wait = self.retry.failed()
            self._log.error("the plan cannot be loaded", reason="; ".join(done.errors), retry_s=wait)
            await asyncio.sleep(wait)
        self._record_result(done)
        self._log.info(
            "loaded", mode=self.kernel.plane.name, service_ports=self.tally.entries, frontends=self.tally.frontends,
            changed=len(done.changed.entries), plan_s=round(planned, 3), load_s=round(done.seconds, 3),
        )  # fmt: skip
        await self._follow_up(PlanChange(health_checks=dict(self.planner.plan.health_checks) or None))

    async def _first_lists(self) -> None:
        """Wait for them; if that takes long, say once for which: until then nothing is loaded that was not before."""
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                await self.inbox.listed()
        except TimeoutError:
            lacks = ",".join(self.inbox.unlisted)
            self._log.warning("nothing is loaded yet", lacks=lacks, waited_s=round(SILENT_SECONDS))
            await self.inbox.listed()

    async def _first_plan(self) -> None:
        """Plan all known objects. May be called again if a later step failed."""
        batch = self.inbox.take()
        self.tally.count(await self._planned(batch, first=True))
        self._metrics.took(batch.events)

    async def run(self) -> None:
        """Follow the inbox for ever; errors are reported and retried."""
        while True:
            await self._wait()
            await self._work_off()
            error = await attempt(self.step)
            if error is not None:
                self._health.queued()
                self._untrue = reason(error)
                self._jobs.failure("reconcile", error, self.retry)
            elif not self._untrue:
                self._jobs.works("reconcile")

    async def _work_off(self) -> None:
        """Run the requested jobs. One that fails is retried later and does not delay the others."""
        self._asked.clear()
        while self._waiting:
            await self._try(*self._waiting.popleft())

    async def _try(self, name: str, job: Callable[[], Awaitable[object]], retry: Backoff) -> None:
        error = await attempt(job)
        if error is not None:
            wait = self._jobs.failure(name, error, retry)
            asyncio.get_running_loop().call_later(wait, self._request, name, job, retry)
        else:
            self._jobs.works(name)

    def request(self, name: str, job: Callable[[], Awaitable[object]]) -> None:
        """Run a job in the reconcile loop, between two changes; retried until it works."""
        self._request(name, job, Backoff())

    def _request(self, name: str, job: Callable[[], Awaitable[object]], retry: Backoff) -> None:
        self._waiting.append((name, job, retry))
        self._asked.set()
        self.inbox.wake()

    async def between(self, name: str, job: Callable[[], Awaitable[_T]]) -> _T:
        """Run a job once in the reconcile loop, between two changes; return or raise what it returns or raises."""
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        found: list[_T] = []

        async def once() -> None:
            found.append(await job())

        async def report() -> None:
            error = await attempt(once)
            if answer.done():  # the caller was cancelled
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found[0])

        self.request(name, report)
        return await answer

    async def step(self) -> None:
        """Plan the waiting events and apply the change, together with changes that failed before."""
        if self._untrue and self.retry.due_in():
            return  # the kernel is loaded whole when it is tried again; what waits in the inbox goes with that
        if self.inbox.pending:
            self.pace.spend()
        batch = self.inbox.take()
        change = await self._planned(batch)
        self._metrics.took(batch.events)
        await self._do(change, batch)

    async def _planned(self, batch: Batch, *, first: bool = False) -> PlanChange:
        """Plan a batch. If that fails the batch goes back to the inbox; if it fails in the middle of planning, every
        Service is planned again at the next try."""
        before = self.node
        try:
            moved = self._update_node_object(batch) or self._replan or first
            node = await self.describe(self.node) if moved else self.planner.plan.node
        except BaseException:
            self.node = before
            self.inbox.put_back(batch)
            raise
        try:
            if first:
                self.planner.set_node(node)
            if self._replan:
                self.planner.plan.node = NodeConfig(name="")  # another one, so that nothing is taken for done
            change = merged(await self._update(batch), await self._set_node(node))
        except BaseException:
            self.node = before
            self.inbox.put_back(batch)
            self._replan = True
            raise
        if self._replan:
            self._replan = False
            self._recount()
            return PlanChange(node=node)
        return change

    async def _update(self, batch: Batch) -> PlanChange:
        """Plan a short batch at once, a long one in the kernel's thread, so that health checks and watches go on."""
        if self.planner.takes_long(batch.upserts, batch.deletes):
            return await self.kernel.call(self.planner.update, batch.upserts, batch.deletes)
        return self.planner.update(batch.upserts, batch.deletes)

    async def _set_node(self, node: NodeConfig) -> PlanChange:
        if node == self.planner.plan.node:
            return PlanChange()
        return await self.kernel.call(self.planner.set_node, node)

    def _recount(self) -> None:
        """Start tally and journal again, as it is not known what has changed since the last change."""
        self._untrue = self._untrue or "planned anew"
        self.tally = Tally()
        self.tally.count(PlanChange(entries=tuple(EntryChange(None, e) for e in self.planner.plan.entries.values())))
        self._end_journal("the plan was made anew")

    async def change_node(self) -> None:
        """Describe this node again: its addresses, or the configuration, may have changed."""
        change = await self._set_node(await self.describe(self.node))
        if change:
            self._log.info("this node changed", addresses=",".join(self.planner.plan.node.addresses))
            await self._do(change, None)

    async def reload(self, why: str) -> bool:
        """Load the plan, whatever the kernel holds; true if that worked. If not it is retried."""
        self._untrue = why
        done = await self.kernel.load(self.planner.plan)
        self._untrue = "" if done.loaded else why
        self._count(done)
        self._record_result(done)
        self._log.info("loaded again", why=why, changed=len(done.changed.entries), load_s=round(done.seconds, 3))
        return done.loaded

    async def _wait(self) -> None:
        """Wait until there are events and a sync is allowed, or a retry is due."""
        news = self._asked.wait if self._untrue else self.inbox.news
        try:
            async with asyncio.timeout(self.retry.due_in()):
                await news()
        except TimeoutError:
            return
        delay = 0.0
        if self.inbox.pending:
            self._health.queued()
            self._metrics.queued()
            delay = self.pace.delay()
        if delay:
            await asyncio.sleep(delay)

    async def _do(self, change: PlanChange, batch: Batch | None) -> None:
        self.tally.count(change)
        self.syncs += 1
        self.touched.update(entry.key.service for entry in change.entries)
        self._write_down(change)
        if self._untrue:
            self._health.queued()
            await self.reload(self._untrue)
        elif change or self.retry.failures_in_a_row:
            self._health.queued()
            done = await self.kernel.apply(change, self.planner.plan)
            self._count(done)
            self._record_result(done)
            self._log_sync(done, time.monotonic() - batch.arrived if batch else 0.0)
        else:
            self._health.updated()
        if batch is not None and change:
            now, clock = time.monotonic(), time.time()
            self._metrics.event_seconds.observe(now - batch.arrived)
            for family, trigger in batch.triggers:
                self._metrics.network.labels(ip_family(family)).observe(max(0.0, clock - trigger))
        await self._follow_up(change)

    async def _follow_up(self, change: PlanChange) -> None:
        await self._try("after a change", lambda: self._after(change), Backoff())

    def _write_down(self, change: PlanChange) -> None:
        """Write a change to the journal before it is applied: after a kill it is known that the kernel may lack it."""
        if not change:
            return
        if self.journal is None:
            self._unwritten()
            return
        try:
            self.journal.append(change)
        except OSError as error:
            self._end_journal(error.strerror or str(error))

    def _end_journal(self, why: str) -> None:
        """Stop the journal: from now on the saved plan is not the loaded one."""
        if self.journal is not None:
            self._log.warning("changes can no longer be written down for other commands", reason=why)
            self.journal_failed = True
            self.journal.close()
            self.journal = None
        self._unwritten()

    def _record_result(self, done: Done) -> None:
        """Report the result of an attempt to health, metrics and log, and schedule the next one if it failed."""
        if done.errors or self.kernel.ledger:
            wait = self.retry.failed()
            self._log.error(
                "the kernel refused changes", behind=len(self.kernel.ledger), retry_s=wait,
                services=",".join(self.kernel.ledger.services()[:SHOWN]), reason="; ".join(done.errors[:SHOWN]),
            )  # fmt: skip
            if set(done.errors) == set(done.refused):  # nothing waits that could get into the kernel
                self._health.refused = self.kernel.ledger.services()
                self._health.updated()
                self._metrics.synced()
            return
        self._health.refused = []
        if self.retry.failures_in_a_row:
            self._log.info("the kernel holds everything again")
        self.retry.worked()
        self._health.updated()
        self._metrics.synced()

    def _count(self, done: Done) -> None:
        families = {entry.key.family for entry in done.changed.entries}
        whole = done.loaded or not families or bool(done.errors)
        self._metrics.sync(tuple(Family) if whole else tuple(families), done.seconds, full=done.loaded)
        if done.errors:
            self._metrics.failed(iptables=mode_of(self.kernel.plane.name).promises is Promises.IPTABLES)

    def _log_sync(self, done: Done, age: float) -> None:
        """Log one line per sync; at most one in a tenth of a second, with a count of the others."""
        entries = done.changed.entries
        self._unlogged += 1
        now = time.monotonic()
        if not entries or now - self._logged < LOG_SECONDS:
            return
        names = list(dict.fromkeys(entry.key.service for entry in entries))
        self._log.info(
            "synced", syncs=self._unlogged, service_ports=len(entries), services=",".join(names[:SHOWN]),
            kernel_ms=round(done.seconds * 1e3, 2), event_ms=round(age * 1e3, 2),
        )  # fmt: skip
        self._logged, self._unlogged = now, 0

    def _update_node_object(self, batch: Batch) -> bool:
        """True if this node's Node object appeared or changed. A deleted one is kept as it was last, as in kube-proxy:
        to serve without its zone and pod range would be wrong."""
        before, name = self.node, self._name
        if any(ref.kind == "Node" and ref.name == name for ref in batch.deletes):
            self._log.warning("the Node object is gone; its last zone, addresses and pod ranges stay", node=name)
            self._node_is_gone = True
        for item in batch.upserts:
            if isinstance(item, Node) and item.name == name:
                self.node = item
                if self._node_is_gone:
                    self._log.info("the Node object is there again", node=name)
                self._node_is_gone = False
        return self.node != before
