"""Netfilter's netlink without a library: transactions of ready-made messages, and dumps, as bytes.

Knows message headers and nothing of what is in the messages. All headers are in host byte order (netlink(7)).
"""

import os
import socket
import struct
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dataplane.errors import HotplaneError

_NETLINK_NETFILTER = 12  # linux/netlink.h, also below
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _DUMP_INTERRUPTED, _ACK_TLVS = 0x1, 0x4, 0x300, 0x10, 0x200
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # linux/netfilter/nfnetlink.h
_HEADER = struct.Struct("=IHHII")
_FAMILY_HEADER = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_TLV_TEXT, _TLV_OFFSET = 1, 2
_BUFFER = 1 << 16
"""Bytes for one answer: the kernel fills at most 32 KiB of it at a time."""

_DUMP_ATTEMPTS = 20

CREATE = 0x400
"""NLM_F_CREATE: the flag of a message that adds something, and is content when it is there."""

BODY = _HEADER.size + _FAMILY_HEADER.size
"""Where the attributes of a message begin."""


class Message(NamedTuple):
    """One message of a transaction. kind: subsystem << 8 | operation. family: AF_*. attributes: ready-made, padded."""

    kind: int
    flags: int
    family: int
    attributes: bytes


class Refused(HotplaneError):
    """The kernel refused a request, of which nothing was applied.

    number: errno. message: which of the transaction's messages, None for the transaction as a whole. offset: where
    in that message, from its header on, as far as the kernel tells (else 0).
    """

    def __init__(self, number: int, message: int | None, offset: int, text: str) -> None:
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


def _message(number: int, item: Message) -> bytes:
    length = BODY + len(item.attributes)
    return (
        _HEADER.pack(length, item.kind, item.flags | _REQUEST, number, 0)
        + _FAMILY_HEADER.pack(item.family, 0, 0)
        + item.attributes
    )


def _boundary(number: int, kind: int, subsystem: int) -> bytes:
    return _HEADER.pack(BODY, kind, _REQUEST, number, 0) + _FAMILY_HEADER.pack(0, 0, socket.htons(subsystem))


class Nfnetlink:
    """A netlink socket in the network namespace of the thread that makes it. Not for use by two threads at once.

    Raises OSError when the kernel has no such socket.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        weakref.finalize(self, self._socket.close)
        self._socket.bind((0, 0))
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._room = 0
        self._number = 0
        self._buffer = bytearray(_BUFFER)

    def transact(self, subsystem: int, messages: Sequence[Message]) -> None:
        """Send messages as one transaction: all of them or none. Raises Refused; OSError when nothing could be sent."""
        if not messages:
            return
        first = self._number + 1
        parts = [_boundary(self._number, _BATCH_BEGIN, subsystem)]
        for number, item in enumerate(messages, first):
            # One acknowledgement says that all went well; an error comes unasked.
            flags = item.flags | _ACK if number - first == len(messages) - 1 else item.flags
            parts.append(_message(number, item._replace(flags=flags)))
        parts.append(_boundary(first + len(messages), _BATCH_END, subsystem))
        self._number = first + len(messages) + 1
        data = b"".join(parts)
        self._make_room(len(data))
        self._socket.send(data)
        # The kernel has done the work and queued every answer when the call returns.
        answered = False
        for number, error in self._answers():
            answered = True
            if error is not None:
                index = number - first
                error.message = index if 0 <= index < len(messages) else None
                raise error
        if not answered:
            raise Refused(_NO_ANSWER, None, 0, "the kernel did not say what became of a transaction")

    def request(self, item: Message) -> None:
        """Send one message that is no part of a transaction, and wait for its acknowledgement. Raises Refused."""
        self._number += 1
        self._socket.send(_message(self._number, item._replace(flags=item.flags | _ACK)))
        for number, error in self._answers():
            if number == self._number and error is not None:
                raise error

    def _make_room(self, size: int) -> None:
        """A transaction must fit into the socket's send buffer whole."""
        if size <= self._room:
            return
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        except PermissionError:  # without CAP_NET_ADMIN: as much as the system's limit allows
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        self._room = size

    def _answers(self) -> Iterator[tuple[int, Refused | None]]:
        """(number of the message, error or None) of every acknowledgement that is waiting."""
        found = []
        while True:
            try:
                length = self._socket.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            for kind, flags, _, body in _split(memoryview(self._buffer)[:length]):
                if kind == _ERROR:
                    found.append(_acknowledgement(flags, body))
        yield from found

    def dump(self, kind: int, family: int, attributes: bytes, beginning: bytes = b"") -> list[memoryview]:
        """The attributes of every message of a dump that begin with these bytes, a copy each.

        A dump that a change interrupted starts again. Raises Refused, also when changes keep interrupting.
        """
        for _ in range(_DUMP_ATTEMPTS):
            found = self._dump(Message(kind, _DUMP, family, attributes), beginning)
            if found is not None:
                return found
        raise Refused(_INTERRUPTED, None, 0, "the table keeps changing while it is read; try again")

    def _dump(self, request: Message, beginning: bytes) -> list[memoryview] | None:
        """None: interrupted, what was read may be wrong."""
        self._number += 1
        self._socket.send(_message(self._number, request))
        found: list[memoryview] = []
        interrupted = False
        while True:
            length = self._socket.recv_into(self._buffer)
            received = memoryview(bytes(memoryview(self._buffer)[:length]))
            for kind, flags, number, body in _split(received):
                if number != self._number:
                    continue
                interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
                if kind == _DONE:
                    status = struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                    if status < 0:
                        raise Refused(-status, None, 0, "")
                    return None if interrupted else found
                if kind == _ERROR:
                    error = _acknowledgement(flags, body)[1]
                    if error is not None:
                        raise error
                elif body[_FAMILY_HEADER.size : _FAMILY_HEADER.size + len(beginning)] == beginning:
                    found.append(body[_FAMILY_HEADER.size :])


_NO_ANSWER, _INTERRUPTED = 71, 4  # EPROTO, EINTR


def _split(received: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """(kind, flags, number, body) of each message of one datagram."""
    offset = 0
    while offset + _HEADER.size <= len(received):
        length, kind, flags, number, _ = _HEADER.unpack_from(received, offset)
        yield kind, flags, number, received[offset + _HEADER.size : offset + length]
        offset += (max(length, _HEADER.size) + 3) & ~3


def _acknowledgement(flags: int, body: memoryview) -> tuple[int, Refused | None]:
    """What an NLMSG_ERROR message says: about which message, and the error, None for success."""
    (code,) = struct.unpack_from("=i", body)
    number = _HEADER.unpack_from(body, 4)[3]
    if code == 0:
        return number, None
    text, offset = "", 0
    if flags & _ACK_TLVS:
        for kind, payload in attributes(body[4 + _HEADER.size :]):
            if kind == _TLV_TEXT:
                text = text_of(payload)
            elif kind == _TLV_OFFSET:
                (offset,) = struct.unpack("=I", payload)
    return number, Refused(-code, None, offset, text)
