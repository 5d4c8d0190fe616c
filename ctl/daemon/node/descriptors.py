"""Limit of open files, and a warning when few are left."""

import os
import resource

from ctl.daemon.log import Log

RESERVED = 128
"""Descriptors that health-check ports leave to everything else: watches, netlink sockets, maps, children's pipes."""

_NEAR, _FAR = 0.8, 0.7


def raise_limit() -> None:
    """Raise the soft limit to the hard limit. Each health-check port and each connection is an open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def limit() -> int:
    """Return the number of descriptors that this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def used() -> int:
    """Return the number of open descriptors; the limit if none is left to count them with."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return limit()


def room() -> int:
    """Return the number of further health-check ports that may be opened."""
    return limit() - used() - RESERVED


class DescriptorWatch:
    """Logs a warning when few descriptors are left, once each time."""

    def __init__(self, log: Log) -> None:
        self._log, self._near = log, False

    async def look(self) -> None:
        """Compare the number of open descriptors with the limit."""
        now, most = used(), limit()
        if not self._near and now >= _NEAR * most:
            self._near = True
            self._log.warning("few file descriptors are left; raise LimitNOFILE (ulimit -n)", used=now, limit=most)
        elif self._near and now < _FAR * most:
            self._near = False
            self._log.info("there are file descriptors again", used=now, limit=most)
