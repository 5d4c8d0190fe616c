"""Entries of the flow tables as the daemon reads and writes them: layout, age, and the entry of the other direction.

Lifetimes equal those of bpf/flow.h, lifetime(); a test compares both.
"""

import struct
from collections.abc import Mapping
from socket import IPPROTO_TCP, IPPROTO_UDP
from typing import NamedTuple

from dataplane.planes.ebpf.maps.layout import constant, fields_of, record, size_of

FLOW_TABLES = {"tcp_flows": IPPROTO_TCP, "udp_flows": IPPROTO_UDP}
"""The tables of flows, and the protocol of each."""
TRANSLATION = record(
    "translation",
    *("source", "destination", "source_port", "destination_port", "flags", "noted", "backend", "backend_generation"),
    *("service", "ifindex", "last_ns", "packets", "bytes", "sequence_end", "acknowledged", "timestamp", "begun"),
    *("hop_until_ns", "hop_ifindex", "hop_destination", "hop_source", "hop_mtu"),
    *("header_change", "transport_change", "tunnel", "endpoint", "own"),
)
NO_HOP = (0,) * (2 + 6 + 6 + 3 + 2)
"""Values of the fields from hop_until_ns to endpoint, without a cached next hop and without another node."""

REPLY, SNAT, SEEN_REPLY, ESTABLISHED, RESTING, FOREIGN, LEFT, FORWARDED = (
    constant(f"FLOW_{name}")
    for name in ("REPLY", "SNAT", "SEEN_REPLY", "ESTABLISHED", "RESTING", "FOREIGN", "LEFT", "FORWARDED")
)
RST = constant("FLOW_RST_FORWARD") | constant("FLOW_RST_REPLY")
FIN = constant("FLOW_FIN_FORWARD") | constant("FLOW_FIN_REPLY")

_WORD = struct.Struct("=I")
_LONG = struct.Struct("=q")
_AT = fields_of("translation")
_FLAGS, _NOTED, _LAST = _AT["flags"], _AT["noted"], _AT["last_ns"]
_OWN = _AT["own"]
_ADDRESS, _TUPLE = size_of("address"), size_of("tuple")
_PORTS = 2 * _ADDRESS
_ENDS = _PORTS + 4
_MAPPED = bytes(10) + b"\xff\xff"
_KEY = struct.Struct("=3I")
_HALVES = struct.Struct("=4QI")
_MIX, _MIX_2, _MIX_3 = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_64 = (1 << 64) - 1


def flow_flags(value: bytes) -> int:
    """Return the flags of a flow (enum translation_flags), set by either direction."""
    return int(_WORD.unpack_from(value, _FLAGS)[0] | _WORD.unpack_from(value, _NOTED)[0])


def last_ns(value: bytes) -> int:
    """Return the time of the direction's last packet, signed, on the clock of time.monotonic_ns."""
    return int(_LONG.unpack_from(value, _LAST)[0])


def flow_key(own: bytes) -> bytes:
    """Return the key of a tuple (struct tuple, or its beginning up to the ports): struct flow_key. The same as
    bpf/flow.h, name_flow()."""
    if own.startswith(_MAPPED):
        return own[12:16] + own[28:32] + own[_PORTS:_ENDS]
    source, source_host, destination, destination_host, ports = _HALVES.unpack_from(own)
    networks = ((source * _MIX) ^ destination) * _MIX_2 & _64
    hosts = ((source_host * _MIX_3) ^ destination_host ^ (ports << 16)) * _MIX & _64
    networks ^= networks >> 32
    hosts ^= hosts >> 29
    half = networks + hosts * _MIX_2 & _64
    first = ((networks ^ hosts) * _MIX_3 & _64) >> 32
    return _KEY.pack(first << 8 & 0xFFFFFFFF, half & 0xFFFFFFFF, half >> 32)


def own_tuple(value: bytes) -> bytes:
    """Return the tuple of an entry's packets: struct tuple."""
    return value[_OWN : _OWN + _TUPLE]


def other_tuple(value: bytes) -> bytes:
    """Return the tuple of a flow's other direction, up to the ports: that of the translated packet, reversed."""
    return value[_ADDRESS:_PORTS] + value[:_ADDRESS] + value[_PORTS + 2 : _ENDS] + value[_PORTS : _PORTS + 2]


def belongs(value: bytes, other: bytes) -> bool:
    """True if the entry `other` under the key of the other direction belongs to this flow, not to a later one."""
    return other_tuple(other) == value[_OWN : _OWN + _ENDS]


def setting(protocol: int, flags: int) -> str:
    """Return the name of the field of struct node with the lifetime of an idle entry, in seconds."""
    if protocol != IPPROTO_TCP:
        return "udp_stream_seconds" if flags & (ESTABLISHED | FOREIGN) else "udp_seconds"
    for mask, name in ((RESTING, "tcp_rest_seconds"), (RST, "tcp_reset_seconds")):
        if flags & mask:
            return name
    if flags & FIN == FIN:
        return "tcp_closing_seconds"
    if flags & FIN:
        return "tcp_half_closed_seconds"
    return "tcp_established_seconds" if flags & (ESTABLISHED | FOREIGN) else "tcp_syn_seconds"


class Lifetimes(NamedTuple):
    """Idle times in ns, by the names of struct node's fields."""

    ns: Mapping[str, int]

    @classmethod
    def of(cls, node: Mapping[str, int | bytes | list[int]]) -> "Lifetimes":
        """Return the lifetimes in a stored struct node."""
        return cls(
            {
                name: value * 10**9
                for name, value in node.items()
                if name.endswith("_seconds") and isinstance(value, int)
            }
        )

    def of_flags(self, protocol: int, flags: int) -> int:
        """Return the lifetime of entries with these flags, in ns."""
        return self.ns[setting(protocol, flags)]

    def over(self, protocol: int, value: bytes, now: int) -> bool:
        """True if an entry expired, whatever the state of the other direction."""
        return now - last_ns(value) > self.ns[setting(protocol, flow_flags(value))]


def state(protocol: int, flags: int) -> str:
    """Return the name of a flow's state, for output."""
    if protocol != IPPROTO_TCP:
        return "established" if flags & ESTABLISHED else "answered" if flags & SEEN_REPLY else "opening"
    if flags & RESTING:
        return "resting"
    if flags & (RST | FIN):
        return "closing"
    return "established" if flags & ESTABLISHED else "opening"
