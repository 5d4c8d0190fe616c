"""The trace of legacy iptables: its messages about marked packets, as NFLOG's packets of group 0.

Legacy rules tell of each packet with the trace mark (which nftables' trace sets, too) by the kernel's packet logger of
the network namespace. That is none by default; while this is open it is nfnetlink_log, whose packets come here.
Messages: linux/netfilter/nfnetlink_log.h; text of the prefix: trace_packet() in net/ipv4/netfilter/ip_tables.c.
"""

import contextlib
import errno
import re
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dataplane.kernel.netlink.netlink import (
    ACK,
    NETFILTER,
    Refused,
    attribute,
    attributes,
    message,
    split_messages,
    text_of,
)
from dataplane.kernel.netlink.nfnetlink import FAMILY_HEADER
from dataplane.model.net import Family
from dataplane.resource import Resource

_PACKET, _CONFIG, _ERROR = 4 << 8 | 0, 4 << 8 | 1, 2  # NFNL_SUBSYS_ULOG, NFULNL_MSG_*; NLMSG_ERROR
_COMMAND, _MODE, _THRESHOLD = 1, 2, 5  # NFULA_CFG_*
_BIND, _BIND_FAMILY = 1, 3  # NFULNL_CFG_CMD_*
_COPY_PACKET, _COPIED = 2, 128  # NFULNL_COPY_PACKET; bytes
_IN, _OUT, _PAYLOAD, _PREFIX = 4, 5, 9, 10  # NFULA_*
_NFPROTO = {Family.IPV4: 2, Family.IPV6: 10}
_TRACE = re.compile(r"TRACE: (\w+):([^:]+):(rule|return|policy):(\d+)\s*")
_LOGGER = "/proc/sys/net/netfilter/nf_log/{}"


class Logged(NamedTuple):
    """One message: a packet that met a rule (its number in the chain), or the end of a chain. seconds: time.monotonic()
    when it was read. payload: the packet from its network header on. devices: indices, in and out."""

    seconds: float
    table: str
    chain: str
    kind: str
    rule: int
    payload: bytes
    devices: tuple[int, int]


class PacketLog(Resource):
    """Listens while it is open, in the network namespace of the thread that makes it. Raises OSError, Refused: another
    program has group 0, or the kernel has no nfnetlink_log."""

    def __init__(self, family: Family) -> None:
        self._family, self._before = _NFPROTO[family], ""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
        self._socket.bind((0, 0))
        try:
            self._ask(0, attribute(_COMMAND, bytes([_BIND])))
            mode = struct.pack("!IBx", _COPIED, _COPY_PACKET)
            self._ask(0, attribute(_MODE, mode) + attribute(_THRESHOLD, struct.pack("!I", 1)))
            self._before = Path(_LOGGER.format(self._family)).read_text().strip()
            self._ask(self._family, attribute(_COMMAND, bytes([_BIND_FAMILY])))
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def _ask(self, family: int, parts: bytes) -> None:
        self._socket.send(message(1, _CONFIG, ACK, FAMILY_HEADER.pack(family, 0, 0) + parts))
        for kind, _, _, body in split_messages(memoryview(self._socket.recv(8192))):
            if kind == _ERROR and (code := struct.unpack_from("=i", body)[0]):
                raise Refused(-code)

    def fileno(self) -> int:
        """For poll and the like."""
        return self._socket.fileno()

    def take(self) -> Iterator[Logged]:
        """The messages that are there; packets that rules log for others are not among them."""
        while True:
            try:
                received = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            now = time.monotonic()
            for kind, _, _, body in split_messages(memoryview(received)):
                logged = _logged(now, body) if kind == _PACKET else None
                if logged is not None:
                    yield logged

    def close(self) -> None:
        """Hear no more, and give the namespace its logger back; may be called twice."""
        if self._before:
            with contextlib.suppress(OSError):  # no writable /proc/sys: a logger that nobody hears costs nothing
                Path(_LOGGER.format(self._family)).write_text(self._before)
            self._before = ""
        self._socket.close()


def _logged(now: float, body: memoryview) -> Logged | None:
    found = {kind: bytes(payload) for kind, payload in attributes(body[FAMILY_HEADER.size :])}
    match = _TRACE.match(text_of(memoryview(found.get(_PREFIX, b""))))
    if match is None:
        return None
    table, chain, kind, rule = match.groups()
    devices = (int.from_bytes(found.get(_IN, b""), "big"), int.from_bytes(found.get(_OUT, b""), "big"))
    return Logged(now, table, chain, kind, int(rule), found.get(_PAYLOAD, b""), devices)
