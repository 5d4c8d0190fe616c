"""Allocates indices of the array maps: single ids, and runs of slots in powers of two."""

from array import array
from collections.abc import Iterable, Sequence
from itertools import repeat

from dataplane.planes.base import PlaneError


class MapFull(PlaneError):
    """A map is full. map_name: its name, which is also that of its size option."""

    def __init__(self, map_name: str, size: int) -> None:
        super().__init__(f"the map {map_name} is full ({size} entries); raise its size")
        self.map_name = map_name


class Ids:
    """Allocator of indices 0..size-1. Never-used indices are allocated first, the lowest one first, so that an index is
    reused as late as possible."""

    def __init__(self, map_name: str, size: int, used: Iterable[int] = ()) -> None:
        self._map_name, self._size = map_name, size
        taken = set(used)
        self._next = max(taken, default=-1) + 1
        # In time that is every index of the map; as Python's numbers they would take ten times as much memory.
        self._free = array("I", (index for index in range(self._next) if index not in taken))

    @property
    def never_used(self) -> int:
        """Number of indices that were never allocated; `take_many` of so many gives a range."""
        return self._size - self._next

    def take(self) -> int:
        """Allocate an index. Raises MapFull."""
        if self._next < self._size:
            self._next += 1
            return self._next - 1
        if not self._free:
            raise MapFull(self._map_name, self._size)
        return self._free.pop()

    def take_many(self, count: int) -> Sequence[int]:
        """Allocate `count` indices, or none. Raises MapFull."""
        if self._next + count <= self._size:
            self._next += count
            return range(self._next - count, self._next)
        if count > len(self._free) + self._size - self._next:
            raise MapFull(self._map_name, self._size)
        return [self.take() for _ in range(count)]

    def give_back(self, *indices: int) -> None:
        """Free indices."""
        self._free.extend(indices)


def capacity(count: int) -> int:
    """Return the length of the run for `count` members: the next power of two, 0 for none."""
    return 1 << (count - 1).bit_length() if count else 0


class Runs:
    """Allocator of runs of consecutive slots, aligned to their length, which is a power of two."""

    def __init__(self, map_name: str, size: int, used: Iterable[tuple[int, int]] = ()) -> None:
        """used: (first index, members) of runs that are allocated already."""
        self._map_name, self._size = map_name, size
        self._used = {base: capacity(count) for base, count in used if count}
        self._free: dict[int, list[int]] = {}
        self._end = 0
        self._coalesce()

    @property
    def never_used(self) -> int:
        """Number of slots behind all runs."""
        return self._size - self._end

    def _coalesce(self) -> None:
        """Recompute the free runs from the gaps between used ones, merging neighbours. O(number of runs)."""
        self._free = {}
        position = 0
        for base, length in sorted(self._used.items()):
            while position < base:
                aligned = position & -position or base
                step = min(aligned, 1 << ((base - position).bit_length() - 1))
                self._free.setdefault(step, []).append(position)
                position += step
            position = max(position, base + length)
        self._end = position

    def _fit(self, length: int) -> int | None:
        if self._free.get(length):
            return self._free[length].pop()
        base = -(-self._end // length) * length
        if base + length <= self._size:
            self._free_up_to(base)
            self._end = base + length
            return base
        for larger in sorted(size for size, runs in self._free.items() if size > length and runs):
            base = self._free[larger].pop()
            while larger > length:
                larger //= 2
                self._free.setdefault(larger, []).append(base + larger)
            return base
        return None

    def _free_up_to(self, base: int) -> None:
        """Make free runs of the slots between all runs and `base`."""
        while self._end < base:
            step = self._end & -self._end
            self._free.setdefault(step, []).append(self._end)
            self._end += step

    def take(self, count: int) -> int:
        """Allocate a run for `count` members and return its first index; 0 for none. Raises MapFull."""
        length = capacity(count)
        if not length:
            return 0
        base = self._fit(length)
        if base is None:
            self._coalesce()
            base = self._fit(length)
        if base is None:
            raise MapFull(self._map_name, self._size)
        self._used[base] = length
        return base

    def take_row(self, count: int, many: int) -> Sequence[int]:
        """Allocate so many runs for `count` members each, one behind the other, and return their first indices; zeros
        for none. Raises MapFull, and allocates nothing, if they do not fit behind all runs."""
        length = capacity(count)
        if not length:
            return [0] * many
        base = -(-self._end // length) * length
        if base + length * many > self._size:
            raise MapFull(self._map_name, self._size)
        self._free_up_to(base)
        row = range(base, base + length * many, length)
        self._used.update(zip(row, repeat(length)))
        self._end = row.stop
        return row

    def give_back(self, base: int, count: int) -> None:
        """Free the run that `take(count)` returned."""
        if count:
            self._free.setdefault(self._used.pop(base), []).append(base)
