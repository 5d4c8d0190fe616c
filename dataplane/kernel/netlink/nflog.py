"""Packets that netfilter rules hand over for logging: a group of nfnetlink_log (linux/netfilter/nfnetlink_log.h).

All fields of the attributes are in network byte order.
"""

import errno
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from dataplane.kernel.netlink.netlink import (
    ACK,
    NETFILTER,
    Refused,
    arrived,
    attribute,
    attributes,
    message,
    refusal_of,
    split_messages,
    text_of,
)
from dataplane.kernel.netlink.nfnetlink import FAMILY_HEADER
from dataplane.kernel.wait import readable
from dataplane.resource import Resource

_PACKET, _CONFIG = 0x400, 0x401  # NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_*
_ERROR = 2  # NLMSG_ERROR
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_THRESHOLD = 1, 2, 4, 5  # NFULA_CFG_*
_BIND, _BIND_FAMILY = 1, 3  # NFULNL_CFG_CMD_*
_COPY_PACKET = 2  # NFULNL_COPY_PACKET
_TIMESTAMP, _DEVICE_IN, _DEVICE_OUT, _PAYLOAD, _PREFIX = 3, 4, 5, 9, 10  # NFULA_*
_MODE, _TIME = struct.Struct("!IBx"), struct.Struct("!QQ")
_FLUSH_HUNDREDTHS = 10
"""The kernel sends what it has gathered after so many hundredths of a second at most."""

_RECEIVE_BUFFER = 1 << 22
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_ANSWER_SECONDS = 5.0


class Logged(NamedTuple):
    """One packet. ns: when, in nanoseconds since 1970. prefix: of the rule. device_in, device_out: indexes, 0 for none.
    data: from its network header on, perhaps cut."""

    ns: int
    prefix: str
    device_in: int
    device_out: int
    data: bytes


class PacketLog(Resource):
    """A group, in the network namespace of the thread that makes the object; one process at a time may have it.

    snap: bytes of a packet that are wanted. at_once: each packet is told by itself, not with others that come soon.
    lost: how often the kernel could not hand packets over because nobody read.
    Raises Refused (errno EBUSY or EPERM: another socket has the group, or there is no right to), OSError.
    """

    def __init__(self, group: int, snap: int, *, at_once: bool = False) -> None:
        self.lost = 0
        self._group = group
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            self._configure(attribute(_CFG_CMD, bytes([_BIND])))
            mode = attribute(_CFG_MODE, _MODE.pack(snap, _COPY_PACKET))
            kind, value = (_CFG_THRESHOLD, 1) if at_once else (_CFG_TIMEOUT, _FLUSH_HUNDREDTHS)
            self._configure(mode + attribute(kind, struct.pack("!I", value)))
        except BaseException:
            self._socket.close()
            raise

    def serve(self, family: int) -> None:
        """Be what the network namespace's rules of this family (NFPROTO_*) log by, where they name no group. Raises
        Refused, OSError."""
        self._configure(attribute(_CFG_CMD, bytes([_BIND_FAMILY])), family)

    def _configure(self, wanted: bytes, family: int = socket.AF_UNSPEC) -> None:
        body = FAMILY_HEADER.pack(family, 0, socket.htons(self._group)) + wanted
        self._socket.send(message(1, _CONFIG, ACK, body))
        deadline = time.monotonic() + _ANSWER_SECONDS
        while readable([self._socket.fileno()], deadline - time.monotonic()):
            for kind, flags, _, answer in split_messages(memoryview(self._socket.recv(65536))):
                if kind == _ERROR:
                    refusal = refusal_of(flags, answer)
                    if refusal is not None:
                        raise refusal
                    return
        raise Refused(errno.EPROTO, "the kernel did not answer about its log of packets")

    def fileno(self) -> int:
        """For poll and the like."""
        return self._socket.fileno()

    def take(self) -> list[Logged]:
        """Packets that have come; does not wait."""
        found: list[Logged] = []
        for received in arrived(self._socket):
            self.lost += not received
            found += _packets(received)
        return found

    def close(self) -> None:
        """Give the group back; fine twice."""
        self._socket.close()


def _packets(received: bytes) -> Iterator[Logged]:
    for kind, _, _, body in split_messages(memoryview(received)):
        if kind != _PACKET:
            continue
        parts = dict(attributes(body[FAMILY_HEADER.size :]))
        ns = time.time_ns()
        if _TIMESTAMP in parts:
            seconds, microseconds = _TIME.unpack(parts[_TIMESTAMP])
            ns = seconds * 1_000_000_000 + microseconds * 1000
        device_in, device_out = (int.from_bytes(parts.get(kind, b""), "big") for kind in (_DEVICE_IN, _DEVICE_OUT))
        yield Logged(
            ns, text_of(parts.get(_PREFIX, memoryview(b""))), device_in, device_out, bytes(parts.get(_PAYLOAD, b""))
        )
