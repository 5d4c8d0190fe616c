"""Word of this namespace's addresses: the kernel tells when one comes or goes (rtnetlink(7)), so nobody has to look."""

import asyncio
from collections.abc import Callable

from dataplane.kernel.netlink.netlink import Notifications

_CHANGES = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR; linux/rtnetlink.h
SETTLE_SECONDS = 0.1
"""Changes come in bunches, and an IPv6 address only counts once it is known to be unique."""


class AddressWatch:
    """Calls `changed` a moment after addresses have changed, once for a bunch of changes. For use in one event loop, in
    the network namespace in which it is made."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._soon: asyncio.TimerHandle | None = None
        self._changes = Notifications(_CHANGES)
        self._loop.add_reader(self._changes, self._heard)

    def close(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._changes)
        self._changes.close()
        if self._soon is not None:
            self._soon.cancel()

    def _heard(self) -> None:
        self._changes.drain()
        if self._soon is None:
            self._soon = self._loop.call_later(SETTLE_SECONDS, self._tell)

    def _tell(self) -> None:
        self._soon = None
        self._changed()
