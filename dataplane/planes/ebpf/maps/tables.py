"""Writes the plan to the maps: allocates service, backend and slot indices for entries and applies changes.

The order of writes keeps a change consistent for programs that read at the same time; `bpf/lookup.h`, balance(),
explains it. An entry that does not fit is left out as a whole, so that the slow path serves it.
"""

import secrets
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import NamedTuple

import msgspec

from dataplane.kernel.ebpf.barrier import full_barrier
from dataplane.plan.change import EntryChange
from dataplane.plan.types import EntryKey, Frontend, PlanEntry, SourceRanges
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.maps.allocate import Ids, MapFull, Runs, capacity
from dataplane.planes.ebpf.maps.encode import (
    BACKEND,
    MAGLEV,
    SERVICE,
    Sets,
    backend_records,
    frontend_bytes,
    frontend_key_bytes,
    service_bytes,
)
from dataplane.planes.ebpf.maps.layout import fields_of
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.members import Address, MemberChange, changes_only_backends, wanted_flags
from dataplane.planes.ebpf.maps.range_sets import RangeSets
from dataplane.planes.ebpf.maps.steady import NO_RUN, Run, SteadyRuns
from dataplane.planes.ebpf.maps.tunnels import Forwarded, Tunnels
from dataplane.planes.ebpf.maps.window import Window
from dataplane.planes.moves import moves
from dataplane.policy.endpoints import Backend
from dataplane.policy.maglev import NO_TABLES, Hashing
from dataplane.policy.routes import Scope

BACKEND_FLAGS_AT = fields_of("backend")["flags"]
_TUNNEL_AT, _TUNNEL_END = fields_of("backend")["tunnel"], fields_of("backend")["tunnel"] + 4
SERVICE_FLAGS_AT = fields_of("service")["flags"]


class Installed(msgspec.Struct, frozen=True, gc=False):
    """Indices and keys that an entry uses in the maps.

    backends: indices, in the order of `wanted_flags(entry)` where there are no `members`. keys: of its frontends, in
    the entry's order. range_sets: one for each frontend, 0 = none. members: of a large entry that has changed, the
    indices of its backends by address; the entry's next `Installed` has the same dict. steady: where its Maglev table
    lies in `slots`.
    """

    entry: PlanEntry
    service: int
    backends: Collection[int]
    sets: Sets
    keys: tuple[bytes, ...]
    range_sets: tuple[int, ...]
    members: dict[Address, int] | None = None
    steady: Run = NO_RUN

    def sets_of(self, frontend: Frontend) -> tuple[Sets, int]:
        """Return the sets of one frontend and its flag: for clients from outside, the Maglev table if there is one."""
        if not self.steady.slots or not self.entry.steady(frontend):
            return self.sets, 0
        return self.sets.having(frontend.routes.outside.scope, self.steady), MAGLEV

    def indices(self) -> dict[Address, int]:
        """Backend indices by address. Not to be changed."""
        return dict(zip(wanted_flags(self.entry), self.backends, strict=True)) if self.members is None else self.members


_Undo = tuple[Callable[..., None], Collection[int]]
"""A function that releases something, and its arguments."""

_NO_SETS = Sets()


@cache
def no_ranges(count: int) -> tuple[int, ...]:
    """Return `range_sets` for `count` frontends without source ranges; entries share the tuple."""
    return (0,) * count


class Removed(NamedTuple):
    """A backend that no longer serves an entry: sockets still connected to it must be disconnected."""

    entry: EntryKey
    address: str
    port: int


class _DeferredWrites:
    """Writes and releases of a change that must wait until its frontends are written."""

    def __init__(self) -> None:
        self.upserts: dict[bytes, bytes] = {}
        self.deleted: dict[bytes, None] = {}
        self.kept_flags: list[tuple[int, int]] = []
        self.dead: list[int] = []
        self.runs: list[tuple[int, int]] = []
        self.services: list[int] = []
        self.range_sets: list[int] = []
        self.removed: list[Removed] = []
        self.entries: dict[EntryKey, None] = {}

    @property
    def made_room(self) -> bool:
        """Whether anything becomes free that another entry may need."""
        return bool(self.dead or self.runs or self.services or self.range_sets or self.deleted)


def _is_kept(change: EntryChange) -> bool:
    """Sort key: removals first, to free room for additions."""
    return change.new is not None


_SLOT_SIZE = 8


def _indices(places: Mapping[Address, int], drawn: Iterable[Backend]) -> "array[int]":
    """Return the slots of a list of backends."""
    return array("Q", [places[(backend.address, backend.port)] for backend in drawn])


def _position(slots: bytes, index: int) -> int:
    """Return the position of the slot that holds a backend's index."""
    wanted, at = index.to_bytes(_SLOT_SIZE, sys.byteorder), -1
    while True:
        at = slots.index(wanted, at + 1)
        if at % _SLOT_SIZE == 0:
            return at // _SLOT_SIZE


_MOST_REFUSALS = 8
"""So many entries that were left out are refused again at a change that made room; others are asked for at the next."""


class Tables:
    """The daemon's copy of what is in the maps. overflow: for each entry left out, the map that was full; it is tried
    again when a change has made room, who waits longest first."""

    def __init__(self, maps: MapSet, hashing: Hashing = NO_TABLES) -> None:
        self.maps = maps
        self.steady = SteadyRuns(hashing, maps.specs["slots"].max_entries)
        self.installed: dict[EntryKey, Installed] = {}
        self.owners: dict[bytes, EntryKey] = {}
        self.overflow: dict[EntryKey, str] = {}
        self._waiting: dict[EntryKey, PlanEntry] = {}
        self.ranges = RangeSets(maps)
        self.tunnels, self.forwarded = Tunnels(maps), Forwarded(maps)
        self.services = Ids("services", maps.specs["services"].max_entries)
        self.backends = Ids("backends", maps.specs["backends"].max_entries)
        self.runs = Runs("slots", maps.specs["slots"].max_entries)
        # Random, so that flow state carried over from other maps never matches a backend of these by accident.
        self.generation = 1 + secrets.randbits(30)
        self._most_frontends = maps.specs["frontends"].max_entries
        self._slots: memoryview | Window = maps.memory["slots"].cast("Q")
        self._fresh_backends: memoryview | Window = maps.memory["backends"]
        self._held_backends: memoryview | Window = maps.memory["backends"]
        self._service_memory: memoryview | Window = maps.memory["services"]
        self._certain = False

    def end_load(self) -> None:
        """End a load: unmap the maps from this process, since later changes are small and go through windows. New
        backends mostly lie one behind the other, so they have a window of their own. From now on the maps hold what
        `installed` says, and what stays as it is need not be written again."""
        memory = self.maps.memory
        self._slots, self._service_memory = memory.window("slots", _SLOT_SIZE), memory.window("services", 1)
        self._fresh_backends, self._held_backends = memory.window("backends", 1), memory.window("backends", 1)
        memory.let_go()
        self._certain = True

    def apply(self, changes: Iterable[EntryChange]) -> list[Removed]:
        """Write entry changes; returns the removed backends. O(size of the change)."""
        with self._doubting():
            return self._apply(changes)

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """An error may come between two writes; then it is not certain any more what the maps hold."""
        try:
            yield
        except BaseException:
            self._certain = False
            raise

    def _apply(self, changes: Iterable[EntryChange]) -> list[Removed]:
        deferred = _DeferredWrites()
        for change in sorted(changes, key=_is_kept):
            self._write(change.key, change.new, deferred)
        self._finish(deferred)
        if self.overflow and deferred.made_room:
            self._take_in()
        again = self.steady.to_try_again()
        if again:
            more = _DeferredWrites()
            for key in again:
                held = self.installed.get(key)
                if held is not None and self.steady.wanted(held.entry, held.steady):
                    self._write(key, held.entry, more)
            self._finish(more)
        return deferred.removed

    def _take_in(self) -> None:
        """Write entries that were left out, as long as there is room."""
        refused = 0
        deferred = _DeferredWrites()
        for key, entry in list(self._waiting.items()):
            self._write(key, entry, deferred)
            refused += key in self.overflow
            if refused == _MOST_REFUSALS:
                break
        self._finish(deferred)

    def _leave_out(self, entry: PlanEntry, full: MapFull) -> None:
        """Leave an entry to the slow path."""
        self.overflow[entry.key], self._waiting[entry.key] = full.map_name, entry

    def accept(self, peers: Collection[str]) -> None:
        """Accept forwarded packets from these nodes, by address. O(entries) where it was nobody before, or is now."""
        self.tunnels.accept(peers)
        on = self.tunnels.accepts
        if on != self.forwarded.on:
            self.forwarded.fill(filter(None, map(self._forwarded_of, self.installed.values())), on=on)

    def _forwarded_of(self, installed: Installed | None) -> tuple[PlanEntry, int, Collection[int]] | None:
        """Return what `Forwarded` asks for of an entry."""
        if installed is None:
            return None
        indices = installed.indices()
        backends = [indices[address] for address in wanted_flags(installed.entry)]
        return installed.entry, installed.service, backends

    def rehash(self, hashing: Hashing) -> None:
        """Write all Maglev tables anew, of another size or by another seed."""
        if hashing == self.steady.hashing:
            return
        self.steady.hashing = hashing
        deferred = _DeferredWrites()
        with self._doubting():
            for key in [key for key, installed in self.installed.items() if installed.entry.steady_scope]:
                self._write(key, self.installed[key].entry, deferred)
            self._finish(deferred)

    def has_room_for(self, many: int, count: int) -> bool:
        """True if so many entries with one frontend without source ranges, and `count` backends each, certainly fit, at
        indices that were never used before."""
        return (
            self.services.never_used >= many
            and self.backends.never_used >= many * count
            and self.runs.never_used >= (many + 1) * capacity(count)  # one more, as runs are aligned
            and len(self.owners) + many <= self._most_frontends
        )

    def write_slots(self, base: int, indices: "array[int]") -> None:
        """Write backends into the slots from `base` on."""
        self._slots[base : base + len(indices)] = indices

    def write_records(self, service: int, services: bytearray, backend: int, backends: bytearray) -> None:
        """Write records of services and of backends from these indices on, which no program reads yet."""
        at, where = service * SERVICE.size, backend * BACKEND.size
        self._service_memory[at : at + len(services)] = services
        self._fresh_backends[where : where + len(backends)] = backends

    def next_generation(self) -> int:
        """Return an unused generation; wraps after 2**32 - 1 writes, never to 0."""
        self.generation = self.generation % 0xFFFFFFFF + 1
        return self.generation

    def next_generations(self, count: int) -> Sequence[int]:
        """Return so many unused generations."""
        first = self.generation + 1
        if self.generation + count > 0xFFFFFFFF:
            return [self.next_generation() for _ in range(count)]
        self.generation += count
        return range(first, first + count)

    def _write(self, key: EntryKey, new: PlanEntry | None, deferred: _DeferredWrites) -> None:
        """Write the parts of an entry that no program reads yet; add the rest to `deferred`."""
        old = self.installed.get(key)
        if self.forwarded.on:
            deferred.entries[key] = None
        if new is None:
            self.steady.forget(key)
        if self.overflow:
            self.overflow.pop(key, None)
            waited = self._waiting.pop(key, None)
            if waited is not None:  # sockets may be connected to its endpoints since it was in the maps
                stay = wanted_flags(new) if new is not None else {}
                deferred.removed.extend(Removed(key, *each) for each in wanted_flags(waited) if each not in stay)
        done: Installed | None = None
        if old is not None and new is not None and changes_only_backends(old.entry, new):
            try:
                self.installed[key] = self._change_members(old, new, deferred)
            except MapFull as full:
                self._leave_out(new, full)
                self._retire(old, None, deferred, new)
                del self.installed[key]
            return
        if new is not None:
            wanted, before = wanted_flags(new), old.indices() if old else {}
            try:
                done = self._reserve(new, wanted, old, before)
            except MapFull as full:
                self._leave_out(new, full)
            else:
                self._fill(done, wanted, old, before, deferred)
        if old is not None:
            self._retire(old, done, deferred, new)
        self.steady.note(key, done.steady if done is not None else NO_RUN)
        if done is not None:
            self.installed[key] = done
        elif old is not None:
            del self.installed[key]

    def _change_members(self, old: Installed, new: PlanEntry, deferred: _DeferredWrites) -> Installed:
        """Change a large entry of which only backends differ. O(number of differences). Raises MapFull before any
        write."""
        was = old.entry
        members = old.indices()
        change = MemberChange.of(was, new)
        come = [address for address in change.flags if change.flags[address] and address not in members]
        undo: list[_Undo] = []
        try:
            fresh = self.backends.take_many(len(come))
            undo.append((self.backends.give_back, fresh))
            sets = Sets(
                self._run(len(new.cluster), old.sets.cluster_base, old.sets.cluster_count, undo),
                len(new.cluster),
                self._run(len(new.local), old.sets.local_base, old.sets.local_count, undo) if new.local else 0,
                len(new.local),
            )
        except PlaneError:
            for give_back, numbers in undo:
                give_back(*numbers)
            raise
        generation, places = self.next_generation(), dict(zip(come, fresh, strict=True))
        records = backend_records({a: change.flags[a] for a in come}, was.key.protocol, generation, old.service)
        for index, raw in zip(fresh, records, strict=True):
            self._fresh_backends[index * BACKEND.size : (index + 1) * BACKEND.size] = raw
        for pair, wanted in zip(zip(old.sets.runs(), sets.runs(), strict=True), change.sets, strict=True):
            self._move_slots(*pair, wanted, members, places)
        members.update(places)
        self._describe(new, old.service, sets, old)
        done = Installed(new, old.service, members.values(), sets, old.keys, old.range_sets, members)
        self._compose_frontends(done, generation, deferred)
        for address, flags in change.flags.items():
            if flags and address not in places:
                offset = members[address] * BACKEND.size + BACKEND_FLAGS_AT
                self._held_backends[offset] |= flags
                deferred.kept_flags.append((members[address], flags))
            elif not flags:
                deferred.dead.append(members.pop(address))
                deferred.removed.append(Removed(was.key, *address))
        for (base, count), (new_base, new_count) in zip(old.sets.runs(), sets.runs(), strict=True):
            if count and (base != new_base or not new_count):
                deferred.runs.append((base, count))
        return done

    def _move_slots(
        self,
        old: tuple[int, int],
        new: tuple[int, int],
        change: tuple[Sequence[Address], Sequence[Address]],
        members: Mapping[Address, int],
        places: Mapping[Address, int],
    ) -> None:
        """Update the slots of one set, in its run or in a new one. change: removed and added addresses."""
        (base, count), (new_base, _) = old, new
        gone, come = change
        raw = self._slots[base : base + count].tobytes() if gone else b""
        holes = [_position(raw, members[address]) for address in gone]
        added = [places[address] if address in places else members[address] for address in come]
        moved = moves(count, holes, added, lambda at: self._slots[base + at])
        if base != new_base:
            kept = min(count, capacity(new[1]))
            self._slots[new_base : new_base + kept] = array("Q", self._slots[base : base + kept].tobytes())
        for at, index in moved.items():
            if index is not None:
                self._slots[new_base + at] = index

    def _reserve(
        self, new: PlanEntry, wanted: dict[Address, int], old: Installed | None, before: dict[Address, int]
    ) -> Installed:
        """Allocate all indices that an entry newly needs, or none. Raises MapFull."""
        undo: list[_Undo] = []
        old_sets = old.sets if old else _NO_SETS
        try:
            if old:
                service = old.service
            else:
                service = self.services.take()
                undo.append((self.services.give_back, (service,)))
            missing = len(wanted) - sum(map(before.__contains__, wanted)) if before else len(wanted)
            fresh = self.backends.take_many(missing)
            undo.append((self.backends.give_back, fresh))
            cluster, local = len(new.drawn(Scope.CLUSTER)), len(new.drawn(Scope.LOCAL))
            sets = Sets(
                self._run(cluster, old_sets.cluster_base, old_sets.cluster_count, undo),
                cluster,
                self._run(local, old_sets.local_base, old_sets.local_count, undo) if local else 0,
                local,
            )
            steady = self._steady_run(new, old.steady if old else NO_RUN, undo)
            keys, range_sets = [], []
            for frontend in new.frontends:
                keys.append(frontend_key_bytes(frontend.key))
                range_sets.append(self._range_set(frontend.source_ranges, undo) if frontend.source_ranges else 0)
            if len(self.owners) + len(keys) > self._most_frontends:
                self._check_frontends(keys, old)
        except PlaneError:
            for give_back, numbers in undo:
                give_back(*numbers)
            raise
        if before:
            rest = iter(fresh)
            fresh = array("I", (before[a] if a in before else next(rest) for a in wanted))
        numbers = tuple(range_sets) if any(range_sets) else no_ranges(len(keys))
        return Installed(new, service, fresh, sets, tuple(keys), numbers, None, steady)

    def _steady_run(self, new: PlanEntry, old: Run, undo: list[_Undo]) -> Run:
        """Return the run for an entry's Maglev table: the old one if its size is the same, else a new one; NO_RUN if it
        needs none or gets none."""
        wanted = self.steady.wanted(new, old)
        if not wanted or wanted == old.slots:
            return old if wanted else NO_RUN
        try:
            run = Run(self.runs.take(wanted), wanted)
        except MapFull as full:
            self.steady.refuse(new.key, str(full))
            return NO_RUN
        undo.append((self.runs.give_back, run))
        return run

    def _run(self, count: int, old_base: int, old_count: int, undo: list[_Undo]) -> int:
        """Return the run for a set of `count`: the old one if its length class is the same, else a new one."""
        if not count:
            return 0
        if old_count and capacity(count) == capacity(old_count):
            return old_base
        base = self.runs.take(count)
        undo.append((self.runs.give_back, (base, count)))
        return base

    def _range_set(self, ranges: SourceRanges, undo: list[_Undo]) -> int:
        number = self.ranges.take(ranges.cidrs)
        undo.append((self.ranges.give_back, (number,)))
        return number

    def _check_frontends(self, keys: Sequence[bytes], old: Installed | None) -> None:
        """Raise MapFull unless the frontends fit after the removals of the same change."""
        going = sum(self.owners.get(key) == old.entry.key for key in set(old.keys).difference(keys)) if old else 0
        if len(self.owners) - going + sum(key not in self.owners for key in keys) > self._most_frontends:
            raise MapFull("frontends", self._most_frontends)

    def _fill(
        self,
        done: Installed,
        wanted: dict[Address, int],
        old: Installed | None,
        before: dict[Address, int],
        deferred: _DeferredWrites,
    ) -> None:
        """Write an entry's backends, slots and service record, and defer its frontends."""
        entry, service, sets, generation = done.entry, done.service, done.sets, self.next_generation()
        known = self._certain and old is not None and not (old.entry.tunnels or entry.tunnels)
        kept = wanted_flags(old.entry) if old is not None and known else {}
        self._fill_backends(done, wanted, before, kept, generation, deferred)
        base, count = sets.cluster_base, sets.cluster_count
        by_address = entry.local or entry.weighted or done.steady.slots
        indices = dict(zip(wanted, done.backends, strict=True)) if by_address else {}
        if entry.weighted:
            self.write_slots(base, _indices(indices, entry.drawn(Scope.CLUSTER)))
        else:  # wanted_flags() begins with the Cluster set, in its order
            self.write_slots(base, array("Q", [*islice(done.backends, count)]))
        if entry.local:
            self.write_slots(sets.local_base, _indices(indices, entry.drawn(Scope.LOCAL)))
        if done.steady.slots and (scope := entry.steady_scope):
            members = entry.backends(scope)
            self.write_slots(done.steady.base, self.steady.slots(members, _indices(indices, members)))
        self._describe(entry, service, sets, old)
        self._compose_frontends(done, generation, deferred)

    def _compose_frontends(self, done: Installed, generation: int, deferred: _DeferredWrites) -> None:
        """Defer an entry's frontends, which must be written after everything that they refer to."""
        entry = done.entry
        for order, key in enumerate(done.keys):
            self.owners[key] = entry.key
            if deferred.deleted:
                deferred.deleted.pop(key, None)
            sets, maglev = done.sets_of(entry.frontends[order]) if done.steady.slots else (done.sets, 0)
            deferred.upserts[key] = frontend_bytes(
                entry.frontends[order],
                order,
                generation,
                done.service,
                sets,
                entry.affinity_seconds,
                done.range_sets[order],
                entry.forwarding,
                maglev,
            )

    def _fill_backends(
        self,
        done: Installed,
        wanted: dict[Address, int],
        before: dict[Address, int],
        kept: dict[Address, int],
        generation: int,
        deferred: _DeferredWrites,
    ) -> None:
        """Write new backends, and add the new flags of existing ones. kept: what the maps certainly have as flags."""
        memory, size, indices = self._held_backends, BACKEND.size, done.backends
        tunnels = self.tunnels.numbers_of(done.entry)
        records = backend_records(wanted, done.entry.key.protocol, generation, done.service, tunnels)
        if isinstance(indices, range):  # contiguous, as in a load
            self._fresh_backends[indices.start * size : indices.stop * size] = b"".join(records)
            return
        for (address, flags), index, raw in zip(wanted.items(), indices, records, strict=True):
            offset = index * size
            if address in before:
                if kept.get(address) == flags:
                    continue
                # Add flags now and clear flags later: a program that read the old frontend still finds its backends.
                memory[offset + BACKEND_FLAGS_AT] |= flags
                memory[offset + _TUNNEL_AT : offset + _TUNNEL_END] = raw[_TUNNEL_AT:_TUNNEL_END]
                deferred.kept_flags.append((index, flags))
            else:
                self._fresh_backends[offset : offset + size] = raw

    def _describe(self, entry: PlanEntry, service: int, sets: Sets, old: Installed | None) -> None:
        """Write an entry's record of `services`, unless it is there already."""
        record = service_bytes(entry, sets)
        if old is None or not self._certain or record != service_bytes(old.entry, old.sets):
            self._service_memory[service * SERVICE.size : (service + 1) * SERVICE.size] = record

    def _retire(
        self, old: Installed, new: Installed | None, deferred: _DeferredWrites, entry: PlanEntry | None
    ) -> None:
        """Defer the removal of what an entry no longer uses. new: what it has now, None = nothing. entry: as it is now,
        perhaps by the slow path alone, None = deleted."""
        for key in old.keys:
            # Another entry may have taken the frontend over, in this change or in an earlier one.
            if (new is None or key not in new.keys) and self.owners.get(key) == old.entry.key:
                del self.owners[key]
                deferred.deleted[key] = None
        kept = set(new.backends) if new else set()
        serve = wanted_flags(entry) if entry is not None and new is None else {}
        for (text, port), index in old.indices().items():
            if index not in kept:
                deferred.dead.append(index)
                if (text, port) not in serve:
                    deferred.removed.append(Removed(old.entry.key, text, port))
        now = new.sets if new else Sets()
        for (base, count), (new_base, new_count) in zip(old.sets.runs(), now.runs(), strict=True):
            if count and (base != new_base or not new_count):
                deferred.runs.append((base, count))
        if old.steady.slots and (new is None or old.steady != new.steady):
            deferred.runs.append(old.steady)
        deferred.range_sets.extend(number for number in old.range_sets if number)
        if new is None:
            deferred.services.append(old.service)

    def _finish(self, deferred: _DeferredWrites) -> None:
        """Write the frontends, removals first to free room, then release what no frontend refers to any more."""
        self.maps.remove("frontends", deferred.deleted)
        self.maps.put_many(
            "frontends", b"".join(deferred.upserts), b"".join(deferred.upserts.values()), len(deferred.upserts)
        )
        full_barrier()
        for name in deferred.entries:
            self.forwarded.change(name, self._forwarded_of(self.installed.get(name)))
        for index, flags in deferred.kept_flags:
            self._held_backends[index * BACKEND.size + BACKEND_FLAGS_AT] = flags
        for index in deferred.dead:
            self._held_backends[index * BACKEND.size + BACKEND_FLAGS_AT] = 0
        self.backends.give_back(*deferred.dead)
        for base, count in deferred.runs:
            self.runs.give_back(base, count)
        for number in deferred.range_sets:
            self.ranges.give_back(number)
        for service in deferred.services:
            self._service_memory[service * SERVICE.size + SERVICE_FLAGS_AT] = 0
            self.maps.clear_per_cpu("service_counters", service)
            self.services.give_back(service)
