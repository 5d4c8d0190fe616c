"""What a plane has besides its table, programs and pins: put back at once when another process takes it away."""

import asyncio
import time
from collections.abc import Sequence

from ctl.daemon.http.metrics import Metrics
from ctl.daemon.log import Log
from ctl.daemon.sync.kernel import Kernel
from dataplane.kernel.inotify import Inotify
from dataplane.planes.base import Plane

POLL_SECONDS = 1.0
"""Seconds between two looks, unless the kernel tells of a change."""

SHARE = 200
"""At most one part in this many of a processor is spent on looks that nobody asked for."""

SHOWN = 5


def _mend(plane: Plane) -> tuple[Sequence[str], float]:
    """In the plane's thread: what was put back, and the processor's seconds that it took."""
    started = time.thread_time()
    return plane.mend(), time.thread_time() - started


class PartsWatch:
    """Has the plane in use put back what is missing. For one event loop."""

    def __init__(self, kernel: Kernel, metrics: Metrics, log: Log) -> None:
        self._kernel, self._metrics, self._log = kernel, metrics, log
        self._spent = 0.0

    async def run(self) -> None:
        """Look every second, and at once when a directory of the plane's lost or got an entry. Does not end. Raises the
        plane's errors, and OSError where the system has no room for another watch."""
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        with Inotify() as changes:

            def hear() -> None:
                changes.drain()
                told.set()

            loop.add_reader(changes.fileno(), hear)
            try:
                while True:
                    changes.watch(await self._kernel.call(self._kernel.plane.directories))  # before it looks
                    await self.look()
                    told.clear()
                    try:
                        async with asyncio.timeout(max(POLL_SECONDS, SHARE * self._spent)):
                            await told.wait()
                    except TimeoutError:
                        continue
            finally:
                loop.remove_reader(changes.fileno())

    async def look(self) -> None:
        """Look once, and tell what was put back."""
        found, seconds = await self._kernel.call(_mend, self._kernel.plane)
        self._spent = 0.0 if found else seconds
        for each in found[:SHOWN]:
            self._log.warning("put back what another process had taken away", what=each, all=len(found))
        if found:
            self._metrics.drifted.inc(len(found))
            self._metrics.repairs.inc()
