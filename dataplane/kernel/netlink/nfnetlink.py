"""Netfilter's netlink: transactions of ready-made messages, requests and dumps, as bytes.

Knows message headers and nothing of what is in the messages. All headers are in host byte order (netlink(7)).
"""

import errno
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from dataplane.kernel.netlink.netlink import ACK, HEADER, NETFILTER, Netlink, Refused, message

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # linux/netfilter/nfnetlink.h
FAMILY_HEADER = struct.Struct("=BBH")
"""What the attributes of a message come after: family, version, resource."""

CREATE = 0x400
"""NLM_F_CREATE: the flag of a message that adds something, and is content when it is there."""

BODY = HEADER.size + FAMILY_HEADER.size
"""Where the attributes of a message begin."""


class Message(NamedTuple):
    """One message of a transaction. kind: subsystem << 8 | operation. family: AF_*. attributes: ready-made, padded."""

    kind: int
    flags: int
    family: int
    attributes: bytes


def _body(family: int, attributes: bytes, resource: int = 0) -> bytes:
    return FAMILY_HEADER.pack(family, 0, resource) + attributes


class Nfnetlink:
    """A netlink socket in the network namespace of the thread that makes it. Not for use by two threads at once.

    Raises OSError when the kernel has no such socket.
    """

    def __init__(self) -> None:
        self._netlink = Netlink(NETFILTER)

    def close(self) -> None:
        """Close the socket; fine twice."""
        self._netlink.close()

    def transact(self, subsystem: int, messages: Sequence[Message]) -> None:
        """Send messages as one transaction: all of them or none. Raises Refused; OSError when nothing could be sent."""
        if not messages:
            return
        begin, boundary = self._netlink.numbers(len(messages) + 2), _body(0, b"", socket.htons(subsystem))
        first, end = begin + 1, begin + 1 + len(messages)
        parts = [message(begin, _BATCH_BEGIN, 0, boundary)]
        for number, item in enumerate(messages, first):
            # One acknowledgement says that all went well; an error comes unasked.
            flags = item.flags | ACK if number == end - 1 else item.flags
            parts.append(message(number, item.kind, flags, _body(item.family, item.attributes)))
        parts.append(message(end, _BATCH_END, 0, boundary))
        data = b"".join(parts)
        self._netlink.make_room(len(data))
        answers = [(number, answer) for number, answer in self._netlink.exchange(data) if begin <= number <= end]
        for number, answer in answers:
            if isinstance(answer, Refused):
                answer.message = number - first if first <= number < end else None
                raise answer
        if not answers:
            raise Refused(errno.EPROTO, "the kernel did not say what became of a transaction")

    def request(self, item: Message) -> memoryview:
        """Send one message that is no part of a transaction. Returns the attributes of the kernel's answer, nothing
        when it only acknowledges. Raises Refused."""
        return self._netlink.request(item.kind, _body(item.family, item.attributes), item.flags)[FAMILY_HEADER.size :]

    def dump(self, kind: int, family: int, attributes: bytes, beginning: bytes = b"") -> list[memoryview]:
        """The attributes of every message of a dump that begin with these bytes, a copy each.

        A dump that a change interrupted starts again. Raises Refused, also when changes keep interrupting.
        """
        return self._netlink.dump(kind, _body(family, attributes), FAMILY_HEADER.size, beginning)
