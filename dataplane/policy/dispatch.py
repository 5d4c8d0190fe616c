"""In which format packets to an endpoint of another node go, and by which name the endpoint is called there.

Source of the names: docs/forwarding.md. A digest of 32 bits, of which IP in IP carries the low ones alone, so that it
cannot tell some endpoints of a node apart.
"""

from collections.abc import Iterable, Mapping
from socket import htons

from dataplane.model.forwarding import Dispatch
from dataplane.model.net import mapped
from dataplane.policy.endpoints import Backend

SHORT_NAME = 0x1FFF
"""Mask of the bits of a digest that IP in IP carries: SHORT_NAME of bpf/consts.h."""

_MIX, _MIX_2, _MIX_3 = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9  # as in bpf/lookup.h
_64 = (1 << 64) - 1


def endpoint_digest(address: str, port: int, protocol: int) -> int:
    """Return the name of an endpoint in a forwarded packet. The same as bpf/tunnel.h, endpoint_digest(): nodes must
    agree on it, whatever their versions."""
    raw = mapped(address)
    first, second = int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
    mixed = (first * _MIX_3 ^ second) * _MIX & _64
    mixed ^= mixed >> 32
    return (mixed + (htons(port) << 8 | protocol)) * _MIX_2 >> 32 & 0xFFFFFFFF


def alike(
    ways: Iterable[tuple[Backend, str]], formats: Mapping[str, Dispatch], protocol: int
) -> frozenset[tuple[str, int]]:
    """Return address and port of the endpoints that IP in IP cannot tell from another one of their node, so that they
    get VXLAN. ways: the backends of a Service port with the address of their node, "" where nothing is forwarded;
    formats: what packets to a node's address are to go in, where that is not VXLAN."""
    if Dispatch.IPIP not in formats.values():
        return frozenset()
    names: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for backend, node in ways:
        if formats.get(node) is Dispatch.IPIP:
            name = endpoint_digest(backend.address, backend.port, protocol) & SHORT_NAME
            names.setdefault((node, name), set()).add((backend.address, backend.port))
    return frozenset(each for same in names.values() if len(same) > 1 for each in same)


def formats_of(
    ways: Iterable[tuple[Backend, str]], formats: Mapping[str, Dispatch], protocol: int
) -> dict[Backend, Dispatch]:
    """Return in what packets to the backends of a Service port go, where that is not VXLAN. Arguments as above."""
    pairs = list(ways)
    plain = alike(pairs, formats, protocol)
    return {
        backend: formats[node]
        for backend, node in pairs
        if node in formats and (backend.address, backend.port) not in plain
    }
