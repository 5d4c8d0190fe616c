"""Background jobs of the daemon. A failed one is reported by name and retried; it ends neither the daemon nor other
jobs."""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

from ctl.daemon.log import Log
from dataplane.backoff import Backoff
from dataplane.errors import HotplaneError

LONG_SECONDS = 120.0
"""A job that has run for so long counts as working: its next failure is its first."""

STANDS_SECONDS = 10.0
"""A job without an end that was started again and has run for so long is told to work."""

_FRAMES = 4
_PATIENCE = 1.0


def reason(error: BaseException) -> str:
    """Describe an error in one line; an unexpected one with its type and where it was raised."""
    if isinstance(error, HotplaneError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__}: {error} ({where})"


async def attempt(job: Callable[[], Awaitable[object]]) -> Exception | None:
    """Run a job and return the exception that it raised, if any."""
    try:
        await job()
    except Exception as error:  # noqa: BLE001 - this is where nothing that fails ends anything else
        return error
    return None


class Jobs:
    """Runs jobs in one event loop. failed: called with a job's name each time it fails."""

    def __init__(self, log: Log, failed: Callable[[str], object] = lambda _: None) -> None:
        self._log, self._failed = log, failed
        self._since: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, job: Callable[[], Awaitable[object]]) -> None:
        """Start a job; it is started again if it fails."""
        self._go(name, self._until_done(name, job))

    def every(self, name: str, seconds: float, job: Callable[[], Awaitable[object]]) -> None:
        """Run a job periodically, with a pause before each run."""
        self._go(name, self._again_and_again(name, seconds, job))

    def failure(self, name: str, error: Exception, retry: Backoff) -> float:
        """Report a failed job; return the seconds until its retry."""
        wait = retry.failed()
        self._since.setdefault(name, time.monotonic())
        self._failed(name)
        self._log.error("job failed", job=name, reason=reason(error), retry_s=wait)
        return wait

    def works(self, name: str) -> None:
        """Note that a job works; if it failed before, that is over."""
        since = self._since.pop(name, None)
        if since is not None:
            self._log.info("job works again", job=name, after_s=round(time.monotonic() - since, 1))

    async def close(self) -> None:
        """Cancel all jobs."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(list(self._tasks), timeout=_PATIENCE)  # library code may lose the word

    def _go(self, name: str, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task), "made of a coroutine"
        task.set_name(name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_done(self, name: str, job: Callable[[], Awaitable[object]]) -> None:
        retry, loop = Backoff(), asyncio.get_running_loop()
        while True:
            started = loop.time()
            stands = loop.call_later(STANDS_SECONDS, self.works, name)
            error = await attempt(job)
            stands.cancel()
            if error is None:
                self.works(name)
                return
            if loop.time() - started > LONG_SECONDS:
                retry.worked()
            await asyncio.sleep(self.failure(name, error, retry))

    async def _again_and_again(self, name: str, seconds: float, job: Callable[[], Awaitable[object]]) -> None:
        retry, wait = Backoff(), seconds
        while True:
            await asyncio.sleep(wait)
            error = await attempt(job)
            if error is None:
                retry.worked()
                self.works(name)
            wait = seconds if error is None else self.failure(name, error, retry)
