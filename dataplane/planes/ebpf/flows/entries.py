"""Entries of the flow tables as the control plane reads and writes them: layout, age, and the other half of a flow.

What is said here of lifetimes is what bpf/flow.h, lifetime(), says; a test compares both.
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
"""The fields of an entry from hop_until_ns on, of a flow whose next hop is not known."""

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


def facts(value: bytes) -> int:
    """All that is known of a flow: enum translation_flags, said by either direction."""
    return int(_WORD.unpack_from(value, _FLAGS)[0] | _WORD.unpack_from(value, _NOTED)[0])


def last_ns(value: bytes) -> int:
    """Time of the direction's last packet, on the clock of time.monotonic_ns, read as signed like there."""
    return int(_LONG.unpack_from(value, _LAST)[0])


def other_key(key: bytes, value: bytes) -> bytes:
    """The tuple of a flow's other direction: what becomes of a packet, turned round."""
    ports = 2 * _ADDRESS
    return (
        value[_ADDRESS:ports]
        + value[:_ADDRESS]
        + value[ports + 2 : ports + 4]
        + value[ports : ports + 2]
        + key[ports + 4 :]
    )


def belongs(key: bytes, value: bytes, other: bytes) -> bool:
    """Whether the entry `other` under the other key is the other half of this flow, and not of a later one."""
    return other_key(key, other)[: 2 * _ADDRESS + 4] == key[: 2 * _ADDRESS + 4]


def setting(protocol: int, flags: int) -> str:
    """Name of the field of struct node with the idle seconds after which an entry is forgotten."""
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
        """From the fields of the stored struct node."""
        return cls(
            {
                name: value * 10**9
                for name, value in node.items()
                if name.endswith("_seconds") and isinstance(value, int)
            }
        )

    def of_flags(self, protocol: int, flags: int) -> int:
        """Lifetime of entries with these flags."""
        return self.ns[setting(protocol, flags)]

    def over(self, key: bytes, value: bytes, now: int) -> bool:
        """Whether an entry, looked at alone, was not used for its lifetime."""
        return now - last_ns(value) > self.ns[setting(key[_PROTOCOL], facts(value))]


def state(protocol: int, flags: int) -> str:
    """What people call a flow's state."""
    if protocol != IPPROTO_TCP:
        return "established" if flags & ESTABLISHED else "answered" if flags & SEEN_REPLY else "opening"
    if flags & RESTING:
        return "resting"
    if flags & (RST | FIN):
        return "closing"
    return "established" if flags & ESTABLISHED else "opening"
