"""One connection in the conntrack table of this network namespace, asked for by its first packet's addresses.

To ask costs one look-up in the kernel's hash table; listening to events instead would have the kernel write one for
each change of every connection of the namespace.
"""

import struct
from typing import NamedTuple

from dataplane.kernel.netlink.conntrack import DESTINATION, ORIGINAL, REPLY, SOURCE, ConntrackError, one_end
from dataplane.kernel.netlink.conntrack_list import tcp_state
from dataplane.kernel.netlink.netlink import Refused, attribute, attributes
from dataplane.kernel.netlink.nfnetlink import Message, Nfnetlink
from dataplane.model.net import Family, Protocol, family_of, packed
from dataplane.resource import Resource

_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_NESTED = 0x8000
_STATUS = 3  # CTA_STATUS
_SEEN_REPLY, _ASSURED = 1 << 1, 1 << 2  # IPS_*, linux/netfilter/nf_conntrack_common.h
_ENOENT = 2
Address = tuple[str, int]


class Tracked(NamedTuple):
    """An entry. client, frontend: ends of its first packet. backend, seen: who answers, and to which address. state:
    TCP's, "" for other protocols. answered: packets went both ways. assured: it is not evicted from a full table."""

    client: Address
    frontend: Address
    backend: Address
    seen: Address
    state: str
    answered: bool
    assured: bool


class ConntrackLookup(Resource):
    """Asks for entries, in the network namespace of the thread that makes it. Raises ConntrackError."""

    def __init__(self) -> None:
        try:
            self._netlink = Nfnetlink()
        except OSError as error:
            raise ConntrackError(f"connection tracking cannot be asked: {error.strerror}") from error

    def find(self, protocol: Protocol, client: Address, frontend: Address) -> Tracked | None:
        """The entry whose first packet had these ends; None if there is none (yet). Raises ConntrackError."""
        family = family_of(client[0])
        first = 1 if family is Family.IPV4 else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
        places = attribute(first, packed(client[0])) + attribute(first + 1, packed(frontend[0]))
        ports = b"".join(
            (
                attribute(1, bytes([protocol])),  # CTA_PROTO_NUM, _SRC_PORT, _DST_PORT
                attribute(2, struct.pack("!H", client[1])),
                attribute(3, struct.pack("!H", frontend[1])),
            )
        )
        asked = attribute(ORIGINAL | _NESTED, attribute(1 | _NESTED, places) + attribute(2 | _NESTED, ports))
        try:
            answer = self._netlink.request(Message(_GET, 0, int(family.socket_family), asked))
        except Refused as error:
            if error.number == _ENOENT:
                return None
            raise ConntrackError(f"connection tracking does not tell an entry: {error}") from error
        except OSError as error:
            raise ConntrackError(f"connection tracking cannot be asked: {error.strerror}; run as root") from error
        parts = dict(attributes(answer))
        if ORIGINAL not in parts or REPLY not in parts:
            return None
        status = int.from_bytes(parts.get(_STATUS, b""), "big")
        return Tracked(
            one_end(parts[ORIGINAL], family, SOURCE),
            one_end(parts[ORIGINAL], family, DESTINATION),
            one_end(parts[REPLY], family, SOURCE),
            one_end(parts[REPLY], family, DESTINATION),
            tcp_state(parts),
            bool(status & _SEEN_REPLY),
            bool(status & _ASSURED),
        )

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._netlink.close()
