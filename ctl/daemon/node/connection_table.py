"""A warning when connection tracking's table is nearly full: new connections are dropped then, whoever's they are."""

from ctl.daemon.log import Log
from dataplane.kernel.netlink.conntrack_usage import table_usage

_WHAT_TO_DO = (
    "raise conntrack.maxPerCore or conntrack.min of the configuration, or net.netfilter.nf_conntrack_max in the "
    "machine's first network namespace; conntrack -L names what is in the table, conntrack -S counts"
)


class ConnectionTableWatch:
    """Logs when the table of this network namespace is nearly full and when it drops, once each time, and when it has
    room again."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._near = self._drops = False
        self._before = self._began = 0
        usage = table_usage()
        if usage is not None:
            self._before = usage.dropped

    async def look(self) -> None:
        """Compare the table with its limit, and its drops with the last look's."""
        usage = table_usage()
        if usage is None:
            return
        dropped, self._before = usage.dropped - self._before, usage.dropped
        if dropped > 0 and not self._drops:
            self._drops, self._began = True, usage.dropped - dropped
            self._log.warning(
                "connection tracking's table is full, new connections are dropped", entries=usage.entries,
                limit=usage.limit, reason=_WHAT_TO_DO,
            )  # fmt: skip
        elif usage.is_nearly_full and not self._near:
            self._log.warning(
                "connection tracking's table is nearly full", entries=usage.entries, limit=usage.limit,
                reason=_WHAT_TO_DO,
            )  # fmt: skip
        elif (self._near or self._drops) and not usage.is_nearly_full and dropped <= 0:
            count = usage.dropped - self._began if self._drops else 0
            self._near = self._drops = False
            self._log.info(
                "connection tracking's table has room again", entries=usage.entries, limit=usage.limit, dropped=count
            )
        self._near |= usage.is_nearly_full
