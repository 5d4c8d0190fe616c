"""Notifications of changes to nftables rules in a network namespace, as the kernel sends them at each commit.

Group NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h. Messages: linux/netfilter/nf_tables.h.
"""

import errno
import socket
from collections.abc import Collection

from dataplane.kernel.netlink.netlink import NETFILTER, attributes, split_messages, text_of
from dataplane.kernel.netlink.nfnetlink import FAMILY_HEADER
from dataplane.kernel.nft.trace import is_trace_table
from dataplane.kernel.nft.uapi import FAMILIES, SUBSYSTEM, TABLE, Operation
from dataplane.resource import Resource

_GROUP = 1 << 6  # NFNLGRP_NFTABLES is 7
_FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}
_ELEMENTS = (Operation.NEW_ELEMENTS, Operation.DELETE_ELEMENTS)


class TableChanges(Resource):
    """A socket that can be read when rules have changed, in the network namespace of the thread that makes it. own:
    tables (family keyword, name) whose changes do not matter. Raises OSError."""

    def __init__(self, own: Collection[tuple[str, str]]) -> None:
        self._own = frozenset(own)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
        self._socket.bind((0, _GROUP))
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """For poll and the like."""
        return self._socket.fileno()

    def foreign(self) -> bool:
        """Take the messages that wait; true if tables, chains or rules of others changed, or messages were lost.

        Elements of sets do not matter: whether a chain has rules does not depend on them.
        """
        found = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
            else:
                found = found or any(self._matters(kind, body) for kind, _, _, body in split_messages(memoryview(data)))

    def _matters(self, kind: int, body: memoryview) -> bool:
        if kind >> 8 != SUBSYSTEM or kind & 0xFF in _ELEMENTS:
            return False
        family, *_ = FAMILY_HEADER.unpack_from(body)
        for attribute, payload in attributes(body[FAMILY_HEADER.size :]):
            if attribute == TABLE and family:  # the generation's message is of no family
                table = text_of(payload)
                return (_FAMILY_NAMES.get(family, ""), table) not in self._own and not is_trace_table(table)
        return False

    def close(self) -> None:
        """Hear no more; fine twice."""
        self._socket.close()
