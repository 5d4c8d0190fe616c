"""How full the connection table of this thread's network namespace is, and what it had no room for."""

from pathlib import Path
from typing import NamedTuple

_COUNTS = Path("/proc/sys/net/netfilter")
_STATISTICS = Path("/proc/thread-self/net/stat/nf_conntrack")
NEARLY_FULL = 0.9
"""Share of the limit from which on the kernel soon looks for connections to give up (early_drop), or drops new ones."""


class TableUsage(NamedTuple):
    """entries: now. limit: nf_conntrack_max. dropped: packets of new connections that there was no room for, since the
    namespace was made; 0 also where the kernel does not say (CONFIG_NF_CONNTRACK_PROCFS)."""

    entries: int
    limit: int
    dropped: int

    @property
    def is_nearly_full(self) -> bool:
        """Whether new connections have no room, or soon have none; a limit of 0 is none."""
        return 0 < self.limit * NEARLY_FULL <= self.entries


def table_usage() -> TableUsage | None:
    """Read it; None where connections are not tracked (yet)."""
    try:
        entries, limit = (int((_COUNTS / f"nf_conntrack_{name}").read_text()) for name in ("count", "max"))
    except FileNotFoundError:
        return None
    return TableUsage(entries, limit, _dropped())


def _dropped() -> int:
    """The sum of the column `drop`, hexadecimal, over all processors."""
    try:
        names, *rows = (line.split() for line in _STATISTICS.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(row[names.index("drop")], 16) for row in rows) if "drop" in names else 0
