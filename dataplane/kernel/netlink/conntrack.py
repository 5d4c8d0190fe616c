"""Connection tracking: remove entries by netlink, in the current network namespace."""

import errno
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from typing import Protocol as Interface

from dataplane.errors import HotplaneError
from dataplane.kernel.netlink.netlink import Refused, attribute, attributes
from dataplane.kernel.netlink.nfnetlink import Message, Nfnetlink
from dataplane.model.net import Family, Protocol, canonical_address, host_port

# linux/netfilter/nfnetlink_conntrack.h: NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*, then CTA_*.
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2
_NESTED = 0x8000
ORIGINAL, REPLY, _STATUS, _ID, _ZONE, _FILTER, _STATUS_MASK = 1, 2, 3, 12, 18, 25, 26
_TUPLE_IP, _TUPLE_PROTO, _PROTO_NUM = 1, 2, 1
SOURCE, DESTINATION = 0, 1
_ADDRESS_KIND = {Family.IPV4: 1, Family.IPV6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the destination's follows
_PORT_KIND = 2  # CTA_PROTO_SRC_PORT; the destination's follows
# CTA_FILTER_FLAG_*: protocol alone; protocol, and address and port of the side that counts.
_BY_PROTOCOL = 1 << 3
_SIDE_FLAGS = {SOURCE: 1 << 0 | 1 << 3 | 1 << 4, DESTINATION: 1 << 1 | 1 << 3 | 1 << 5}
_DESTINATION_ADDRESS = 1 << 1
_NO_ENTRY = 2  # ENOENT
_ENTRY_COST = 1000
"""Listing an entry costs about as much as walking so many buckets of the table (5 us to 5 ns)."""

_COUNTS = Path("/proc/sys/net/netfilter")


class ConntrackError(HotplaneError):
    """The kernel refused to remove conntrack entries."""


class _Entry(NamedTuple):
    """An entry of the table: where its first packet went, who answers, and what names it to the kernel."""

    address: str
    port: int
    backend: tuple[str, int]
    name: bytes


class Cleaned(NamedTuple):
    """What a removal did in one family: how many entries went, and how long it took. After filtered deletes, of which
    the kernel does not say how many they hit, by how many the namespace has fewer: others that came or went in that
    millisecond are in it."""

    entries: int
    seconds: float


class FlowFilter(Interface):
    """Which UDP flows are meant: by where their first packet went, and by who answers.

    address: "" for any address, of flows that were translated. backend: only flows to this one. keep: all but those to
    these.
    """

    @property
    def family(self) -> Family: ...

    @property
    def address(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def backend(self) -> tuple[str, int] | None: ...

    @property
    def keep(self) -> frozenset[tuple[str, int]]: ...

    def hit(self, address: str, backend: tuple[str, int]) -> bool:
        """Whether a flow to this port, first addressed to `address` and answered by `backend`, is meant."""


def delete_udp(stale: Iterable[FlowFilter]) -> dict[Family, Cleaned]:
    """Remove the conntrack entries of these UDP flows. out: what that did in each family that some of them are of.
    Raises ConntrackError.

    All flows of a port but some, or of a port at any address, are found by listing the UDP entries. Else, for IPv4: one
    filtered delete for each (Linux 5.8), in which the kernel walks its own table; when that would be more work than to
    list the UDP entries once, they are listed. IPv6 entries are always listed: the kernel's filter compares IPv6
    addresses the wrong way round (it keeps the equal ones; seen on 6.18).
    """
    cleaned: dict[Family, Cleaned] = {}
    by_family: dict[Family, list[FlowFilter]] = {}
    for flows in stale:
        by_family.setdefault(flows.family, []).append(flows)
    for family, group in by_family.items():
        started = time.perf_counter()
        try:
            netlink = Nfnetlink()
            count = _delete_group(netlink, family, group)
        except (Refused, OSError) as error:
            names = sorted({host_port(flows.address or "*", flows.port) for flows in group})
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConntrackError(
                f"conntrack entries of UDP flows to {', '.join(names[:3])}{more} could not be removed: {error}; their "
                "clients may stay with an endpoint that is gone until the entries time out"
            ) from error
        cleaned[family] = Cleaned(count, time.perf_counter() - started)
    return cleaned


def _delete_group(netlink: Nfnetlink, family: Family, group: Sequence[FlowFilter]) -> int:
    """Delete the flows of a family; returns how many. Linux 6.1 takes no such filter with a deletion (EINVAL, seen on
    6.1.192): there they are listed, too."""
    if family is Family.IPV4 and all(map(_can_be_filtered, group)) and not _listing_is_cheaper(len(group)):
        try:
            return _delete_filtered(netlink, family, group)
        except Refused as error:
            if error.number != errno.EINVAL:
                raise
    return _delete_listed(netlink, family, group)


def _can_be_filtered(flows: FlowFilter) -> bool:
    """Whether the kernel's filter can say it: it knows no "all but", and not whether a flow was translated."""
    return not flows.keep and (bool(flows.address) or flows.backend is not None)


def _listing_is_cheaper(deletes: int) -> bool:
    """Whether one walk through the table that lists is less work than so many that delete."""
    try:
        entries, buckets = (int((_COUNTS / f"nf_conntrack_{name}").read_text()) for name in ("count", "buckets"))
    except FileNotFoundError:  # no conntrack here yet: nothing to walk either
        return False
    return (deletes - 1) * buckets > entries * _ENTRY_COST


def forget_all() -> None:
    """Remove every conntrack entry of the current network namespace. Raises ConntrackError."""
    try:
        Nfnetlink().request(Message(_DELETE, 0, socket.AF_UNSPEC, b""))
    except (Refused, OSError) as error:
        raise ConntrackError(f"conntrack entries could not be removed: {error}; is nf_conntrack loaded?") from error


def _udp(kind: int, place: bytes, ports: bytes) -> bytes:
    """A CTA_TUPLE_* attribute of UDP."""
    parts = attribute(_TUPLE_IP | _NESTED, place) if place else b""
    number = attribute(_PROTO_NUM, bytes([Protocol.UDP]))
    return attribute(kind | _NESTED, parts + attribute(_TUPLE_PROTO | _NESTED, number + ports))


def _one_side(kind: int, side: int, address: str, port: int) -> bytes:
    """A tuple attribute that says one side of an IPv4 flow, "" for any address; ports are in network byte order."""
    place = attribute(_ADDRESS_KIND[Family.IPV4] + side, socket.inet_aton(address)) if address else b""
    return _udp(kind, place, attribute(_PORT_KIND + side, struct.pack("!H", port)))


def _filter(flows: FlowFilter) -> bytes:
    """Attributes of a request that hits exactly these flows (IPv4)."""
    parts = _one_side(ORIGINAL, DESTINATION, flows.address, flows.port)
    wanted = _SIDE_FLAGS[DESTINATION] if flows.address else _SIDE_FLAGS[DESTINATION] & ~_DESTINATION_ADDRESS
    flags = attribute(ORIGINAL, struct.pack("=I", wanted))
    if flows.backend is not None:
        parts += _one_side(REPLY, SOURCE, *flows.backend)
        flags += attribute(REPLY, struct.pack("=I", _SIDE_FLAGS[SOURCE]))
    return parts + attribute(_FILTER | _NESTED, flags)


def _delete(netlink: Nfnetlink, family: Family, what: bytes) -> bool:
    """Delete by filter or by an entry's name; False when there is no such entry (any more)."""
    try:
        netlink.request(Message(_DELETE, 0, int(family.socket_family), what))
    except Refused as refusal:
        if refusal.number != _NO_ENTRY:
            raise
        return False
    return True


def _delete_filtered(netlink: Nfnetlink, family: Family, wanted: Iterable[FlowFilter]) -> int:
    """Delete what the kernel's filter finds; returns how many that seems to have been."""
    before = _entries()
    for flows in wanted:
        _delete(netlink, family, _filter(flows))
    return max(0, before - _entries())


def _entries() -> int:
    """How many entries the current network namespace has; 0 where there is no conntrack yet."""
    try:
        return int((_COUNTS / "nf_conntrack_count").read_text())
    except FileNotFoundError:
        return 0


def _delete_listed(netlink: Nfnetlink, family: Family, wanted: Iterable[FlowFilter]) -> int:
    """Delete what one listing of all UDP entries finds; returns how many."""
    count = 0
    by_frontend: dict[tuple[str, int], list[FlowFilter]] = {}
    for flows in wanted:
        by_frontend.setdefault((flows.address, flows.port), []).append(flows)
    only_udp = attribute(_FILTER | _NESTED, attribute(ORIGINAL, struct.pack("=I", _BY_PROTOCOL)))
    for item in netlink.dump(_GET, int(family.socket_family), _udp(ORIGINAL, b"", b"") + only_udp):
        entry = _entry(item, family)
        concerned = (by_frontend.get((address, entry.port), ()) for address in (entry.address, ""))
        if any(flows.hit(entry.address, entry.backend) for group in concerned for flows in group):
            count += _delete(netlink, family, entry.name)
    return count


def list_entries(status: int) -> Iterator[tuple[Family, dict[int, memoryview]]]:
    """The family and attributes (CTA_*) of every entry that has one of these IPS_* bits.

    Both families at once: for each list the kernel walks its whole table, however few entries there are. Later kernels
    than 5.10 send no others; a full table has hundreds of thousands. Raises Refused, OSError.
    """
    bits = struct.pack("!I", status)
    wanted = attribute(_STATUS, bits) + attribute(_STATUS_MASK, bits)
    for item in Nfnetlink().dump(_GET, int(socket.AF_UNSPEC), wanted):
        parts = dict(attributes(item))
        if int.from_bytes(parts[_STATUS], "big") & status:
            yield _family(parts[ORIGINAL]), parts


def _family(tuple_: memoryview) -> Family:
    """The family of a CTA_TUPLE_*."""
    addresses = dict(attributes(dict(attributes(tuple_))[_TUPLE_IP]))
    return Family.IPV4 if _ADDRESS_KIND[Family.IPV4] in addresses else Family.IPV6


def protocol_number(tuple_: memoryview) -> int:
    """IPPROTO_* of a CTA_TUPLE_*."""
    return dict(attributes(dict(attributes(tuple_))[_TUPLE_PROTO]))[_PROTO_NUM][0]


def _entry(item: memoryview, family: Family) -> _Entry:
    parts = dict(attributes(item))
    zone = attribute(_ZONE, bytes(parts[_ZONE])) if _ZONE in parts else b""
    # Not by the first packet's tuple, which a flow that began anew meanwhile has as well.
    name = attribute(REPLY | _NESTED, bytes(parts[REPLY])) + zone
    name += attribute(_ID, bytes(parts[_ID])) if _ID in parts else b""
    return _Entry(*one_end(parts[ORIGINAL], family, DESTINATION), one_end(parts[REPLY], family, SOURCE), name)


def one_end(tuple_: memoryview, family: Family, side: int) -> tuple[str, int]:
    """Address and port of one end, SOURCE or DESTINATION, of a CTA_TUPLE_* of a protocol with ports."""
    parts = dict(attributes(tuple_))
    address = dict(attributes(parts[_TUPLE_IP]))[_ADDRESS_KIND[family] + side]
    port = dict(attributes(parts[_TUPLE_PROTO]))[_PORT_KIND + side]
    return canonical_address(socket.inet_ntop(family.socket_family, bytes(address))), int.from_bytes(port, "big")
