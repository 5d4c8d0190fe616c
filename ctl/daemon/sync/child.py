"""Long looks at a plan that must not stop the daemon: done by a forked child, which sees everything as of the fork.

The child shares the parent's memory until one of the two writes, so a snapshot of any size costs next to nothing.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

from dataplane.errors import HotplaneError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_INSTANT = 0.2  # seconds; the pipe's end closes that long before the process ends, at most
_REFUSED = 3  # exit status of a child whose answer is the text of an expected error


class ChildError(HotplaneError):
    """The child failed or took too long."""


def _run(function: Callable[[], bytes], write_end: int) -> None:
    """In the child: call the function, write its result to the pipe, and exit without running any clean-up handlers."""
    status = 1
    try:
        # It holds copies of the daemon's listening sockets, so it must not outlive a daemon that is killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        try:
            answer, after = function(), 0
        except (HotplaneError, OSError) as error:  # expected, or the system's: a sentence for the parent's log
            answer, after = str(error).encode(errors="replace"), _REFUSED
        with contextlib.suppress(BrokenPipeError), open(write_end, "wb") as pipe:  # nobody waits for it any more
            pipe.write(answer)
        status = after
    finally:
        if status not in (0, _REFUSED):
            traceback.print_exception(sys.exc_info()[1])
            sys.stderr.flush()
        os._exit(status)


class Child:
    """A function at work in a forked child, from the moment the object is made. Raises OSError where the system has no
    room for one more process or descriptor.

    The caller makes sure that no other thread of the process is at work at that moment.
    """

    def __init__(self, function: Callable[[], bytes]) -> None:
        self._reader, writer = os.pipe()
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self._reader)
            os.close(writer)
            raise
        if self._pid == 0:
            os.close(self._reader)
            _run(function, writer)
        os.close(writer)

    async def answer(self, seconds: float) -> bytes:
        """Return what the function returned. The child is killed after `seconds`. Raises ChildError."""
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(seconds):
                while chunk := await self._read():
                    chunks.append(chunk)
        except TimeoutError as error:
            raise ChildError(f"took longer than {seconds:.0f} s") from error
        finally:
            os.close(self._reader)
            status = self._end()
        if status == _REFUSED:
            raise ChildError(b"".join(chunks).decode(errors="replace"))
        if status:
            raise ChildError(f"ended with status {status}; what it said stands above")
        return b"".join(chunks)

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._reader, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._reader)
        return os.read(self._reader, 1 << 16)

    def _end(self) -> int:
        """Reap the child, which has closed its pipe or has lost our patience; its exit status. Takes no descriptor,
        of which there may be none left."""
        end = time.monotonic() + _INSTANT
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(self._pid, signal.SIGKILL)
                return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
            time.sleep(_INSTANT / 100)
