"""Connection limits of the daemon's HTTP servers, per client and in total.

Nobody who comes is turned away: room is made by closing what has waited longest without a whole request, first of the
client that has too many, then of the one that has most. A probe is answered within milliseconds, so its is never that.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from ctl.daemon.node.descriptors import limit

MOST, MOST_A_CLIENT = 1024, 256
"""Connections of all servers together. A client is an IPv4 address, or 64 bits of an IPv6 address."""

REQUEST_SECONDS = 10.0
"""Timeout from connecting to the end of the first request."""

IDLE_SECONDS = 40.0
"""Timeout from one answer to the end of the next request; the client reads the answer in that time, too."""

ANSWER_SECONDS = 120.0
SWEEP_SECONDS = 1.0


class Connection:
    """One connection. since: when it began to wait for a request, or to be answered (time.monotonic seconds)."""

    def __init__(self, transport: asyncio.Transport, client: str) -> None:
        self.transport, self.client = transport, client
        self.since, self.busy, self.patience = time.monotonic(), False, REQUEST_SECONDS

    def begins(self) -> None:
        """Note that a request is complete."""
        self.busy, self.since, self.patience = True, time.monotonic(), ANSWER_SECONDS

    def ends(self) -> None:
        """Note that the answer has been sent."""
        self.busy, self.since, self.patience = False, time.monotonic(), IDLE_SECONDS


class Guard:
    """Tracks every connection. closed: called with the reason for closing one: client, total or slow."""

    def __init__(self, closed: Callable[[str], object] = lambda _: None) -> None:
        self._closed = closed
        self._clients: defaultdict[str, dict[Connection, None]] = defaultdict(dict)
        self.count = 0

    def opened(self, transport: asyncio.Transport) -> Connection:
        """Add a new connection; an older one is closed if there are too many."""
        connection = Connection(transport, client_of(transport))
        mine = self._clients.get(connection.client, {})
        if len(mine) >= MOST_A_CLIENT:
            self._close_oldest(mine, "client")
        elif self.count >= min(MOST, limit() // 4) and self._clients:
            self._close_oldest(max(self._clients.values(), key=len), "total")
        self._clients[connection.client][connection] = None  # not `mine`: it may be gone with its last connection
        self.count += 1
        return connection

    def gone(self, connection: Connection) -> None:
        """Forget a connection that has ended; may be called twice."""
        mine = self._clients.get(connection.client)
        if mine is None or connection not in mine:
            return
        del mine[connection]
        self.count -= 1
        if not mine:
            del self._clients[connection.client]

    async def sweep(self) -> None:
        """Close connections that exceed their timeout."""
        now = time.monotonic()
        every = [connection for mine in self._clients.values() for connection in mine]
        for connection in every:
            if now - connection.since > connection.patience:
                self._close(connection, "slow")

    def _close_oldest(self, connections: dict[Connection, None], why: str) -> None:
        waiting = [each for each in connections if not each.busy] or list(connections)
        if waiting:
            self._close(min(waiting, key=lambda each: each.since), why)

    def _close(self, connection: Connection, why: str) -> None:
        self.gone(connection)
        connection.transport.abort()
        self._closed(why)


def client_of(transport: asyncio.Transport) -> str:
    """Return the client of a connection."""
    peer = transport.get_extra_info("peername")
    if not peer:  # it has gone already
        return ""
    address = ip_address(peer[0].partition("%")[0])
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
