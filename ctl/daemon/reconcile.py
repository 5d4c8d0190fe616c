"""The reconcile loop: from the inbox through the planner to the kernel, one change after the other."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from ctl.daemon.health import Health
from ctl.daemon.inbox import Batch, Inbox
from ctl.daemon.kernel import Done, Kernel
from ctl.daemon.log import Log
from ctl.daemon.metrics import Metrics, ip_family
from ctl.daemon.pace import Pace, Retry
from ctl.daemon.tally import Tally
from ctl.journal import Journal
from dataplane.model.net import Family
from dataplane.model.objects import Node
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.planner import Planner
from dataplane.policy.node import NodeConfig

TELL_SECONDS = 0.1
SHOWN = 3
"""Services that a log line names."""


class Reconciler:
    """Owns the plan. For use in one event loop; everything it does to the plan happens in `start` and `run`.

    name: this node's. node: its Node object as it was last known. describe: the NodeConfig for a Node object (None:
    there never was one). after: called when a change has been taken in; health-check ports, Events and the like come
    then, outside of the time that counts.
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
    ) -> None:
        self.inbox, self.kernel, self.describe = inbox, kernel, describe
        self.pace, self.retry, self.tally = pace, Retry(), Tally()
        self.node: Node | None = None
        self.syncs = 0
        self.touched: set[str] = set()
        self.journal: Journal | None = None
        self._told, self._untold = 0.0, 0
        self._jobs: deque[Callable[[], Awaitable[object]]] = deque()
        self._health, self._metrics, self._log, self._after = health, metrics, log, after
        self.planner = Planner(NodeConfig(name=name))

    async def start(self) -> None:
        """Wait until everything is known, then bring the kernel to it; try again until that has worked."""
        while not self.inbox.complete_once:
            await self.inbox.news()
            await asyncio.sleep(0)
        self._health.queued()
        batch = self.inbox.take()
        started = time.perf_counter()
        self._hear_of_node(batch)
        self.planner.plan.node = await self.describe(self.node)
        change = self.planner.update(batch.upserts, batch.deletes)
        self.tally.count(change)
        self._metrics.took(batch.events)
        planned = time.perf_counter() - started
        del batch, change
        while True:
            done = await self.kernel.load(self.planner.plan)
            self._count(done)
            if done.loaded:
                break
            wait = self.retry.failed()
            self._log.error("the plan cannot be loaded", reason="; ".join(done.errors), retry_s=wait)
            await asyncio.sleep(wait)
        self._settle(done)
        self._log.info(
            "loaded", mode=self.kernel.plane.name, service_ports=self.tally.entries, frontends=self.tally.frontends,
            changed=len(done.changed.entries), plan_s=round(planned, 3), load_s=round(done.seconds, 3),
        )  # fmt: skip
        await self._after(PlanChange(health_checks=dict(self.planner.plan.health_checks) or None))

    async def run(self) -> None:
        """Follow the inbox for ever."""
        while True:
            await self._wait()
            while self._jobs:
                await self._jobs.popleft()()
            await self.step()

    def request(self, job: Callable[[], Awaitable[object]]) -> None:
        """Have something done by the loop itself, between two changes."""
        self._jobs.append(job)
        self.inbox.wake()

    async def step(self) -> None:
        """Take in what waits, and do it together with what failed before."""
        if self.inbox.pending:
            self.pace.spend()
        batch = self.inbox.take()
        node = self._hear_of_node(batch)
        change = self.planner.update(batch.upserts, batch.deletes)
        if node:
            change = merged(change, self.planner.set_node(await self.describe(self.node)))
        self._metrics.took(batch.events)
        await self._do(change, batch)

    async def change_node(self) -> None:
        """Look again what this node is: its addresses, or the configuration, may have changed."""
        change = self.planner.set_node(await self.describe(self.node))
        if change:
            self._log.info("this node changed", addresses=",".join(self.planner.plan.node.addresses))
            await self._do(change, None)

    async def reload(self, why: str) -> bool:
        """Bring the kernel to the plan whatever it holds now; whether that worked."""
        done = await self.kernel.load(self.planner.plan)
        self._count(done)
        self._settle(done)
        self._log.info("loaded again", why=why, changed=len(done.changed.entries), load_s=round(done.seconds, 3))
        return done.loaded

    async def _wait(self) -> None:
        """Until there is news and a sync is allowed, or something that failed is to be tried again."""
        try:
            async with asyncio.timeout(self.retry.due_in()):
                await self.inbox.news()
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
        if change or self.retry.failures_in_a_row:
            self._health.queued()
            done = await self.kernel.apply(change, self.planner.plan)
            self._count(done)
            self._settle(done)
            self._tell(done, time.monotonic() - batch.arrived if batch else 0.0)
        else:
            self._health.updated()
        if batch is not None and change:
            now, clock = time.monotonic(), time.time()
            self._metrics.event_seconds.observe(now - batch.arrived)
            for family, trigger in batch.triggers:
                self._metrics.network.labels(ip_family(family)).observe(max(0.0, clock - trigger))
        await self._after(change)

    def _write_down(self, change: PlanChange) -> None:
        """Into the journal before the kernel: what it may lack after a kill is then known to be lacking."""
        if self.journal is None or not change:
            return
        try:
            self.journal.append(change)
        except OSError as error:
            self._log.warning("changes can no longer be written down for other commands", reason=error.strerror)
            self.journal.close()
            self.journal = None

    def _settle(self, done: Done) -> None:
        """After an attempt: all well, or when to try again."""
        if done.errors or self.kernel.ledger:
            wait = self.retry.failed()
            self._log.error(
                "the kernel refused changes", behind=len(self.kernel.ledger), retry_s=wait,
                services=",".join(self.kernel.ledger.services()[:SHOWN]), reason="; ".join(done.errors[:SHOWN]),
            )  # fmt: skip
            return
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
            self._metrics.failed(iptables=self.kernel.plane.name == "iptables")

    def _tell(self, done: Done, age: float) -> None:
        """One line a sync; of those that follow each other closely only one in a tenth of a second, with a count."""
        entries = done.changed.entries
        self._untold += 1
        now = time.monotonic()
        if not entries or now - self._told < TELL_SECONDS:
            return
        names = list(dict.fromkeys(entry.key.service for entry in entries))
        self._log.info(
            "synced", syncs=self._untold, service_ports=len(entries), services=",".join(names[:SHOWN]),
            kernel_ms=round(done.seconds * 1e3, 2), event_ms=round(age * 1e3, 2),
        )  # fmt: skip
        self._told, self._untold = now, 0

    def _hear_of_node(self, batch: Batch) -> bool:
        """Whether this node's Node object appeared or changed. One that goes stays as it was last (as in kube-proxy):
        a node without zone and pod range is none that anybody meant."""
        before, name = self.node, self.planner.plan.node.name
        if any(ref.kind == "Node" and ref.name == name for ref in batch.deletes):
            self._log.warning("the Node object is gone; its last zone, addresses and pod ranges stay", node=name)
        for item in batch.upserts:
            if isinstance(item, Node) and item.name == name:
                self.node = item
        return self.node != before


def merged(first: PlanChange, second: PlanChange) -> PlanChange:
    """Two changes in a row as one."""
    if not second:
        return first
    entries: dict[object, EntryChange] = {change.key: change for change in first.entries}
    for change in second.entries:
        earlier = entries.get(change.key)
        entries[change.key] = EntryChange(earlier.old, change.new) if earlier else change
    return PlanChange(
        entries=tuple(change for change in entries.values() if change.old != change.new),
        node=second.node or first.node,
        service_cidrs=second.service_cidrs if second.service_cidrs is not None else first.service_cidrs,
        health_checks={**(first.health_checks or {}), **(second.health_checks or {})} or None,
    )
