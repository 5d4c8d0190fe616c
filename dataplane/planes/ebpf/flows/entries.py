"""Entries of the flow tables as the daemon reads and writes them: layout, age, and the entry of the other direction.

Lifetimes equal those of bpf/flow.h, lifetime(); a test compares both.
"""

import struct
from collections.abc import Mapping
from socket import IPPROTO_TCP
from typing import NamedTuple

from dataplane.planes.ebpf.maps.layout import constant, fields_of, record, size_of

FLOW_TABLES = ("tcp_flows", "udp_flows")
TRANSLATION = record(
    "translation",
    *("source", "destination", "source_port", "destination_port", "flags", "noted", "backend", "backend_generation"),
    *("service", "ifindex", "last_ns", "packets", "bytes", "sequence_end", "acknowledged", "timestamp", "begun"),
    *("hop_until_ns", "hop_ifindex", "hop_destination", "hop_source", "hop_mtu"),
    *("header_change", "transport_change", "pad"),
)
NO_HOP = (0,) * (2 + 6 + 6 + 3 + 3)
"""Values of the fields from hop_until_ns on, for a flow without a cached next hop."""

REPLY, SNAT, SEEN_REPLY, ESTABLISHED, RESTING, FOREIGN = (
    constant(f"FLOW_{name}") for name in ("REPLY", "SNAT", "SEEN_REPLY", "ESTABLISHED", "RESTING", "FOREIGN")
)
RST = constant("FLOW_RST_FORWARD") | constant("FLOW_RST_REPLY")
FIN = constant("FLOW_FIN_FORWARD") | constant("FLOW_FIN_REPLY")

_WORD = struct.Struct("=I")
_LONG = struct.Struct("=q")
_AT = fields_of("translation")
_FLAGS, _NOTED, _LAST = _AT["flags"], _AT["noted"], _AT["last_ns"]
_PROTOCOL = fields_of("tuple")["protocol"]
_ADDRESS = size_of("address")


def flow_flags(value: bytes) -> int:
    """Return the flags of a flow (enum translation_flags), set by either direction."""
    return int(_WORD.unpack_from(value, _FLAGS)[0] | _WORD.unpack_from(value, _NOTED)[0])


def last_ns(value: bytes) -> int:
    """Return the time of the direction's last packet, signed, on the clock of time.monotonic_ns."""
    return int(_LONG.unpack_from(value, _LAST)[0])


def other_key(key: bytes, value: bytes) -> bytes:
    """Return the tuple of a flow's other direction: that of the translated packet, reversed."""
    ports = 2 * _ADDRESS
    return (
        value[_ADDRESS:ports]
        + value[:_ADDRESS]
        + value[ports + 2 : ports + 4]
        + value[ports : ports + 2]
        + key[ports + 4 :]
    )


def belongs(key: bytes, value: bytes, other: bytes) -> bool:
    """True if the entry `other` under the other key belongs to this flow, not to a later one."""
    return other_key(key, other)[: 2 * _ADDRESS + 4] == key[: 2 * _ADDRESS + 4]


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

    def over(self, key: bytes, value: bytes, now: int) -> bool:
        """True if an entry expired, whatever the state of the other direction."""
        return now - last_ns(value) > self.ns[setting(key[_PROTOCOL], flow_flags(value))]


def state(protocol: int, flags: int) -> str:
    """Return the name of a flow's state, for output."""
    if protocol != IPPROTO_TCP:
        return "established" if flags & ESTABLISHED else "answered" if flags & SEEN_REPLY else "opening"
    if flags & RESTING:
        return "resting"
    if flags & (RST | FIN):
        return "closing"
    return "established" if flags & ESTABLISHED else "opening"
