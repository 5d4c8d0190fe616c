"""Periodic read-back: is what the kernel holds still the plan? Somebody may have flushed the tables."""

import asyncio
import time

import msgspec

from ctl.daemon.child import Child, ChildError
from ctl.daemon.log import Log
from ctl.daemon.metrics import Metrics
from ctl.daemon.planes import left_out, reading_plane
from ctl.daemon.reconcile import Reconciler
from ctl.drift import differences
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan

SHARE = 20
"""A check that takes long is done less often: at most one part in this many of the time is spent on checks."""

POLL_SECONDS = 1.0
RARELY_SECONDS = 600.0
PATIENCE = 300.0
SHOWN = 5


class Found(msgspec.Struct):
    """A difference, as the child reports it. service: EntryKey.service of the plan or of the kernel's row."""

    service: str
    frontend: str
    difference: str


def _look(plan: Plan, mode: str) -> bytes:
    """In the child: every difference between the plan and the kernel."""
    have = reading_plane(mode, plan).read_back()
    found = [Found(d.service, str(d.frontend), d.difference) for d in differences(rows(plan), have)]
    return msgspec.msgpack.encode(found)


class DriftCheck:
    """Compares kernel and plan, and has the plan loaded again when they differ.

    Where the kernel can tell that nobody else has changed anything, that is asked every second and the table is read
    when somebody has, and rarely otherwise; elsewhere it is read every `period` seconds. A check that takes long is
    done less often.
    """

    def __init__(self, reconciler: Reconciler, metrics: Metrics, log: Log, period: float) -> None:
        self._reconciler, self._metrics, self._log = reconciler, metrics, log
        self.period = period

    async def run(self) -> None:
        """Check for ever."""
        spent, last = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() - last < SHARE * spent or not await self._due(last):
                continue
            last = time.monotonic()
            await self.check()
            spent = time.monotonic() - last

    async def _due(self, last: float) -> bool:
        kernel = self._reconciler.kernel
        if kernel.untouched is None:
            return time.monotonic() - last >= self.period
        return time.monotonic() - last >= RARELY_SECONDS or await kernel.call(kernel.untouched.look)

    async def check(self) -> int:
        """Look once, in a child, while changes go on; repair what differs and was not changed meanwhile.

        Returns the number of differences.
        """
        begun: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._reconciler.request(lambda: self._begin(begun))
        kernel = self._reconciler.kernel
        behind = {*kernel.ledger.services(), *await kernel.call(left_out, kernel.plane)}
        child = await begun
        try:
            found = msgspec.msgpack.decode(await child.answer(PATIENCE), type=list[Found])
        except ChildError as error:
            self._log.warning("the kernel could not be read back", reason=error)
            return 0
        ignored = self._reconciler.touched | behind
        found = [each for each in found if each.service not in ignored]
        if found:
            for each in found[:SHOWN]:
                self._log.warning(
                    "the kernel differs from the plan", service=each.service, frontend=each.frontend,
                    difference=each.difference,
                )  # fmt: skip
            self._metrics.drifted.inc(len(found))
            self._metrics.repairs.inc()
            self._reconciler.request(lambda: self._reconciler.reload(f"repair of {len(found)} differences"))
        return len(found)

    async def _begin(self, begun: "asyncio.Future[Child]") -> None:
        """Between two changes, when the kernel holds what the plan says."""
        kernel = self._reconciler.kernel
        plan, mode = self._reconciler.planner.plan, kernel.plane.name
        self._reconciler.touched = set()
        if kernel.untouched is not None:
            await kernel.call(kernel.untouched.trust)
        begun.set_result(Child(lambda: _look(plan, mode)))
