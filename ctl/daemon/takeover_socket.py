"""The socket on which a daemon receives requests to end and let another process take over (see ctl.store.lock)."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from ctl.daemon.log import Log
from ctl.store.lock import Holder, parse_takeover_request

_TIMEOUT_SECONDS = 5.0


async def listen(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], path: Path
) -> asyncio.Server:
    """Return a server on a Unix socket that is created with its owner's permissions only. Raises OSError."""
    before = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(handler, path)
    finally:
        os.umask(before)


class TakeoverListener:
    """Receives takeover requests from `open` to `close`. on_request: called with the process that sent one."""

    def __init__(self, path: Path, log: Log, on_request: Callable[[Holder], None]) -> None:
        self._path, self._log, self._on_request = path, log, on_request
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Start to listen; log a warning if the socket cannot be made: other processes cannot take over then."""
        try:
            self._path.unlink(missing_ok=True)  # of a daemon that was killed: this process holds the lock
            self._server = await listen(self._handle, self._path)
        except OSError as error:
            self._log.warning("nobody can ask this daemon to give way", path=self._path, reason=error.strerror)

    async def close(self) -> None:
        """Stop listening; may be called twice."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)
            self._server = None

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                sender = parse_takeover_request(await reader.readline() + await reader.readline())
                if sender is not None:
                    writer.write(b"+")
                    await writer.drain()
                    self._on_request(sender)
        except (OSError, TimeoutError, ValueError):  # the client has gone, sends nothing, or sends too much
            pass
        finally:
            writer.close()
