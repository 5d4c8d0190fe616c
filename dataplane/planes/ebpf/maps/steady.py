"""Maglev tables in the map `slots`: which entries have one, and what is in it.

A table is a run of slots like that of a set, only longer: each slot has the backend that policy.maglev gives it. So the
programs read it as they read a set. Tables may take half of the map. An entry for which there is no room, or that has
more backends than a table has slots, is drawn at random, and named.
"""

from array import array
from collections.abc import Collection
from typing import NamedTuple

from dataplane.kernel.fill_table import fill_table
from dataplane.plan.types import EntryKey, PlanEntry
from dataplane.planes.ebpf.maps.allocate import capacity
from dataplane.policy.endpoints import Backend
from dataplane.policy.maglev import Hashing, fill, fits, turns


class Run(NamedTuple):
    """Where a table lies in `slots`."""

    base: int = 0
    slots: int = 0


NO_RUN = Run()


def table_slots(members: Collection[Backend], indices: "array[int]", hashing: Hashing) -> "array[int]":
    """Return the slots of a set's table. indices: of the members in `backends`, in the same order."""
    take = turns([*members], hashing)
    by_turn = array("Q", map(indices.__getitem__, take.order))
    table = fill_table(hashing.size, take.offsets, take.skips, take.places, by_turn)
    return array("Q", map(by_turn.__getitem__, fill(hashing.size, take))) if table is None else table


class SteadyRuns:
    """Accounts for tables. refused: of entries that should have one, why they have not. changes: how often that has
    changed. slots: size of the map."""

    def __init__(self, hashing: Hashing, slots: int) -> None:
        self.hashing = hashing
        self.refused: dict[EntryKey, str] = {}
        self.changes = 0
        self._room = slots // 2
        self._taken: dict[EntryKey, int] = {}
        self._total = 0
        self._freed = False

    def wanted(self, entry: PlanEntry, old: Run) -> int:
        """Return the size of the table that an entry gets; 0 if it needs none, or there is no room. old: what it
        has."""
        self.forget(entry.key)
        scope, size = entry.steady_scope, self.hashing.size
        if scope is None or not size:
            return 0
        count = len(entry.backends(scope))
        if not fits(count, self.hashing):
            why = f"its {count} endpoints are more than the {size} slots of a table; raise --maglev-table-size"
            self.refuse(entry.key, why)
            return 0
        others = self._total - self._taken.get(entry.key, 0)
        if old.slots != size and others + capacity(size) > self._room:
            why = f"{len(self._taken)} tables take up the {self._room} slots for them; lower --maglev-table-size"
            self.refuse(entry.key, why)
            return 0
        return size

    def refuse(self, key: EntryKey, why: str) -> None:
        """Note that an entry has no table."""
        self.refused[key] = why
        self.changes += 1

    def note(self, key: EntryKey, run: Run) -> None:
        """Note what an entry has from now on."""
        before = self._taken.pop(key, 0)
        if run.slots:
            self._taken[key] = capacity(run.slots)
        elif before:
            self._freed = True
        self._total += self._taken.get(key, 0) - before

    def forget(self, key: EntryKey) -> None:
        """Note that an entry went, or is asked about anew."""
        if self.refused.pop(key, None) is not None:
            self.changes += 1

    def to_try_again(self) -> list[EntryKey]:
        """Return the entries without a table if one has become free since the last call."""
        freed, self._freed = self._freed, False
        return list(self.refused) if freed else []

    def slots(self, members: Collection[Backend], indices: "array[int]") -> "array[int]":
        """Return the slots of a set's table."""
        return table_slots(members, indices, self.hashing)
