"""Notifications of address changes in this network namespace, over rtnetlink(7), so that nothing has to poll."""

import asyncio
from collections.abc import Callable

from dataplane.kernel.netlink.netlink import Notifications

_CHANGES = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR; linux/rtnetlink.h
_DEBOUNCE_SECONDS = 0.1
"""Changes come in bursts, and an IPv6 address is usable only after duplicate address detection."""


class AddressWatch:
    """Calls `changed` a moment after addresses have changed, once for a burst of changes. For use in one event loop, in
    the network namespace in which it is made."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._changes = Notifications(_CHANGES)
        self._loop.add_reader(self._changes, self._on_notification)

    def close(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._changes)
        self._changes.close()
        if self._timer is not None:
            self._timer.cancel()

    def _on_notification(self) -> None:
        self._changes.drain()
        if self._timer is None:
            self._timer = self._loop.call_later(_DEBOUNCE_SECONDS, self._call)

    def _call(self) -> None:
        self._timer = None
        self._changed()
