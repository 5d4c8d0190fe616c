"""Placement of backends in the maps of their frontends: the index in a set, and the slot number for affinity.

Both are stable: changing one backend moves as few other indexes as possible, and no other slots.
"""

import zlib
from collections import Counter
from collections.abc import Container, Iterable
from typing import NamedTuple

from dataplane.plan.types import EntryKey, PlanEntry
from dataplane.planes.base import EntryRefused
from dataplane.planes.nftables.rules.syntax import LOCAL_OFFSET
from dataplane.policy.routes import Scope

Address = tuple[str, int]
"""(address, port) of a backend: its identity."""

SLOTS = 0xFFF0
"""Slot numbers of an entry are below this; the last sixteen would collide with reserved traffic-control handles."""


class Placement(NamedTuple):
    """cluster, local: backends of each set by index, with weights as often as they are drawn. slots: slot number of
    every backend; empty without affinity."""

    cluster: tuple[Address, ...] = ()
    local: tuple[Address, ...] = ()
    slots: dict[Address, int] = {}


def _order(previous: tuple[Address, ...], wanted: tuple[Address, ...]) -> tuple[Address, ...]:
    """Return `wanted` in an order in which remaining backends keep their index: holes are filled with new backends,
    then from the end. A backend may have several indexes."""
    if not previous or previous == wanted:
        return wanted
    missing = Counter(wanted)
    order = [_taken(missing, backend) for backend in previous]
    newcomers = [backend for backend in wanted if _taken(missing, backend)]
    holes = [index for index, backend in enumerate(order) if backend is None]
    for index, backend in zip(holes, newcomers, strict=False):
        order[index] = backend
    order += newcomers[len(holes) :]
    for index in holes[len(newcomers) :]:
        while order and order[-1] is None:
            order.pop()
        if index >= len(order):
            break
        order[index] = order.pop()
    return tuple(backend for backend in order if backend is not None)


def _taken(missing: Counter[Address], backend: Address) -> Address | None:
    """Return a backend that is still missing, once; None if it is not."""
    if missing[backend] <= 0:
        return None
    missing[backend] -= 1
    return backend


def _slots(previous: dict[Address, int], backends: Iterable[Address], where: EntryKey) -> dict[Address, int]:
    """Return slot numbers: kept for remaining backends, derived from the address for new ones, so that a number is
    hardly ever reused while affinity maps still have it."""
    wanted = dict.fromkeys(backends)
    if len(wanted) > SLOTS:
        raise EntryRefused(where, f"{len(wanted)} backends with session affinity; at most {SLOTS} fit")
    slots = {backend: slot for backend, slot in previous.items() if backend in wanted}
    taken = set(slots.values())
    for backend in wanted:
        if backend not in slots:
            slots[backend] = slot = new_slot(backend, taken, len(slots), where)
            taken.add(slot)
    return slots


def new_slot(backend: Address, taken: Container[int], count: int, where: EntryKey) -> int:
    """Return a slot number for a new backend. taken, count: numbers in use. Raises EntryRefused if all are."""
    if count >= SLOTS:
        raise EntryRefused(where, f"more than {count} backends with session affinity; at most {SLOTS} fit")
    slot = zlib.crc32(f"{backend[0]} {backend[1]}".encode()) % SLOTS
    while slot in taken:
        slot = (slot + 1) % SLOTS
    return slot


def check_size(entry: PlanEntry) -> None:
    """Raise PlaneError for an entry whose sets are too large."""
    if len(entry.cluster) > LOCAL_OFFSET or len(entry.local) > LOCAL_OFFSET:
        raise EntryRefused(entry.key, f"more than {LOCAL_OFFSET} backends in a set; split the Service")


def fresh(entry: PlanEntry) -> Placement | None:
    """Return the placement of an entry that the kernel does not hold; None without affinity, for the entry's own order.
    Raises PlaneError for too large a set."""
    if entry.affinity_seconds:
        return place(entry)
    check_size(entry)
    return None


def place(entry: PlanEntry, previous: Placement | None = None) -> Placement:
    """Return the placement of an entry, based on the previous one. Raises PlaneError for too large a set."""
    check_size(entry)
    cluster = tuple((b.address, b.port) for b in entry.drawn(Scope.CLUSTER))
    local = tuple((b.address, b.port) for b in entry.drawn(Scope.LOCAL))
    if previous is not None:
        cluster, local = _order(previous.cluster, cluster), _order(previous.local, local)
    if not entry.affinity_seconds:
        return Placement(cluster, local)
    known = previous.slots if previous is not None else {}
    return Placement(cluster, local, _slots(known, cluster + local, entry.key))
