"""Netlink without a library (netlink(7)): requests and their answers, dumps and notifications, as bytes.

Knows the header of messages and attributes, all in host byte order, and nothing of what is in them.
"""

import errno
import os
import socket
import struct
import weakref
from collections.abc import Iterator

from dataplane.errors import HotplaneError
from dataplane.resource import Resource

NETFILTER, SOCK_DIAG = 12, 4  # linux/netlink.h, also below
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
_ERROR, _DONE = 2, 3
REQUEST, ACK, _DUMP, _DUMP_INTERRUPTED, _ACK_TLVS = 0x1, 0x4, 0x300, 0x10, 0x200
HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TLV_TEXT, _TLV_OFFSET = 1, 2
_BUFFER = 1 << 16
"""Bytes for one answer: the kernel fills at most 32 KiB of it at a time."""

_DUMP_ATTEMPTS = 20
_DATAGRAM = 1 << 18
"""Bytes of one datagram of notifications, or of logged packets, at most."""


class Refused(HotplaneError):
    """The kernel refused a request, of which nothing was applied.

    number: errno. message: which of a transaction's messages, None for the request as a whole. offset: where
    in that message, from its header on, as far as the kernel tells (else 0).
    """

    def __init__(self, number: int, text: str = "", offset: int = 0, message: int | None = None) -> None:
        super().__init__(f"{os.strerror(number)}{f': {text}' if text else ''}")
        self.number = number
        self.message = message
        self.offset = offset


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes. `kind` with the nested bit (0x8000) where it holds attributes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def attributes(data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """(kind without flag bits, payload) of each attribute."""
    view, offset = memoryview(data), 0
    while offset + 4 <= len(view):
        length, kind = _ATTRIBUTE.unpack_from(view, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, view[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def text_of(payload: memoryview) -> str:
    """A NUL-terminated string."""
    return bytes(payload).rstrip(b"\0").decode("utf-8", "replace")


def message(number: int, kind: int, flags: int, body: bytes) -> bytes:
    """A request. number: its sequence number. kind: its type."""
    return HEADER.pack(HEADER.size + len(body), kind, flags | REQUEST, number, 0) + body


class Netlink(Resource):
    """A netlink socket in the network namespace of the thread that makes it. Not for use by two threads at once.

    Raises OSError when the kernel has no such protocol, and where nothing can be sent.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        weakref.finalize(self, self._socket.close)
        self._socket.bind((0, 0))
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._room = 0
        self._number = 0
        self._buffer = bytearray(_BUFFER)

    def close(self) -> None:
        """Close the socket; fine twice."""
        self._socket.close()

    def numbers(self, count: int) -> int:
        """The first of so many sequence numbers that nothing else has."""
        first = self._number + 1
        self._number += count
        return first

    def exchange(self, data: bytes) -> list[tuple[int, memoryview | Refused]]:
        """Send messages. The kernel has done the work and queued every answer when that returns.

        Returns the sequence number of each answer, and its body (of an acknowledgement, an empty one) or the refusal.
        Raises Refused when the kernel had no room for answers.
        """
        self._socket.send(data)
        found: list[tuple[int, memoryview | Refused]] = []
        lost = False
        while True:
            try:
                for kind, flags, number, body in self._receive(socket.MSG_DONTWAIT):
                    if kind == _ERROR:
                        found.append((number, refusal_of(flags, body) or body[:0]))
                    else:
                        found.append((number, body))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
        if lost and not any(isinstance(answer, Refused) for _, answer in found):
            raise Refused(errno.ENOBUFS, "the kernel's answers were lost")
        return found

    def request(self, kind: int, body: bytes, flags: int = 0) -> memoryview:
        """Send one message; the body of its first answer, empty when the kernel only acknowledges. Raises Refused."""
        wanted = self.numbers(1)
        for number, answer in self.exchange(message(wanted, kind, flags | ACK, body)):
            if number == wanted:
                if isinstance(answer, Refused):
                    raise answer
                return answer
        raise Refused(errno.EPROTO, "the kernel did not answer a request")

    def dump(self, kind: int, body: bytes, head: int = 0, beginning: bytes = b"") -> list[memoryview]:
        """The bodies, without `head` bytes, of every message of a dump that go on with `beginning`; a copy each.

        A dump that a change interrupted, or of which messages were lost, starts again. Raises Refused, also when that
        does not end.
        """
        for _ in range(_DUMP_ATTEMPTS):
            found = self._dump(message(self.numbers(1), kind, _DUMP, body), head, beginning)
            if found is not None:
                return found
        raise Refused(errno.EINTR, "the table keeps changing while it is read; try again")

    def _dump(self, request: bytes, head: int, beginning: bytes) -> list[memoryview] | None:
        """None: interrupted, what was read may be wrong."""
        self._socket.send(request)
        found: list[memoryview] = []
        interrupted = False
        while True:
            try:
                received = self._receive()
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                interrupted = True
                continue
            for kind, flags, number, body in received:
                if number != self._number:
                    continue
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if kind == _DONE:
                    status = struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if status < 0:
                        raise Refused(-status)
                    return None if interrupted else found
                if kind == _ERROR:
                    refusal = refusal_of(flags, body)
                    if refusal is not None:
                        raise refusal
                elif body[head : head + len(beginning)] == beginning:
                    found.append(body[head:])

    def _receive(self, flags: int = 0) -> Iterator[tuple[int, int, int, memoryview]]:
        """The messages of one datagram, copied."""
        length = self._socket.recv_into(self._buffer, 0, flags)
        return split_messages(memoryview(bytes(memoryview(self._buffer)[:length])))

    def make_room(self, size: int) -> None:
        """Before so many bytes are sent at once: they must fit into the socket's send buffer whole."""
        if size <= self._room:
            return
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        except PermissionError:  # without CAP_NET_ADMIN: as much as the system's limit allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        self._room = size


LOST = 0
"""A type that no message has."""


class Notifications(Resource):
    """A socket that can be read when the kernel has told a change to one of rtnetlink's groups, in the network
    namespace of the thread that makes it. groups: RTMGRP_*, linux/rtnetlink.h."""

    def __init__(self, groups: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        """For poll and the like."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Take the messages. What they say does not matter, nor does it that some were lost (ENOBUFS)."""
        for _ in arrived(self._socket):
            pass

    def messages(self) -> Iterator[tuple[int, memoryview]]:
        """Take the messages: type and body of each. LOST, without a body, stands for those that the kernel had no room
        for (ENOBUFS)."""
        for received in arrived(self._socket):
            if not received:
                yield LOST, memoryview(b"")
            for kind, _, _, body in split_messages(memoryview(received)):
                yield kind, body

    def close(self) -> None:
        """Hear no more; fine twice."""
        self._socket.close()


def arrived(source: socket.socket) -> Iterator[bytes]:
    """The datagrams that have come to a netlink socket; does not wait. An empty one stands for those that the kernel
    had no room for (ENOBUFS)."""
    while True:
        try:
            received = source.recv(_DATAGRAM, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            received = b""
        yield received


def split_messages(received: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """(kind, flags, number, body) of each message of one datagram."""
    offset = 0
    while offset + HEADER.size <= len(received):
        length, kind, flags, number, _ = HEADER.unpack_from(received, offset)
        yield kind, flags, number, received[offset + HEADER.size : offset + length]
        offset += (max(length, HEADER.size) + 3) & ~3


def refusal_of(flags: int, body: memoryview) -> Refused | None:
    """The error that an NLMSG_ERROR message reports, None for success."""
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    text, offset = "", 0
    if flags & _ACK_TLVS:
        for kind, payload in attributes(body[4 + HEADER.size :]):
            if kind == _TLV_TEXT:
                text = text_of(payload)
            elif kind == _TLV_OFFSET:
                (offset,) = struct.unpack("=I", payload)
    return Refused(-code, text, offset)
