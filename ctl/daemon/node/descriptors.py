"""Open files: how many this process may have, and whether that is enough."""

import os
import resource

from ctl.daemon.log import Log

RESERVED = 128
"""Descriptors that health-check ports leave to everything else: watches, netlink sockets, maps, children's pipes."""

_NEAR, _FAR = 0.8, 0.7


def raise_limit() -> None:
    """Take all that this process may have. Each health-check port and each connection is an open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def limit() -> int:
    """How many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def used() -> int:
    """How many it has. Where there is none left to count them with, as many as it may have."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return limit()


def room() -> int:
    """How many more health-check ports may be opened."""
    return limit() - used() - RESERVED


class DescriptorWatch:
    """Says when few are left, once each time that it comes to that."""

    def __init__(self, log: Log) -> None:
        self._log, self._near = log, False

    async def look(self) -> None:
        """Compare."""
        now, most = used(), limit()
        if not self._near and now >= _NEAR * most:
            self._near = True
            self._log.warning("few file descriptors are left; raise LimitNOFILE (ulimit -n)", used=now, limit=most)
        elif self._near and now < _FAR * most:
            self._near = False
            self._log.info("there are file descriptors again", used=now, limit=most)
