"""Maglev hashing: which backend a connection from outside gets, the same on every node of the cluster.

Source: D. Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer, NSDI 2016, section 3.4. Each
backend has a permutation of a table's slots, made of a digest of its address and port and the cluster's seed; in turns,
by weight, each takes the first slot of its permutation that is free. The order of turns comes from these digests, too,
so nothing depends on how a node came to know its endpoints. A connection's slot comes from a hash of its addresses,
ports and protocol, or with session affinity of the client's address alone.

This is the specification. `kernel.fill_table` does the same as `fill`, compiled, and bpf/steady.h as `flow_hash`.
"""

import struct
from array import array
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from dataplane.model.net import mapped
from dataplane.policy.endpoints import Backend
from dataplane.policy.weights import places

_MASK = 0xFFFFFFFFFFFFFFFF
_MIX, _MIX_2, _MIX_3 = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9  # as in bpf/lookup.h
_EMPTY = 0xFFFFFFFF
_TUPLE = struct.Struct("<5Q")


class Hashing(NamedTuple):
    """What all nodes of a cluster must have in common. size: slots of a table, a prime; 0 = there are no tables. seed:
    64 bits (see `seed_of`)."""

    size: int
    seed: int


NO_TABLES = Hashing(0, 0)


class Turns(NamedTuple):
    """The input of `fill`, by turn. order: position of each backend in its set. offsets, skips: first slot and step of
    its permutation. places: its weight."""

    order: Sequence[int]
    offsets: "array[int]"
    skips: "array[int]"
    places: "array[int]"


def seed_of(text: str) -> int:
    """Return the seed that a text of any length stands for."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def turns(backends: Sequence[Backend], hashing: Hashing) -> Turns:
    """Return who takes slots of a table, in which order. backends: without duplicates, in any order."""
    key = hashing.seed.to_bytes(8, "little")
    digests = [
        int.from_bytes(blake2b(mapped(b.address) + b.port.to_bytes(2), digest_size=8, key=key).digest(), "little")
        for b in backends
    ]
    order = sorted(range(len(backends)), key=lambda at: (digests[at], backends[at]))
    weights = places([backend.weight or 1 for backend in backends])
    return Turns(
        order,
        array("I", [(digests[at] & 0xFFFFFFFF) % hashing.size for at in order]),
        array("I", [(digests[at] >> 32) % (hashing.size - 1) + 1 for at in order]),
        array("I", [weights[at] for at in order]),
    )


def fill(size: int, take: Turns) -> "array[int]":
    """Return a table: the turn of the backend that has each slot. At least one backend."""
    table = array("I", [_EMPTY]) * size
    position, most = list(take.offsets), max(take.places)
    credit = [0] * len(position)
    everyone = [*zip(range(len(position)), take.skips, take.places, strict=True)]
    left = size
    while True:
        for turn, skip, weight in everyone:
            credit[turn] += weight
            if credit[turn] < most:
                continue
            credit[turn] -= most
            slot = position[turn]
            while table[slot] != _EMPTY:
                slot = (slot + skip) % size
            table[slot] = turn
            position[turn] = (slot + skip) % size
            left -= 1
            if not left:
                return table


@lru_cache(maxsize=64)
def table(backends: tuple[Backend, ...], hashing: Hashing) -> "array[int]":
    """Return the table of a set: the position in `backends` of the one that has each slot. Tens of milliseconds."""
    take = turns(backends, hashing)
    return array("I", map(take.order.__getitem__, fill(hashing.size, take)))


def fits(count: int, hashing: Hashing) -> bool:
    """True if a set of so many backends can have a table: each needs at least one slot."""
    return 0 < count <= hashing.size


def flow_hash(
    seed: int, source: str, destination: str, ports: tuple[int, int], protocol: int, *, by_client: bool
) -> int:
    """Return 32 bits of hash of a connection's first packet.

    source, destination, ports: as they arrive, before translation. by_client: session affinity, only the source's
    address counts.
    """
    rest = mapped(destination) + struct.pack("!HHBxxx", *ports, protocol)
    if by_client:
        rest = bytes(len(rest))
    source_high, source_low, high, low, ports_and_protocol = _TUPLE.unpack(mapped(source) + rest)
    value = seed
    for word in (source_high * _MIX_3 ^ source_low, high * _MIX_3 ^ low, ports_and_protocol):
        value = ((value ^ word) * _MIX) & _MASK
        value ^= value >> 29
    return ((value * _MIX_2) & _MASK) >> 32


def slot_of(value: int, size: int) -> int:
    """Return the slot of a hash in a table."""
    return (value * size) >> 32
