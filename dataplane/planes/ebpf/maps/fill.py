"""Write entries of the plainest kind to empty maps, many at a time: nearly all that a cold start is made of.

What is written is what `Tables.apply` writes entry by entry, in the same places. Nothing reads these maps yet, so no
order of writes has to be kept.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, repeat
from operator import add
from socket import inet_pton

from dataplane.model.net import AF_INET, AF_INET6
from dataplane.plan.change import EntryChange
from dataplane.plan.types import PlanEntry
from dataplane.planes.ebpf.maps.encode import (
    BACKEND,
    MAPPED,
    Sets,
    backend_end,
    frontend_bytes,
    frontend_key_bytes,
    service_bytes,
)
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.members import IN_CLUSTER
from dataplane.planes.ebpf.maps.tables import Installed, Tables, no_ranges
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.forwarding import Forwarding
from dataplane.policy.maglev import NO_TABLES, Hashing

_RANDOM = Algorithm.RANDOM
_WORDS, _ADDRESS_WORDS = BACKEND.size // 8, 16 // 8
"""Of a backend's record, and of those its address."""
_A_PIECE = 4000
"""Entries that are written at once: their bytes take a few megabytes."""


def is_plain(entry: PlanEntry) -> bool:
    """True if an entry has one frontend, open to every source, and all of its backends are in its Cluster set, on other
    nodes, at one port, without weights and Maglev table."""
    if (
        entry.local
        or entry.lingering
        or entry.weighted
        or entry.algorithm is not _RANDOM
        or len(entry.frontends) != 1
        or entry.frontends[0].source_ranges is not None
    ):
        return False
    if entry.forwarding is not Forwarding.SNAT:
        return False
    ports = [-1 if backend.local else backend.port for backend in entry.cluster]
    return not ports or (ports[0] >= 0 and ports.count(ports[0]) == len(ports))


def filled(maps: MapSet, entries: Iterable[PlanEntry], hashing: Hashing = NO_TABLES) -> Tables:
    """Return the content of empty maps after a plan's entries were written to them."""
    tables = Tables(maps, hashing)
    tables.apply([EntryChange(None, entry) for entry in _fill(tables, entries)])
    return tables


def _fill(tables: Tables, entries: Iterable[PlanEntry]) -> list[PlanEntry]:
    """Write the plain ones of the entries; returns the others. Those for which a map may have no room are among the
    others."""
    others: list[PlanEntry] = []
    plain: list[PlanEntry] = []
    for entry in entries:
        (plain if is_plain(entry) else others).append(entry)
    for first in range(0, len(plain), _A_PIECE):
        piece = plain[first : first + _A_PIECE]
        if not tables.has_room_for(piece):
            return others + plain[first:]
        _write(tables, piece)
    return others


def _write(tables: Tables, entries: list[PlanEntry]) -> None:
    """Write entries that fit."""
    counts = [len(entry.cluster) for entry in entries]
    services, backends = tables.services.take_many(len(entries)), tables.backends.take_many(sum(counts))
    first = backends[0] if backends else 0
    ends = list(accumulate(counts, initial=first))
    owns = list(map(range, ends, ends[1:]))
    sets = list(map(Sets, tables.runs.take_each(counts), counts))
    generations = [tables.next_generation() for _ in entries]
    keys = _frontend_keys(entries)
    values = _frontend_values(entries, sets, generations, services)
    for each, own in zip(sets, owns, strict=True):
        tables.write_slots(each.cluster_base, array("Q", own))
    records = _backend_records(entries, counts, generations, services)
    tables.write_records(services[0], _service_records(entries, sets), first, records)
    tables.maps.put_many("frontends", b"".join(keys), values, len(keys))
    names = [entry.key for entry in entries]
    mine = [(key,) for key in keys]
    tables.owners.update(zip(keys, names, strict=True))
    installed = map(Installed, entries, services, owns, sets, mine, repeat(no_ranges(1)))
    tables.installed.update(zip(names, installed, strict=True))


def _frontend_keys(entries: list[PlanEntry]) -> list[bytes]:
    return [frontend_key_bytes(entry.frontends[0].key) for entry in entries]


def _frontend_values(
    entries: list[PlanEntry], sets: Sequence[Sets], generations: Sequence[int], services: Sequence[int]
) -> bytes:
    return b"".join(
        [
            frontend_bytes(entry.frontends[0], 0, generation, service, each, entry.affinity_seconds, 0)
            for entry, each, generation, service in zip(entries, sets, generations, services, strict=True)
        ]
    )


def _service_records(entries: list[PlanEntry], sets: Sequence[Sets]) -> bytes:
    return b"".join(map(service_bytes, entries, sets))


def _backend_records(
    entries: list[PlanEntry], counts: Sequence[int], generations: Sequence[int], services: Sequence[int]
) -> bytes | bytearray:
    texts = [backend.address for entry in entries for backend in entry.cluster]
    behind = [
        backend_end(entry.cluster[0].port, entry.key.protocol, IN_CLUSTER, generation, service) if count else b""
        for entry, count, generation, service in zip(entries, counts, generations, services, strict=True)
    ]
    if ":" not in "".join(texts):
        packed = b"".join(map(inet_pton, repeat(AF_INET), texts))
        return _columns(packed, b"".join([end * count for end, count in zip(behind, counts, strict=True)]))
    addresses = [inet_pton(AF_INET6, text) if ":" in text else MAPPED + inet_pton(AF_INET, text) for text in texts]
    return b"".join(map(add, addresses, chain.from_iterable(map(repeat, behind, counts))))


def _columns(addresses: bytes, ends: bytes) -> bytearray:
    """Lay records out of IPv4 addresses and of what follows them, each laid end to end: by columns of words, not one by
    one."""
    records = bytearray((MAPPED + bytes(BACKEND.size - len(MAPPED))) * (len(addresses) // 4))
    words, halves = memoryview(records).cast("Q"), memoryview(records).cast("I")
    halves[len(MAPPED) // 4 :: BACKEND.size // 4] = memoryview(addresses).cast("I")
    columns, first = memoryview(ends).cast("Q"), _ADDRESS_WORDS
    for column in range(first, _WORDS):
        words[column::_WORDS] = columns[column - first :: _WORDS - first]
    return records
