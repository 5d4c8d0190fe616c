"""The door at which a daemon hears that it should give way to another process (see ctl.store.lock)."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from ctl.daemon.log import Log
from ctl.store.lock import Holder, asks_to_give_way

_PATIENCE = 5.0


async def listen(
    hear: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], path: Path
) -> asyncio.Server:
    """A server on a socket that is its owner's alone from the first moment on. Raises OSError."""
    before = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(hear, path)
    finally:
        os.umask(before)


class Door:
    """Listens from `open` to `close`. give_way: called with who asks."""

    def __init__(self, path: Path, log: Log, give_way: Callable[[Holder], None]) -> None:
        self._path, self._log, self._give_way = path, log, give_way
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen; where that cannot be, say so: then nobody can ask."""
        try:
            self._path.unlink(missing_ok=True)  # of a daemon that was killed: the lock is ours
            self._server = await listen(self._hear, self._path)
        except OSError as error:
            self._log.warning("nobody can ask this daemon to give way", path=self._path, reason=error.strerror)

    async def close(self) -> None:
        """Listen no more; fine twice."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
            self._server = None

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                request = await reader.readline() + await reader.readline()
                asking = asks_to_give_way(request)
                if asking is not None:
                    writer.write(b"+")
                    await writer.drain()
                    self._give_way(asking)
        except (OSError, TimeoutError, ValueError):  # who asked has gone, says nothing, or says too much
            pass
        finally:
            writer.close()
