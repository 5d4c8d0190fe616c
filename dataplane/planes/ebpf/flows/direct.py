"""Keys of the maps `direct_tcp` and `direct_udp`: one for both directions of a flow (bpf/direct.h)."""

from socket import htons

from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import record

_TUPLE = record("tuple", "source", "destination", "source_port", "destination_port", "protocol", "pad")


def direct_key(one: tuple[str, int], other: tuple[str, int], protocol: int) -> bytes:
    """Return the key of a flow between two ends, in any order. Addresses as text, ports in host order."""
    low, high = sorted((one, other), key=_order)
    return _TUPLE.pack(address_bytes(low[0]), address_bytes(high[0]), htons(low[1]), htons(high[1]), protocol, 0, 0, 0)


def _order(end: tuple[str, int]) -> tuple[int, int, int]:
    """The programs compare addresses as two 64-bit words of this machine, then stored ports."""
    raw = address_bytes(end[0])
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little"), htons(end[1])
