"""Write entries of the plainest kind to empty maps, many at a time: nearly all that a cold start is made of.

What is written is what `Tables.apply` writes entry by entry. Entries with equally many backends are written together:
then each field of a record is a column, which is laid out at once. Nothing reads these maps yet, so no order of writes
has to be kept.
"""

import sys
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from socket import inet_pton

from dataplane.model.net import AF_INET, Family, Protocol
from dataplane.plan.change import EntryChange
from dataplane.plan.types import FrontendKind, PlanEntry
from dataplane.planes.ebpf.maps.allocate import capacity
from dataplane.planes.ebpf.maps.encode import (
    BACKEND,
    FRONTEND,
    MAPPED,
    SERVICE,
    Sets,
    address_bytes,
    frontend_bytes,
    frontend_key_bytes,
    service_bytes,
    service_name,
)
from dataplane.planes.ebpf.maps.layout import constant, fields_of
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.members import HERE, IN_CLUSTER
from dataplane.planes.ebpf.maps.tables import Installed, Tables, no_ranges
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.forwarding import Forwarding
from dataplane.policy.maglev import NO_TABLES, Hashing

_RANDOM, _SNAT = Algorithm.RANDOM, Forwarding.SNAT
_NAME_SIZE = constant("SERVICE_NAME_SIZE")
_FRONTEND_AT, _SERVICE_AT, _BACKEND_AT = map(fields_of, ("frontend", "service", "backend"))
_FLAGS = bytes((IN_CLUSTER, IN_CLUSTER | HERE)).ljust(256, b"\0")
"""Flags of a backend by whether it is on this node, as a table for bytes.translate."""
_MOST_MEMBERS = 64
"""Backends of a plain entry: each is a column of slots."""
_A_PIECE = 4000
"""Entries that are written at once: their bytes take a few megabytes."""


def is_plain(entry: PlanEntry) -> bool:
    """True if an entry has one frontend, open to every source, and all of its backends are in its Cluster set, not very
    many, without weights and Maglev table."""
    return not (
        entry.local
        or entry.lingering
        or entry.weighted
        or entry.algorithm is not _RANDOM
        or entry.forwarding is not _SNAT
        or len(entry.cluster) > _MOST_MEMBERS
        or len(entry.frontends) != 1
        or entry.frontends[0].source_ranges is not None
    )


def filled(maps: MapSet, entries: Iterable[PlanEntry], hashing: Hashing = NO_TABLES) -> Tables:
    """Return the content of empty maps after a plan's entries were written to them."""
    tables = Tables(maps, hashing)
    tables.apply([EntryChange(None, entry) for entry in _fill(tables, entries)])
    return tables


def _fill(tables: Tables, entries: Iterable[PlanEntry]) -> list[PlanEntry]:
    """Write the plain ones of the entries; returns the others. Those for which a map may have no room are among the
    others."""
    others: list[PlanEntry] = []
    plain: defaultdict[int, list[PlanEntry]] = defaultdict(list)
    for entry in entries:
        (plain[len(entry.cluster)] if is_plain(entry) else others).append(entry)
    for count, alike in plain.items():
        for first in range(0, len(alike), _A_PIECE):
            piece = alike[first : first + _A_PIECE]
            if not tables.has_room_for(len(piece), count):
                others += alike[first:]
                break
            _write(tables, piece)
    return others


def _write(tables: Tables, entries: list[PlanEntry]) -> None:
    """Write entries that fit and have equally many backends."""
    many, count = len(entries), len(entries[0].cluster)
    services, backends = tables.services.take_many(many), tables.backends.take_many(count * many)
    bases, generations = tables.runs.take_row(count, many), tables.next_generations(many)
    keys = [frontend_key_bytes(entry.frontends[0].key) for entry in entries]
    owns: Iterable[range] = repeat(range(0), many)
    if count:
        firsts = range(backends[0], backends[0] + len(backends), count)
        owns = map(range, firsts, range(firsts.start + count, firsts.stop + count, count))
        tables.write_slots(bases[0], _slots(firsts, count))
    records = _backend_records(entries, generations, services)
    tables.write_records(services[0], _service_records(entries, bases), backends[0] if count else 0, records)
    values = _frontend_values(entries, bases, generations, services)
    tables.maps.put_many("frontends", b"".join(keys), values, many)
    names = [entry.key for entry in entries]
    mine = [(key,) for key in keys]
    tables.owners.update(zip(keys, names, strict=True))
    sets = map(Sets, bases, repeat(count))
    installed = map(Installed, entries, services, owns, sets, mine, repeat(no_ranges(1)))
    tables.installed.update(zip(names, installed, strict=True))


def _slots(firsts: range, count: int) -> "array[int]":
    """Return the slots of runs that lie one behind the other. firsts: the first backend of each."""
    length = capacity(count)
    found = array("Q", bytes(8 * length * len(firsts)))
    for at in range(count):
        found[at::length] = array("Q", range(firsts.start + at, firsts.stop + at, count))
    return found


def _column(records: bytearray, size: int, field: int, values: Iterable[int]) -> None:
    """Write a field of four bytes of all records. size: of a record, or of as many as there is one value for."""
    column = values if isinstance(values, array) else array("I", values)
    memoryview(records).cast("I")[field // 4 :: size // 4] = memoryview(column)


def _frontend_values(
    entries: list[PlanEntry], bases: Iterable[int], generations: Iterable[int], services: Iterable[int]
) -> bytearray:
    """Return values of `frontends`, all but a few fields of which are the same for most."""
    alike: dict[tuple[int, FrontendKind, int], bytes] = {}
    texts: list[bytes] = []
    for entry in entries:
        (frontend,), seconds = entry.frontends, entry.affinity_seconds
        sort = (id(frontend.routes), frontend.kind, seconds)
        if sort not in alike:
            alike[sort] = frontend_bytes(frontend, 0, 0, 0, Sets(cluster_count=len(entry.cluster)), seconds, 0)
        texts.append(alike[sort])
    values = bytearray(b"".join(texts))
    for name, column in (("generation", generations), ("service", services), ("cluster_base", bases)):
        _column(values, FRONTEND.size, _FRONTEND_AT[name], column)
    return values


def _service_records(entries: list[PlanEntry], bases: Iterable[int]) -> bytearray:
    """Return records of `services`: a name each, and what is the same for most."""
    alike: dict[tuple[int, Protocol, Family, bool, bool], bytes] = {}
    texts: list[bytes] = []
    for entry in entries:
        key = entry.key
        sort = (entry.affinity_seconds, key.protocol, key.family, entry.internal_local, entry.external_local)
        if sort not in alike:
            alike[sort] = service_bytes(entry, Sets(cluster_count=len(entry.cluster)))[_NAME_SIZE:]
        texts.append(service_name(key).ljust(_NAME_SIZE, b"\0")[:_NAME_SIZE])
        texts.append(alike[sort])
    records = bytearray(b"".join(texts))
    _column(records, SERVICE.size, _SERVICE_AT["cluster_base"], bases)
    return records


def _backend_records(entries: list[PlanEntry], generations: Sequence[int], services: Sequence[int]) -> bytearray:
    """Return records of the backends of entries that have equally many."""
    count, size = len(entries[0].cluster), BACKEND.size
    members = list(chain.from_iterable([entry.cluster for entry in entries]))
    records = _addresses([backend.address for backend in members])
    ports = array("H", [backend.port for backend in members])
    if sys.byteorder == "little":
        ports.byteswap()
    memoryview(records).cast("H")[_BACKEND_AT["port"] // 2 :: size // 2] = memoryview(ports)
    records[_BACKEND_AT["flags"] :: size] = bytes([backend.local for backend in members]).translate(_FLAGS)
    protocols = bytes([entry.key.protocol for entry in entries])
    columns = [("generation", array("I", generations)), ("service", array("I", services))]
    for at in range(count):
        records[at * size + _BACKEND_AT["protocol"] :: count * size] = protocols
        for name, column in columns:
            _column(records, count * size, at * size + _BACKEND_AT[name], column)
    return records


def _addresses(texts: list[str]) -> bytearray:
    """Return records of backends that have addresses and nothing else yet."""
    records = bytearray((MAPPED + bytes(BACKEND.size - len(MAPPED))) * len(texts))
    if ":" not in "".join(texts):
        packed = memoryview(b"".join(map(inet_pton, repeat(AF_INET), texts))).cast("I")
        memoryview(records).cast("I")[len(MAPPED) // 4 :: BACKEND.size // 4] = packed
        return records
    words, whole = memoryview(records).cast("Q"), memoryview(b"".join(map(address_bytes, texts))).cast("Q")
    for half in range(2):
        words[half :: BACKEND.size // 8] = whole[half::2]
    return records
