"""A connection table that is nearly full, of other people's connections that must not be dropped.

The limit (nf_conntrack_max) is the whole machine's and can be changed in the first network namespace only, but every
network namespace's entries are counted against it alone. So a node's table is filled up to the limit, with UDP flows
that were answered: the kernel drops none of these to make room (IPS_ASSURED). Messages: ctnetlink,
linux/netfilter/nfnetlink_conntrack.h; headers in host byte order, attributes in network byte order.
"""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dataplane.bench.left_out import LeftOut
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.conntrack import ConntrackError, forget_all
from dataplane.kernel.netlink.netlink import HEADER, NETFILTER, Netlink, Refused, attribute, message
from dataplane.lab.spec import LabError

FREE = 256
"""Entries that are left: half of what the load's new connections of a second take."""
_MOST = 1 << 20
_NEW, _CREATE = 1 << 8, 0x400
_NESTED = 0x8000
_ORIGINAL, _REPLY, _STATUS, _TIMEOUT = 1, 2, 3, 7
_ASSURED = 1 << 1 | 1 << 2 | 1 << 3
"""IPS_SEEN_REPLY, IPS_ASSURED, IPS_CONFIRMED."""
_SECONDS = 600
_SOURCE, _DESTINATION, _PORT = 0xC6120000, 0xC613FFFE, 9
"""198.18.0.0 on, 198.19.255.254 (RFC 2544), discard."""
_FIRST_PORT = 1024
_AT_ONCE = 512
_COUNTS = Path("/proc/sys/net/netfilter")


def _tuple(kind: int, ends: tuple[int, int], ports: tuple[int, int]) -> bytes:
    addresses = b"".join(attribute(1 + side, struct.pack("!I", end)) for side, end in enumerate(ends))
    numbers = attribute(1, bytes([socket.IPPROTO_UDP]))
    numbers += b"".join(attribute(2 + side, struct.pack("!H", port)) for side, port in enumerate(ports))
    return attribute(kind | _NESTED, attribute(1 | _NESTED, addresses) + attribute(2 | _NESTED, numbers))


def _entry(source: int, port: int) -> bytes:
    """The message that makes one entry."""
    body = struct.pack("=BBH", socket.AF_INET, 0, 0)
    body += _tuple(_ORIGINAL, (source, _DESTINATION), (port, _PORT))
    body += _tuple(_REPLY, (_DESTINATION, source), (_PORT, port))
    body += attribute(_STATUS, struct.pack("!I", _ASSURED)) + attribute(_TIMEOUT, struct.pack("!I", _SECONDS))
    return message(0, _NEW, _CREATE, body)


def entries(first: int, count: int) -> bytes:
    """The messages that make entries `first` and on, each of another flow."""
    plain = _entry(_SOURCE, _FIRST_PORT)
    rows = np.tile(np.frombuffer(plain, np.uint8), (count, 1))
    numbers = np.arange(first, first + count, dtype=np.uint32)
    for value, size, kind in ((_SOURCE + (numbers & 0xFFFF), 4, ">u4"), (_FIRST_PORT + (numbers >> 16), 2, ">u2")):
        columns = value.astype(kind).view(np.uint8).reshape(count, size)
        for at in _differences(plain, size):
            rows[:, at : at + size] = columns
    return rows.tobytes()


def _differences(plain: bytes, size: int) -> list[int]:
    """Where the source address (4 bytes) or its port (2) stands in a message, of both directions."""
    wanted = struct.pack("!I", _SOURCE) if size == 4 else struct.pack("!H", _FIRST_PORT)
    first = plain.index(wanted, HEADER.size)
    return [first, plain.index(wanted, first + size)]


def _count(name: str) -> int:
    return int((_COUNTS / f"nf_conntrack_{name}").read_text())


@contextmanager
def nearly_full(namespace: str) -> Iterator[int]:
    """While it lasts, the connection table of a network namespace has room for FREE entries more; gives how many it
    has. Everything in it goes at the end. Raises LabError where it cannot be filled, LeftOut where the machine's is
    larger than what is made here."""
    try:
        with netns(namespace):
            limit = _count("max")
            if limit > _MOST:
                raise LeftOut(f"nf_conntrack_max is {limit:,}: more than {_MOST:,} entries are not made here")
            _fill(limit - FREE)
            found = _count("count")
        if found < limit - 2 * FREE:
            raise LabError(f"only {found:,} of {limit:,} entries could be made in the connection table")
        yield found
    except (OSError, Refused) as error:
        raise LabError(f"the connection table cannot be filled: {error}; is nf_conntrack_netlink there?") from error
    finally:
        forget(namespace)


def forget(namespace: str) -> None:
    """Empty the connection table of a network namespace. Raises LabError."""
    try:
        with netns(namespace):
            forget_all()
    except ConntrackError as error:
        raise LabError(str(error)) from error


def _fill(wanted: int) -> None:
    """Make entries until the table has so many, those that are there included."""
    netlink, first = Netlink(NETFILTER), 0
    try:
        while (room := wanted - _count("count")) > 0 and first < 2 * wanted:
            count = min(room, _AT_ONCE)
            refused = [answer for _, answer in netlink.exchange(entries(first, count)) if isinstance(answer, Refused)]
            if refused:
                raise refused[0]
            first += count
    finally:
        netlink.close()
