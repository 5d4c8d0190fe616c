"""Differences of two sorted sets of backends that are large and nearly equal.

A plan's sets are sorted tuples, and a change leaves most of a large one as it was: the same objects in the same order.
Python compares and copies such runs at a nanosecond per endpoint, if no Python code looks at each endpoint. With many
differences these functions are correct, but slow.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from dataplane.policy.endpoints import Backend

LARGE = 64
"""Sets of at least this many backends are compared by their difference."""

Backends = tuple[Backend, ...]


class Difference(NamedTuple):
    """removed, added: sorted. A backend whose `local` alone changed is in both, with its old and new value."""

    removed: list[Backend]
    added: list[Backend]

    def __bool__(self) -> bool:
        return bool(self.removed or self.added)


def _run(old: Backends, at: int, new: Backends, other: int) -> int:
    """Return the length of the equal run that starts at these indexes."""
    most = min(len(old) - at, len(new) - other)
    same, step = 0, 16
    while same < most:
        step = min(step, most - same)
        if old[at + same : at + same + step] != new[other + same : other + same + step]:
            break
        same += step
        step *= 2
    else:
        return most
    while step > 1:  # the first that differs is among the next `step`
        half = step // 2
        if old[at + same : at + same + half] == new[other + same : other + same + half]:
            same += half
            step -= half
        else:
            step = half
    return same


def difference(old: Backends, new: Backends) -> Difference:
    """Return what turns one set into another. Both sorted (unsorted sets give a correct result in no order). O(what
    differs), apart from comparing the runs in between."""
    if old is new:
        return Difference([], [])
    if max(len(old), len(new)) < LARGE:
        return _difference(old, new)
    for was, now, known in _asked.last:
        if was is old and now is new:
            return known
    found = _difference(old, new)
    _asked.last = ((old, new, found), *_asked.last[:3])
    return found


def replaced(old: Backends, new: Backends) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Address and port of those who went and of those who came, in the order of `difference`. Who only began or ceased
    to be on this node stays, and is in neither."""
    gone, come = ([(b.address, b.port) for b in side] for side in difference(old, new))
    stays = set(gone).intersection(come)
    return [a for a in gone if a not in stays], [a for a in come if a not in stays]


class _Asked:
    """Cache of the last results: every component that handles a change asks for its four pairs of sets."""

    last: tuple[tuple[Backends, Backends, Difference], ...] = ()


_asked = _Asked()


def _difference(old: Backends, new: Backends) -> Difference:
    removed: list[Backend] = []
    added: list[Backend] = []
    at = other = 0
    while True:
        same = _run(old, at, new, other)
        at, other = at + same, other + same
        if at == len(old) or other == len(new):
            break
        if old[at] < new[other]:
            removed.append(old[at])
            at += 1
        else:
            added.append(new[other])
            other += 1
    removed += old[at:]
    added += new[other:]
    moved = set(removed).intersection(added)
    if moved:  # of a set that was not sorted
        return Difference([b for b in removed if b not in moved], [b for b in added if b not in moved])
    return Difference(removed, added)


def spliced(members: Backends, removed: Iterable[Backend], added: Iterable[Backend]) -> Backends:
    """Return a sorted set with backends removed and added. Raises ValueError if one to be removed is not in it."""
    order = list(members)
    for backend in removed:
        at = bisect_left(order, backend)
        if order[at : at + 1] != [backend]:
            raise ValueError(f"{backend} is not in the set that it should leave")
        del order[at]
    for backend in added:
        order.insert(bisect_left(order, backend), backend)
    return tuple(order)


def realigned(values: Sequence[str], old: Backends, new: Backends, of_new: Callable[[Backend], str]) -> list[str]:
    """Return values that are aligned with one sorted set as aligned with another: of a backend that is in both, its
    value of before; of another one, what `of_new` says."""
    removed, added = difference(old, new)
    order = list(values)
    for backend in reversed(removed):
        del order[bisect_left(old, backend)]
    for backend in added:
        order.insert(bisect_left(new, backend), of_new(backend))
    return order


def is_in(members: Backends, backend: Backend) -> bool:
    """True if a sorted set has this backend with the same `local`."""
    at = bisect_left(members, backend)
    return at < len(members) and members[at] == backend


def holds(members: Backends, address: str, port: int) -> bool:
    """True if a sorted set has a backend with this address and port, local or not."""
    at = bisect_left(members, Backend(address, port))
    return at < len(members) and (members[at].address, members[at].port) == (address, port)


def at_address(members: Backends, address: str) -> Backends:
    """Return the backends of a sorted set with this address, on any port."""
    first = last = bisect_left(members, Backend(address, 0))
    while last < len(members) and members[last].address == address:
        last += 1
    return members[first:last]
