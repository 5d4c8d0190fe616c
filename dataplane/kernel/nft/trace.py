"""nftables' trace of single flows: a table that marks their packets, and the kernel's messages about marked ones.

The table belongs to the process (NFT_TABLE_F_OWNER, Linux 5.12): the kernel removes it when the socket is closed, also
if the process is killed. Older kernels keep it until `close`, or `remove_stale`. Rules are made here as expressions, so
that no library reads the tables of the network namespace. Beside the rules there are empty chains, points at which the
kernel tells a marked packet's addresses: before and after each translation, also one that legacy iptables makes.

Messages and expressions: linux/netfilter/nf_tables.h, net/netfilter/nf_tables_trace.c.
"""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dataplane.errors import HotplaneError
from dataplane.kernel.netlink.netlink import NETFILTER, Refused, arrived, attribute, attributes, split_messages, text_of
from dataplane.kernel.netlink.nfnetlink import CREATE, FAMILY_HEADER, Message, Nfnetlink
from dataplane.kernel.nft import uapi
from dataplane.kernel.nft.uapi import Chain, Operation, Rule, nested, number, text
from dataplane.model.net import Family, Protocol, packed
from dataplane.resource import Resource

PREFIX = "hotplane-trace-"
"""Of the table's name; the process's number follows."""

_TRACE_GROUP, _TRACE = 9, 10 << 8 | 17  # NFNLGRP_NFTRACE; NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_APPEND = 0x800  # NLM_F_APPEND
_TABLE_FLAGS, _OWNER = 2, 0x2  # NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}  # enum nf_inet_hooks
_EXPRESSION_NAME, _EXPRESSION_DATA, _LIST_ELEMENT = 1, 2, 1  # NFTA_EXPR_*, NFTA_LIST_ELEM
_REGISTER = 1  # NFT_REG_1
_NETWORK, _TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
_META_NFTRACE, _META_L4PROTO = 12, 16  # NFT_META_*
_CT_DIRECTION, _CT_PROTOCOL, _CT_PROTO_SRC, _CT_PROTO_DST = 1, 10, 11, 12  # NFT_CT_*
_CT_SOURCE = {Family.IPV4: 19, Family.IPV6: 21}  # NFT_CT_SRC_IP, NFT_CT_SRC_IP6; the destination's follows
_ADDRESS_OFFSET = {Family.IPV4: 12, Family.IPV6: 8}
_ICMP = {Family.IPV4: 1, Family.IPV6: 58}
_ORIGINAL, _REPLY = 0, 1
_SYN, _RST, _FLAGS = 0x02, 0x04, 0x17
_A_SECOND, _BURST = 20, 5
"""Packets of the flow that are traced at most: a busy one is not slowed by its trace."""


class Point(NamedTuple):
    """A chain of ours: its hook and priority, and what a packet that is seen there has behind it."""

    hook: str
    priority: int
    what: str


POINTS = {
    "request-in": Point("prerouting", -350, "comes in"),
    "request-out": Point("output", -350, "is sent"),
    "answer-in": Point("prerouting", -150, "comes in"),
    "answer-out": Point("output", -150, "is sent"),
    "translated-in": Point("prerouting", -90, "is past translation"),
    "translated-out": Point("output", -90, "is past translation"),
    "delivered": Point("input", 300, "is delivered to this node"),
    "forwarded": Point("forward", 300, "is forwarded"),
    "leaving": Point("postrouting", 300, "leaves"),
}
"""All chains of the table, by name: the first four mark packets, the others only see marked ones. Priority -350 is
before all usual ones, -150 after connection tracking and before translation of destinations, 300 after all usual
ones."""


class Wanted(NamedTuple):
    """Which packets are marked. source: their address. targets: address and port of their destination, one of these.
    port: their own port, 0 for any."""

    family: Family
    protocol: Protocol
    source: str
    targets: Sequence[tuple[str, int]]
    port: int = 0


class Ends(NamedTuple):
    """Addresses and ports of a packet; ports are 0 where the transport protocol has none."""

    source: tuple[str, int]
    destination: tuple[str, int]


class Traced(NamedTuple):
    """One message. seconds: time.monotonic() when it was read, thus not before it happened. packet: number of the
    packet. rule: the rule's handle, 0 where the chain's policy decided. verdict: "accept", "drop", "continue",
    "goto X", "jump X", "return". ends, protocol, flags (of TCP): in the first message of a base chain. devices: indices
    of the devices in and out."""

    seconds: float
    packet: int
    family: str
    table: str
    chain: str
    rule: int
    verdict: str
    ends: Ends | None
    protocol: int
    flags: int
    devices: tuple[int, int]


def _expression(name: str, *parts: bytes) -> bytes:
    return nested(_LIST_ELEMENT, text(_EXPRESSION_NAME, name), nested(_EXPRESSION_DATA, *parts))


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(uapi.DATA_VALUE, value))


def _compare(value: bytes, *, equal: bool = True) -> bytes:
    return _expression("cmp", number(1, _REGISTER), number(2, 0 if equal else 1), _value(3, value))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", number(1, _REGISTER), number(2, base), number(3, offset), number(4, length))


def _protocol(value: int) -> bytes:
    return _expression("meta", number(1, _REGISTER), number(2, _META_L4PROTO)) + _compare(bytes([value]))


def _ct(key: int, value: bytes, direction: int | None = _ORIGINAL) -> bytes:
    way = b"" if direction is None else number(3, direction, 1)
    return _expression("ct", number(1, _REGISTER), number(2, key), way) + _compare(value)


def _tcp_flags(mask: int, value: int, *, equal: bool = True) -> bytes:
    load = _payload(_TRANSPORT, 13, 1)
    bits = (_value(4, bytes([mask])), _value(5, b"\0"))
    masked = _expression("bitwise", number(1, _REGISTER), number(2, _REGISTER), number(3, 1), *bits)
    return load + masked + _compare(bytes([value]), equal=equal)


def _mark() -> bytes:
    """Mark the packet, unless so many were marked in this second that the rest need not be."""
    limit = _expression("limit", number(1, _A_SECOND, 8), number(2, 1, 8), number(3, _BURST), number(4, 0))
    one = _expression("immediate", number(1, _REGISTER), _value(2, b"\1"))
    return limit + one + _expression("meta", number(2, _META_NFTRACE), number(3, _REGISTER))


def request_rule(wanted: Wanted, target: tuple[str, int]) -> bytes:
    """The expressions that mark the first packet of a TCP connection to a target, or each datagram."""
    family, address = wanted.family, packed(wanted.source)
    offset, length = _ADDRESS_OFFSET[family], len(address)
    ports = _payload(_TRANSPORT, 2, 2) + _compare(struct.pack("!H", target[1]))
    if wanted.port:
        ports += _payload(_TRANSPORT, 0, 2) + _compare(struct.pack("!H", wanted.port))
    first = _tcp_flags(_FLAGS, _SYN) if wanted.protocol is Protocol.TCP else b""
    return (
        _payload(_NETWORK, offset, length)
        + _compare(address)
        + _payload(_NETWORK, offset + length, length)
        + _compare(packed(target[0]))
        + _protocol(wanted.protocol)
        + ports
        + first
        + _mark()
    )


def answer_rules(wanted: Wanted, target: tuple[str, int]) -> Iterator[bytes]:
    """The expressions that mark the first answers of such a connection, and ICMP errors about it."""
    source = _CT_SOURCE[wanted.family]
    mine = (
        _ct(_CT_DIRECTION, bytes([_REPLY]), None)
        + _ct(source, packed(wanted.source))
        + _ct(source + 1, packed(target[0]))
        + _ct(_CT_PROTOCOL, bytes([wanted.protocol]))
        + _ct(_CT_PROTO_DST, struct.pack("!H", target[1]))
    )
    if wanted.port:
        mine += _ct(_CT_PROTO_SRC, struct.pack("!H", wanted.port))
    first = _tcp_flags(_SYN | _RST, 0, equal=False) if wanted.protocol is Protocol.TCP else b""
    yield mine + _protocol(wanted.protocol) + first + _mark()
    yield mine + _protocol(_ICMP[wanted.family]) + _mark()


class TraceTable(Resource):
    """The table, from the making of this object until `close`, in the network namespace of the thread that makes it.

    name: of the table. owned: the kernel removes it with this process. Raises HotplaneError where the kernel refuses.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.name, self.owned = f"{PREFIX}{os.getpid()}", True
        self._family = uapi.FAMILIES["ip" if wanted.family is Family.IPV4 else "ip6"]
        try:
            self._netlink = Nfnetlink()
        except OSError as error:
            raise HotplaneError(f"nftables cannot be asked to trace: {error.strerror}; run as root") from error
        try:
            self._make(wanted)
        except (Refused, OSError) as error:
            self._netlink.close()
            raise HotplaneError(f"nftables does not trace: {error}; it takes CAP_NET_ADMIN and nf_tables") from error

    def _message(self, operation: Operation, *parts: bytes, flags: int = 0) -> Message:
        return Message(operation.kind, flags, self._family, text(uapi.TABLE, self.name) + b"".join(parts))

    def _make(self, wanted: Wanted) -> None:
        try:
            self._netlink.transact(uapi.SUBSYSTEM, self._messages(wanted, number(_TABLE_FLAGS, _OWNER)))
        except Refused as error:
            if error.number not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            self.owned = False  # before Linux 5.12
            self._netlink.transact(uapi.SUBSYSTEM, self._messages(wanted, b""))

    def _messages(self, wanted: Wanted, flags: bytes) -> list[Message]:
        messages = [self._message(Operation.NEW_TABLE, flags, flags=CREATE)]
        for name, point in POINTS.items():
            place = nested(Chain.HOOK, number(1, _HOOKS[point.hook]), number(2, point.priority))
            parts = (text(Chain.NAME, name), place, number(Chain.POLICY, 1), text(Chain.TYPE, "filter"))
            messages.append(self._message(Operation.NEW_CHAIN, *parts, flags=CREATE))
        for target in wanted.targets:
            for chain in ("request-in", "request-out"):
                messages.append(self._rule(chain, request_rule(wanted, target)))
            for chain in ("answer-in", "answer-out"):
                messages += [self._rule(chain, rule) for rule in answer_rules(wanted, target)]
        return messages

    def _rule(self, chain: str, expressions: bytes) -> Message:
        parts = (text(Rule.CHAIN, chain), nested(Rule.EXPRESSIONS, expressions))
        return self._message(Operation.NEW_RULE, *parts, flags=CREATE | _APPEND)

    def close(self) -> None:
        """Remove the table; may be called twice."""
        with contextlib.suppress(Refused, OSError):  # it is gone, or goes with the socket
            self._netlink.transact(uapi.SUBSYSTEM, [self._message(Operation.DELETE_TABLE)])
        self._netlink.close()


class TraceMessages(Resource):
    """The kernel's messages about marked packets of this thread's network namespace. Raises OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
        self._socket.bind((0, 1 << _TRACE_GROUP - 1))

    def fileno(self) -> int:
        """For poll and the like."""
        return self._socket.fileno()

    def take(self) -> Iterator[Traced]:
        """The messages that are there; some may have been lost."""
        for received in arrived(self._socket):
            now = time.monotonic()
            for kind, _, _, body in split_messages(memoryview(received)):
                if kind == _TRACE:
                    yield _traced(now, body)

    def close(self) -> None:
        """Hear no more; may be called twice."""
        self._socket.close()


_TYPES = {1: "policy", 2: "return", 3: "rule"}  # enum nft_trace_types
_VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", 4: "repeat", -1: "continue", -2: "break"}
_VERDICTS |= {-3: "jump", -4: "goto", -5: "return"}


class _Attribute:
    """NFTA_TRACE_*."""

    TABLE, CHAIN, HANDLE, TYPE, VERDICT, ID = 1, 2, 3, 4, 5, 6
    NETWORK, TRANSPORT, IN, OUT, NFPROTO, POLICY = 8, 9, 10, 12, 15, 16


def _traced(now: float, body: memoryview) -> Traced:
    found = {kind: bytes(payload) for kind, payload in attributes(body[FAMILY_HEADER.size :])}

    def value(kind: int) -> int:
        return int.from_bytes(found.get(kind, b""), "big")

    families = {number: name for name, number in uapi.FAMILIES.items()}
    ends, protocol, flags = None, 0, 0
    if _Attribute.NETWORK in found:
        transport = found.get(_Attribute.TRANSPORT, b"")
        ends, protocol = ends_of(found[_Attribute.NETWORK], transport)
        flags = transport[13] if protocol == Protocol.TCP and len(transport) > 13 else 0
    policy = _TYPES.get(value(_Attribute.TYPE)) == "policy"
    verdict = _VERDICTS.get(value(_Attribute.POLICY), "") if policy else _verdict(found.get(_Attribute.VERDICT, b""))
    return Traced(
        now,
        value(_Attribute.ID),
        families.get(body[0], str(body[0])),
        text_of(memoryview(found.get(_Attribute.TABLE, b""))),
        text_of(memoryview(found.get(_Attribute.CHAIN, b""))),
        value(_Attribute.HANDLE),
        verdict,
        ends,
        protocol,
        flags,
        (value(_Attribute.IN), value(_Attribute.OUT)),
    )


def _verdict(raw: bytes) -> str:
    parts = {kind: bytes(payload) for kind, payload in attributes(memoryview(raw))}
    code = struct.unpack("!i", parts.get(uapi.VERDICT_CODE, bytes(4)))[0]
    chain = text_of(memoryview(parts.get(uapi.VERDICT_CHAIN, b"")))
    return f"{_VERDICTS.get(code, str(code))} {chain}".strip()


def ends_of(network: bytes, transport: bytes) -> tuple[Ends, int]:
    """Addresses and ports by the headers of a packet, and its transport protocol's number (of IPv6 the header's that
    follows)."""
    sixth = network[0] >> 4 == 6
    family, start, length = (socket.AF_INET6, 8, 16) if sixth else (socket.AF_INET, 12, 4)
    raw = network[start : start + 2 * length].ljust(2 * length, b"\0")
    source, destination = (socket.inet_ntop(family, raw[at : at + length]) for at in (0, length))
    protocol = network[6] if sixth else network[9]
    ports = struct.unpack("!HH", transport[:4]) if protocol in set(Protocol) and len(transport) >= 4 else (0, 0)
    return Ends((source, ports[0]), (destination, ports[1])), protocol


def rule_numbers(family: str, table: str, chain: str) -> dict[int, int]:
    """Numbers of a chain's rules, from 1 on, by their handles. Reads that chain alone; nothing if it is gone."""
    wanted = text(uapi.TABLE, table) + text(Rule.CHAIN, chain)
    try:
        found = Nfnetlink().dump(Operation.GET_RULE.kind, uapi.FAMILIES[family], wanted)
    except (Refused, OSError):
        return {}
    parts = (dict(attributes(each)) for each in found)
    mine = [each for each in parts if text_of(each[Rule.CHAIN]) == chain and text_of(each[uapi.TABLE]) == table]
    return {int.from_bytes(each[3], "big"): place for place, each in enumerate(mine, 1)}  # NFTA_RULE_HANDLE


def is_trace_table(name: str) -> bool:
    """True for the name of such a table."""
    return name.startswith(PREFIX)


def remove_stale() -> list[str]:
    """Remove the tables of processes that are gone from this network namespace; returns their names. Raises
    HotplaneError."""
    removed = []
    try:
        netlink = Nfnetlink()
        for keyword in ("ip", "ip6"):
            family = uapi.FAMILIES[keyword]
            for answer in netlink.dump(Operation.GET_TABLE.kind, family, b""):
                name = text_of(dict(attributes(answer))[uapi.TABLE])
                if is_trace_table(name) and not Path(f"/proc/{name.removeprefix(PREFIX)}").is_dir():
                    message = Message(Operation.DELETE_TABLE.kind, 0, family, text(uapi.TABLE, name))
                    netlink.transact(uapi.SUBSYSTEM, [message])
                    removed.append(f"{keyword} {name}")
        netlink.close()
    except (Refused, OSError) as error:
        raise HotplaneError(f"nftables tables of an earlier trace cannot be removed: {error}; run as root") from error
    return removed
