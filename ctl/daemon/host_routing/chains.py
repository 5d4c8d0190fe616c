"""Other programs' netfilter rules on this node, looked for again at every change."""

import asyncio
import contextlib
from collections.abc import Callable, Collection

from dataplane.errors import HotplaneError
from dataplane.kernel.foreign_chains import ForeignChains, TableName
from dataplane.kernel.nft.changes import TableChanges

POLL_SECONDS = 0.1
"""How often the legacy tables are looked at, of whose changes the kernel does not tell."""

_SHARE = 9.0
"""A look that took a while is followed by a pause of so many times that while."""


class ChainWatch:
    """Calls `found` with why everything must stay on the stack, or None: when it is opened, and at once when that
    changes. own: hotplane's own tables. For use in one event loop, in the network namespace in which it is opened."""

    def __init__(self, own: Collection[TableName], found: Callable[[str | None], None]) -> None:
        self._own, self._found = own, found
        self._loop = asyncio.get_running_loop()
        self._resources = contextlib.ExitStack()
        self._chains: ForeignChains | None = None
        self._changes: TableChanges | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0
        self._nftables: list[str] = []

    def open(self) -> None:
        """Begin to listen, and look for the first time."""
        try:
            self._changes = self._resources.enter_context(TableChanges(self._own))  # before the first look
            self._chains = self._resources.enter_context(ForeignChains(self._own))
        except OSError as error:
            self._found(f"netfilter rules cannot be looked at: {error.strerror}")
            return
        self._loop.add_reader(self._changes, self._on_notification)
        self._resources.callback(self._loop.remove_reader, self._changes.fileno())
        self._look()

    def close(self) -> None:
        """Stop; fine twice, and without `open`."""
        if self._timer is not None:
            self._timer.cancel()
        self._resources.close()
        self._chains = self._changes = None

    async def poll(self) -> None:
        """Look at the legacy tables; call it every POLL_SECONDS."""
        if self._chains is not None and self._timer is None:
            self._report(self._chains, again=False)

    def _on_notification(self) -> None:
        assert self._changes is not None, "it is what was read"
        if not self._changes.foreign() or self._timer is not None:
            return
        wait = self._not_before - self._loop.time()
        if wait > 0:
            self._timer = self._loop.call_later(wait, self._look)
        else:
            self._look()

    def _look(self) -> None:
        self._timer = None
        if self._chains is None:
            return
        started = self._loop.time()
        self._report(self._chains, again=True)
        now = self._loop.time()
        self._not_before = now + _SHARE * (now - started)

    def _report(self, chains: ForeignChains, *, again: bool) -> None:
        """Look, and say what was found. again: at nftables' chains, too."""
        try:
            if again:
                self._nftables = chains.nftables()
            found = [*self._nftables, *chains.legacy()]
        except (HotplaneError, OSError) as error:
            if again:
                self._nftables = [f"netfilter rules cannot be looked at: {error}"]
            self._found(f"netfilter rules cannot be looked at: {error}")
            return
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        self._found(f"{found[0]}{more}" if found else None)
