"""Periodic comparison of the kernel with the plan, since another process may have flushed the tables."""

import time

import msgspec

from ctl.daemon.http.metrics import Metrics
from ctl.daemon.log import Log
from ctl.daemon.sync.child import Child, ChildError
from ctl.daemon.sync.reconcile import Reconciler
from ctl.loaded import left_out
from ctl.store.drift import plane_differences
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan
from dataplane.planes.mode import Making
from dataplane.planes.options import LOOKING
from dataplane.planes.registry import mode_of

SHARE = 20
"""At most one part in this many of the time is spent on checks; a long check is run less often."""

POLL_SECONDS = 1.0
"""Seconds between two calls of `poll`."""

RARELY_SECONDS = 600.0
PATIENCE = 300.0
SHOWN = 5


class Found(msgspec.Struct):
    """A difference, as the child reports it. service: EntryKey.service of the plan or of the kernel's row."""

    service: str
    frontend: str
    difference: str


def _look(plan: Plan, mode: str) -> bytes:
    """In the child: find every difference between the plan and the kernel."""
    plane = mode_of(mode).make(Making(LOOKING, loaded_for=plan.node))
    found = [Found(d.service, str(d.frontend), d.difference) for d in plane_differences(plane, rows(plan))]
    return msgspec.msgpack.encode(found)


class DriftCheck:
    """Compares the kernel with the plan, and loads the plan again if they differ.

    If the kernel counts changes (the nftables generation), the counter is read every second, and the table when another
    process has changed it, else rarely; what the counter does not tell of is read every `period` seconds. A long check
    is run less often, unless the whole table has gone.
    """

    def __init__(self, reconciler: Reconciler, metrics: Metrics, log: Log, period: float) -> None:
        self._reconciler, self._metrics, self._log = reconciler, metrics, log
        self.period = period
        self._spent, self._last = 0.0, time.monotonic()
        self._failed = False

    async def poll(self) -> None:
        """Check if one is due. Raises the error of a failed check; the next call tries again."""
        if not await self._due():
            return
        self._failed = True
        started = time.monotonic()
        await self.check()
        self._failed, self._last = False, time.monotonic()
        self._spent = self._last - started

    async def _due(self) -> bool:
        kernel, ago = self._reconciler.kernel, time.monotonic() - self._last
        if ago < SHARE * self._spent:
            return await self._gone()
        if self._failed:
            return True
        if kernel.untouched is None:
            return ago >= self.period
        rarely = RARELY_SECONDS if kernel.plane.commits_tell_all else self.period
        return ago >= rarely or await kernel.look()

    async def _gone(self) -> bool:
        """Whether the table is not there at all; that is not to wait, and there is little to read."""
        kernel = self._reconciler.kernel
        return await kernel.look() and await kernel.call(kernel.plane.is_gone)

    async def check(self) -> int:
        """Compare once, in a child, while changes go on; repair differences in entries that did not change meanwhile.

        Returns the number of differences. Raises ChildError, OSError (no child can be made).
        """
        child, behind = await self._reconciler.between("drift", self._begin)
        try:
            found = msgspec.msgpack.decode(await child.answer(PATIENCE), type=list[Found])
        except ChildError as error:
            raise ChildError(f"the kernel could not be read back: {error}") from error
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
            why = f"repair of {len(found)} differences"
            self._reconciler.request("repair", lambda: self._reconciler.reload(why))
        return len(found)

    async def _begin(self) -> tuple[Child, set[str]]:
        """Start the child between two changes, when the kernel holds the plan, but for these Services."""
        kernel = self._reconciler.kernel
        behind = {*kernel.ledger.services(), *await kernel.call(left_out, kernel.plane)}
        plan, mode = self._reconciler.planner.plan, kernel.plane.name
        self._reconciler.touched = set()
        if kernel.untouched is not None:
            await kernel.call(kernel.untouched.trust)
        return Child(lambda: _look(plan, mode)), behind
