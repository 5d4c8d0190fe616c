"""Placement of a large entry, stored so that a change takes O(what it moves) and not O(size).

The rules are those of `placement`: a remaining backend keeps its index, a new one takes the index of a removed one, and
indexes that are still free are filled from the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dataplane.plan.types import FrontendKind, PlanEntry
from dataplane.planes.moves import moves
from dataplane.planes.nftables.elements.placement import Address, Placement, check_size, new_slot
from dataplane.policy.difference import LARGE, at_address, difference, holds, replaced
from dataplane.policy.routes import Action, Scope


class Touched(NamedTuple):
    """The part of an entry's backends that a change touches, as it is before or after it.

    cluster, local: (index, backend). slots: slot numbers of these, with affinity. hairpin: addresses for
    which hairpin connections are detected only on this side of the change.
    """

    cluster: Sequence[tuple[int, Address]]
    local: Sequence[tuple[int, Address]]
    slots: Mapping[Address, int]
    hairpin: Sequence[str]


class Moves(NamedTuple):
    """A change of a large entry. cluster, local: new backend by index, None past the new end of the set. slots:
    assigned numbers, None for released ones."""

    cluster: Mapping[int, Address | None]
    local: Mapping[int, Address | None]
    slots: Mapping[Address, int | None]


class _Order:
    """One set by index, and its indexes by backend."""

    def __init__(self, order: Iterable[Address]) -> None:
        self.order = list(order)
        self.index = {address: index for index, address in enumerate(self.order)}

    def moves(self, removed: Iterable[Address], added: Sequence[Address]) -> dict[int, Address | None]:
        """Return the new backend of each index that changes. O(what changes)."""
        holes = [self.index[address] for address in removed]
        return moves(len(self.order), holes, added, self.order.__getitem__)

    def apply(self, moved: Mapping[int, Address | None]) -> None:
        """Apply moves."""
        order, index = self.order, self.index
        for at in moved:
            if at < len(order):
                index.pop(order[at], None)
        for at, address in sorted(moved.items()):
            if address is not None:
                index[address] = at
                order[at : at + 1] = [address]
        gone = [at for at, address in moved.items() if address is None]
        if gone:
            del order[min(gone) :]


class Seats:
    """The placement of one large entry, for changes of it. Made of a `Placement` in O(size)."""

    def __init__(self, placement: Placement) -> None:
        self._cluster, self._local = _Order(placement.cluster), _Order(placement.local)
        self._slots = dict(placement.slots)
        self._taken = set(self._slots.values())

    def moves(self, old: PlanEntry, new: PlanEntry) -> Moves:
        """Compute the moves of a change, without applying it. Raises EntryRefused if the entry cannot be held."""
        check_size(new)
        found = []
        for order, was, now in ((self._cluster, old.cluster, new.cluster), (self._local, old.local, new.local)):
            found.append(order.moves(*replaced(was, now)))
        cluster, local = found
        return Moves(cluster, local, self._new_slots(cluster, local, new) if new.affinity_seconds else {})

    def _new_slots(
        self, cluster: Mapping[int, Address | None], local: Mapping[int, Address | None], new: PlanEntry
    ) -> dict[Address, int | None]:
        """Return the slots of new backends, and None for those removed from both sets."""
        gone: set[Address] = set()
        come: dict[Address, None] = {}
        for order, moved in ((self._cluster, cluster), (self._local, local)):
            gone.update(order.order[at] for at in moved if at < len(order.order))
            come |= dict.fromkeys(address for address in moved.values() if address is not None)
        found: dict[Address, int | None] = {}
        for address in gone.difference(come):
            if not any(holds(members, *address) for members in (new.cluster, new.local)):
                found[address] = None
        count, given = len(self._slots) - len(found), set[int]()
        freed = {self._slots[address] for address in found}
        for address in come:
            if address not in self._slots:
                found[address] = slot = new_slot(address, _Taken(self._taken, given, freed), count, new.key)
                given.add(slot)
                count += 1
        return found

    def before(self, moves: Moves, old: PlanEntry, new: PlanEntry) -> Touched:
        """Return the touched backends before the change."""
        cluster, local = (
            [(at, order.order[at]) for at in sorted(moved) if at < len(order.order)]
            for order, moved in ((self._cluster, moves.cluster), (self._local, moves.local))
        )
        slots = {a: self._slots[a] for _, a in (*cluster, *local)} if old.affinity_seconds else {}
        return Touched(cluster, local, slots, _hairpin(old, new))

    def after(self, moves: Moves, old: PlanEntry, new: PlanEntry) -> Touched:
        """Return the touched backends after the change."""
        cluster, local = (
            [(at, address) for at, address in sorted(moved.items()) if address is not None]
            for moved in (moves.cluster, moves.local)
        )
        slots: dict[Address, int] = {}
        if new.affinity_seconds:
            for _, address in (*cluster, *local):
                slot = moves.slots.get(address)
                slots[address] = self._slots[address] if slot is None else slot
        return Touched(cluster, local, slots, _hairpin(new, old))

    def commit(self, moves: Moves) -> None:
        """Apply moves that the kernel has committed."""
        self._cluster.apply(moves.cluster)
        self._local.apply(moves.local)
        for address, slot in moves.slots.items():
            if slot is None:
                self._taken.discard(self._slots.pop(address))
        for address, slot in moves.slots.items():
            if slot is not None:
                self._slots[address] = slot
                self._taken.add(slot)

    def placement(self) -> Placement:
        """As a whole. O(size)."""
        return Placement(tuple(self._cluster.order), tuple(self._local.order), dict(self._slots))


class _Taken:
    """Slots that have an owner after a change."""

    def __init__(self, taken: set[int], given: set[int], freed: set[int]) -> None:
        self._taken, self._given, self._freed = taken, given, freed

    def __contains__(self, slot: object) -> bool:
        return slot in self._given or (slot in self._taken and slot not in self._freed)


def is_large(entry: PlanEntry) -> bool:
    """True if changes of an entry are worth to be looked at by their difference: each backend has one index, and they
    are many."""
    return not entry.weighted and (len(entry.cluster) >= LARGE or len(entry.local) >= LARGE)


def changes_only_backends(old: PlanEntry, new: PlanEntry) -> bool:
    """True if nothing differs but who is in the sets, which every frontend goes on to use as it did."""
    return old.affinity_seconds == new.affinity_seconds and old.frontends == new.frontends


def needs_hairpin_everywhere(entry: PlanEntry) -> bool:
    """True if pods of other nodes may reach themselves through this node: an external frontend hands them the
    Cluster set unmasqueraded. Otherwise only this node's own pods can, and those that may be."""
    return any(
        frontend.kind is not FrontendKind.CLUSTER_IP
        and frontend.routes.pod.action is Action.FORWARD
        and frontend.routes.pod.scope is Scope.CLUSTER
        and not frontend.routes.pod.masquerade
        for frontend in entry.frontends
    )


def _hairpin(entry: PlanEntry, other: PlanEntry) -> list[str]:
    """Addresses that an entry is recognised under and the other side of its change is not."""
    if not entry.frontends:
        return []
    everybody = needs_hairpin_everywhere(entry)

    def has(e: PlanEntry, address: str) -> bool:
        found = at_address(e.cluster, address)
        here = at_address(e.local, address) or any(everybody or backend.local for backend in found)
        return bool(here or at_address(e.unplaced, address))

    changed = {
        backend.address
        for was, now in (
            (entry.cluster, other.cluster),
            (entry.local, other.local),
            (entry.unplaced, other.unplaced),
        )
        for backend in difference(was, now).removed
    }
    return [address for address in sorted(changed) if has(entry, address) and not has(other, address)]
