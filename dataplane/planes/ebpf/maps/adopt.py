"""Decodes the maps to plan entries, for read-back and for a daemon that takes over maps after a crash.

A daemon may be killed between any two writes. An entry whose record, frontends, slots and backends agree is adopted as
it is; any other is `broken` and written again; elements of no entry are removed. Of weights the slots tell only the
proportions, so entries with weights are mostly written again, in their places.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import starmap
from socket import ntohs
from typing import NamedTuple

from msgspec.structs import replace

from dataplane.plan.rows import row
from dataplane.plan.types import EXTERNAL, EntryKey, Frontend, FrontendKey, PlanEntry, Row
from dataplane.planes.ebpf.maps.allocate import Ids, Runs
from dataplane.planes.ebpf.maps.encode import (
    BACKEND,
    PRESENT,
    SERVICE,
    Sets,
    StoredFrontend,
    address_text,
    entry_key,
    forwarding_of,
    frontend_key,
    frontend_key_bytes,
    full_keys,
    range_key,
    stored_frontend,
)
from dataplane.planes.ebpf.maps.layout import constant
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.members import HERE, IN_CLUSTER, IN_LOCAL, LINGERS, Address, wanted_flags
from dataplane.planes.ebpf.maps.steady import NO_RUN, Run, table_slots
from dataplane.planes.ebpf.maps.tables import BACKEND_FLAGS_AT, SERVICE_FLAGS_AT, Installed, Tables
from dataplane.planes.ebpf.maps.tunnels import Tunnels
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import Forwarding
from dataplane.policy.maglev import NO_TABLES, Hashing
from dataplane.policy.routes import Scope

_INTERNAL_LOCAL, _EXTERNAL_LOCAL = constant("SERVICE_INTERNAL_LOCAL"), constant("SERVICE_EXTERNAL_LOCAL")
_GENERATION_WORD = 5
_WORDS = BACKEND.size // 4


class _Found:
    """Backends of one entry read so far: indices and flags by address; sound = all belong to the entry; weighted = one
    has several slots of a set."""

    def __init__(self) -> None:
        self.weighted = False
        self.indices: dict[Address, int] = {}
        self.flags: dict[Address, int] = {}
        self.tunnels: dict[Address, int] = {}
        self.sound = True


class _Reader:
    """Reads all maps that the daemon fills. known: keys by which shortened names are resolved."""

    def __init__(self, maps: MapSet, known: Iterable[EntryKey]) -> None:
        self.maps = maps
        self._full = full_keys(known)
        self.tunnels = Tunnels(maps)
        self.tunnels.adopt()
        self.slots = maps.memory["slots"].cast("Q")
        self.backends = maps.memory["backends"]
        self.services = maps.memory["services"]
        self.frontends: dict[FrontendKey, StoredFrontend] = {
            frontend_key(key): stored_frontend(value) for key, value in maps.items("frontends")
        }
        self.by_service: dict[int, list[FrontendKey]] = {}
        for key, stored in self.frontends.items():
            self.by_service.setdefault(stored.service, []).append(key)
        self.range_sets = _range_sets(maps)
        for stored in self.frontends.values():
            if stored.range_set is not None:
                self.range_sets.setdefault(stored.range_set, ())  # a set without CIDRs has no element in the map
        self.lingering: dict[int, list[int]] = {}
        for index, bits in enumerate(self.backends[BACKEND_FLAGS_AT :: BACKEND.size].tobytes()):
            if bits & LINGERS:
                owner = BACKEND.unpack_from(self.backends, index * BACKEND.size)[5]
                self.lingering.setdefault(owner, []).append(index)
        seed = maps.node()["hash_seed"]
        assert isinstance(seed, int), "a number in the header"
        self.seed = seed
        self.broken: set[EntryKey] = set()
        self.installed: dict[EntryKey, Installed] = {}
        flags = self.services[SERVICE_FLAGS_AT :: SERVICE.size].tobytes()
        for service, bits in enumerate(flags):
            if bits & PRESENT:
                self._entry(service)

    def _set(self, service: int, base: int, count: int, wanted: int, found: _Found) -> tuple[Backend, ...]:
        """Return the members of one set, weighted by how many slots each has, and add them to `found`."""
        members: list[tuple[str, int, bool]] = []
        for slot in self.slots[base : base + count].tolist():
            index = slot & 0xFFFFFFFF
            raw, port, _, flags, _, owner, tunnel = BACKEND.unpack_from(self.backends, index * BACKEND.size)
            if owner != service or not flags & wanted:
                found.sound = False
                continue
            address = (address_text(raw), ntohs(port))
            members.append((*address, flags & HERE != 0))
            found.indices[address] = index
            found.flags[address] = flags
            if tunnel:
                found.tunnels[address] = tunnel
        members.sort()  # `slots` has them in any order
        if len(members) == len(set(members)):
            return tuple(starmap(Backend, members))
        found.weighted = True
        return tuple([Backend(*member, count) for member, count in Counter(members).items()])

    def _tunnels(self, cluster: tuple[Backend, ...], found: _Found) -> tuple[str, ...]:
        return tuple([self.tunnels.text(found.tunnels.get((b.address, b.port), 0)) for b in cluster])

    def _lingering(self, service: int, found: _Found) -> tuple[Backend, ...]:
        """Return the backends that serve and are in neither set."""
        members = []
        for index in self.lingering.get(service, ()):
            raw, port, _, flags, *_ = BACKEND.unpack_from(self.backends, index * BACKEND.size)
            address = (address_text(raw), ntohs(port))
            if address not in found.indices:
                members.append(Backend(*address, flags & HERE != 0))
                found.indices[address], found.flags[address] = index, flags
        return tuple(sorted(members))

    def _entry(self, service: int) -> None:
        name, cb, cc, lb, lc, affinity, protocol, family, flags, _ = SERVICE.unpack_from(
            self.services, service * SERVICE.size
        )
        key, sets, found = entry_key(name, protocol, family), Sets(cb, cc, lb, lc), _Found()
        key = self._full.get(key, key)
        keys = self.by_service.get(service, [])
        if len(keys) > 1:
            keys.sort(key=lambda k: (self.frontends[k].order, k))
        stored = [self.frontends[k] for k in keys]
        way, cluster = forwarding_of(flags), self._set(service, cb, cc, IN_CLUSTER, found) if cc else ()
        entry = PlanEntry(
            key=key,
            cluster=cluster,
            local=self._set(service, lb, lc, IN_LOCAL, found) if lc else (),
            frontends=tuple([self._frontend(k, s) for k, s in zip(keys, stored, strict=True)]),
            affinity_seconds=affinity,
            internal_local=bool(flags & _INTERNAL_LOCAL),
            external_local=bool(flags & _EXTERNAL_LOCAL),
            lingering=self._lingering(service, found) if service in self.lingering else (),
            forwarding=way,
            tunnels=self._tunnels(cluster, found) if way is not Forwarding.SNAT else (),
        )
        if found.weighted:
            entry = replace(entry, weighted=True)
        steady = _steady_run(stored)
        if steady.slots and found.sound and self._is_table(steady, entry, found):
            entry = replace(entry, algorithm=Algorithm.MAGLEV)
        wanted = wanted_flags(entry)
        sound = found.sound and found.flags == wanted and key not in self.installed
        numbers = tuple([value.range_set or 0 for value in stored])
        installed = Installed(
            entry, service, [found.indices[address] for address in wanted], sets,
            tuple(map(frontend_key_bytes, keys)), numbers, None, steady,
        )  # fmt: skip
        sound = sound and not (found.tunnels and way is Forwarding.SNAT)
        for order, value in enumerate(stored):
            sound = sound and value.forwarding is (way if value.kind in EXTERNAL else Forwarding.SNAT)
            expected, maglev = installed.sets_of(entry.frontends[order])
            sound = sound and value.sets == expected and value.maglev == bool(maglev)
            sound = sound and value.affinity_seconds == affinity and value.order == min(order, 255)
        if not sound:
            self.broken.add(key)
        self.installed[key] = installed

    def _is_table(self, run: Run, entry: PlanEntry, found: _Found) -> bool:
        """True if a run has the Maglev table of an entry."""
        scope = replace(entry, algorithm=Algorithm.MAGLEV).steady_scope
        members = entry.backends(scope) if scope else ()
        if not 0 < len(members) <= run.slots:
            return False
        indices = array("I", [found.indices[b.address, b.port] for b in members])
        slots = self.slots[run.base : run.base + run.slots]
        return bool(slots == table_slots(members, indices, Hashing(run.slots, self.seed)))

    def _frontend(self, key: FrontendKey, stored: StoredFrontend) -> Frontend:
        return stored.frontend(key, self.range_sets.get(stored.range_set or 0, ()))


def _steady_run(stored: Iterable[StoredFrontend]) -> Run:
    """Return where the Maglev table of an entry's frontends lies."""
    for value in stored:
        if value.maglev:
            return Run(*value.sets.runs()[value.routes.outside.scope is Scope.LOCAL])
    return NO_RUN


def _range_sets(maps: MapSet) -> dict[int, tuple[str, ...]]:
    """Return the CIDRs of every range set, in the order of the plan."""
    ordered: dict[int, dict[int, str]] = {}
    for key, value in maps.items("source_ranges"):
        number, cidr = range_key(key)
        ordered.setdefault(number, {})[int.from_bytes(value, "little")] = cidr
    return {number: tuple(cidr for _, cidr in sorted(cidrs.items())) for number, cidrs in ordered.items()}


def read_rows(maps: MapSet, known: Iterable[EntryKey] = ()) -> dict[FrontendKey, Row]:
    """Return every frontend in the maps as a row of the plan. known: entries that may be there; other long names stay
    shortened."""
    return {
        frontend.key: row(frontend, installed.entry)
        for installed in _Reader(maps, known).installed.values()
        for frontend in installed.entry.frontends
    }


class Adopted(NamedTuple):
    """Tables with the entries of an earlier daemon. broken: entries that must be written again, even if unchanged."""

    tables: Tables
    broken: frozenset[EntryKey]


def adopt(maps: MapSet, known: Iterable[EntryKey] = (), hashing: Hashing = NO_TABLES) -> Adopted:
    """Adopt filled maps without writing; call `sweep` after the plan was applied. known: see `read_rows`. hashing: that
    of the plan, which may be another one than the maps'."""
    reader, tables = _Reader(maps, known), Tables(maps, hashing)
    tables.installed, tables.tunnels = reader.installed, reader.tunnels
    for key, installed in reader.installed.items():
        if installed.steady.slots:
            tables.steady.note(key, installed.steady)
            if hashing != (installed.steady.slots, reader.seed):
                reader.broken.add(key)
    tables.owners = {raw: key for key, installed in reader.installed.items() for raw in installed.keys}
    runs = {
        run
        for sets in [i.sets for i in reader.installed.values()] + [s.sets for s in reader.frontends.values()]
        for run in sets.runs()
    }
    flags = reader.backends[BACKEND_FLAGS_AT :: BACKEND.size].tobytes()
    present = reader.services[SERVICE_FLAGS_AT :: SERVICE.size].tobytes()
    tables.backends = Ids("backends", len(flags), [index for index, bits in enumerate(flags) if bits])
    tables.services = Ids("services", len(present), [index for index, bits in enumerate(present) if bits])
    tables.runs = Runs("slots", maps.specs["slots"].max_entries, ((base, count) for base, count in runs if count))
    tables.ranges.adopt(reader.range_sets)
    for installed in reader.installed.values():
        for number in installed.range_sets:
            if number:
                tables.ranges.use(number)
    generations = reader.backends.cast("I")[_GENERATION_WORD::_WORDS].tolist()
    tables.generation = max([*generations, *(s.generation for s in reader.frontends.values()), 1])
    return Adopted(tables, frozenset(reader.broken))


def sweep(tables: Tables) -> None:
    """Remove elements that no entry refers to and free their indices, after adoption and the first change."""
    maps = tables.maps
    stray = [key for key, _ in maps.items("frontends") if key not in tables.owners]
    maps.remove("frontends", stray)
    tables.ranges.drop_unused()
    used_backends = {index for installed in tables.installed.values() for index in installed.backends}
    used_services = {installed.service for installed in tables.installed.values()}
    for name, size, offset, used, ids in (
        ("backends", BACKEND.size, BACKEND_FLAGS_AT, used_backends, tables.backends),
        ("services", SERVICE.size, SERVICE_FLAGS_AT, used_services, tables.services),
    ):
        memory = maps.memory[name]
        for index, flags in enumerate(memory[offset::size].tobytes()):
            if flags and index not in used:
                memory[index * size + offset] = 0
                ids.give_back(index)
    tables.runs = Runs(
        "slots",
        maps.specs["slots"].max_entries,
        (run for i in tables.installed.values() for run in (*i.sets.runs(), i.steady) if run[1]),
    )
