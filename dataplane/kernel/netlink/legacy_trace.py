"""The trace of legacy iptables: its messages about marked packets, as NFLOG's packets of group 0.

Legacy rules tell of each packet with the trace mark (which nftables' trace sets, too) by the kernel's packet logger of
the network namespace. That is none by default; while this is open it is nfnetlink_log, whose packets come here. Text of
the prefix: trace_packet() in net/ipv4/netfilter/ip_tables.c.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dataplane.kernel.netlink.nflog import PacketLog
from dataplane.model.net import Family
from dataplane.resource import Resource

_GROUP, _COPIED = 0, 128
_NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}
_TRACE = re.compile(r"TRACE: (\w+):([^:]+):(rule|return|policy):(\d+)\s*")
_LOGGER = "/proc/sys/net/netfilter/nf_log/{}"


class TracedRule(NamedTuple):
    """One message: a packet that met a rule (its number in the chain), or the end of a chain. seconds: time.monotonic()
    when it was read. payload: the packet from its network header on. devices: indices, in and out."""

    seconds: float
    table: str
    chain: str
    kind: str
    rule: int
    payload: bytes
    devices: tuple[int, int]


class LegacyTrace(Resource):
    """Listens while it is open, in the network namespace of the thread that makes it. Raises OSError, Refused: another
    program has group 0, or the kernel has no nfnetlink_log."""

    def __init__(self, family: Family) -> None:
        self._logger, self._before = Path(_LOGGER.format(_NFPROTO[family])), ""
        self._log = PacketLog(_GROUP, _COPIED, at_once=True)
        try:
            self._before = self._logger.read_text().strip()
            self._log.serve(_NFPROTO[family])
        except BaseException:
            self._log.close()
            raise

    def fileno(self) -> int:
        """For poll and the like."""
        return self._log.fileno()

    def take(self) -> Iterator[TracedRule]:
        """The messages that are there; packets that rules log for others are not among them."""
        for logged in self._log.take():
            match = _TRACE.match(logged.prefix)
            if match is not None:
                table, chain, kind, rule = match.groups()
                devices = (logged.device_in, logged.device_out)
                yield TracedRule(time.monotonic(), table, chain, kind, int(rule), logged.data, devices)

    def close(self) -> None:
        """Hear no more, and give the namespace its logger back; may be called twice."""
        if self._before:
            with contextlib.suppress(OSError):  # no writable /proc/sys: a logger that nobody hears costs nothing
                self._logger.write_text(self._before)
            self._before = ""
        self._log.close()
