"""The plane's record of the kernel's state: use counts of shared objects, and the placement of backends."""

from collections.abc import Callable, Iterable, Mapping

from dataplane.model.net import Family
from dataplane.plan.change import EntryChange
from dataplane.plan.types import EntryKey, PlanEntry
from dataplane.planes.base import EntryRefused
from dataplane.planes.nftables.elements.compile import NOTHING, Compiled, Compiler, ShapeRef
from dataplane.planes.nftables.elements.placement import Placement, place
from dataplane.planes.nftables.elements.seats import Seats, Touched, changes_only_backends, is_large
from dataplane.planes.nftables.elements.transaction import References, Transaction
from dataplane.planes.nftables.netlink.fields import Layouts
from dataplane.planes.nftables.rules.shapes import ShapeIds
from dataplane.planes.nftables.rules.syntax import Syntax


class Books:
    """placements: of small entries, if different from the result of `place`. seats: placements of large entries."""

    def __init__(
        self, syntax: Mapping[Family, Syntax], layouts: Layouts, ids: Mapping[Family, ShapeIds] | None = None
    ) -> None:
        self.syntax = syntax
        self.layouts = layouts
        self.ids = ids or {family: ShapeIds() for family in syntax}
        self.compilers = {family: Compiler(w, family, self.ids[family]) for family, w in syntax.items()}
        self.references = References()
        self.placements: dict[EntryKey, Placement] = {}
        self.seats: dict[EntryKey, Seats] = {}

    def compile(self, entry: PlanEntry, placement: Placement | Touched | None) -> Compiled:
        """Return the elements and references of an entry of one of the plane's families."""
        return self.compilers[entry.key.family].compile(entry, placement)

    def transaction(self) -> Transaction:
        """Return an empty transaction against the recorded state."""
        return Transaction(self.syntax, self.layouts, self.ids, self.references)

    def refusals(self, entries: Iterable[PlanEntry]) -> list[EntryRefused]:
        """Return the refusal of every entry that cannot be held. O(size); called after a refusal."""
        found = []
        for entry in entries:
            try:
                if entry.key.family in self.syntax:
                    self.compile(entry, place(entry))
            except EntryRefused as error:
                found.append(error)
        return found

    def forget(self, unused: Iterable[ShapeRef]) -> None:
        """Free the numbers of shapes that were deleted from the kernel."""
        for family, shape in unused:
            self.ids[family].forget(shape)
            self.compilers[family].forget()

    def seat(self, entries: Iterable[PlanEntry]) -> None:
        """Prepare for changes of large entries after a load, so that already the first one is fast."""
        for entry in [entry for entry in entries if is_large(entry)]:
            if entry.key.family in self.syntax:
                self.seats[entry.key] = Seats(self._placement(entry))
                self.placements.pop(entry.key, None)

    def replace(self, change: EntryChange, transaction: Transaction) -> Callable[[], None]:
        """Add the change of an entry to a transaction; return a function to call after its commit.

        O(what changes) for a large entry of which only backends change. Raises EntryRefused.
        """
        old, new = change.old, change.new
        if old is not None and new is not None and is_large(old) and is_large(new) and changes_only_backends(old, new):
            return self._move(old, new, transaction)
        before = self._placement(old) if old is not None else None
        after = place(new, before) if new is not None else None
        transaction.replace(self._compile(old, before), self._compile(new, after))
        return lambda: self._note(change.key, new, after)

    def _move(self, old: PlanEntry, new: PlanEntry, transaction: Transaction) -> Callable[[], None]:
        seats = self.seats.get(old.key)
        if seats is None:
            seats = self.seats[old.key] = Seats(self._placement(old))
        moves = seats.moves(old, new)
        transaction.replace(
            self.compile(old, seats.before(moves, old, new)), self.compile(new, seats.after(moves, old, new))
        )
        return lambda: seats.commit(moves)

    def _note(self, key: EntryKey, entry: PlanEntry | None, placement: Placement | None) -> None:
        """Record the placement of an entry's backends; None: the entry was deleted."""
        self.placements.pop(key, None)
        self.seats.pop(key, None)
        if entry is None or placement is None:
            return
        if is_large(entry):
            self.seats[key] = Seats(placement)
        elif placement != place(entry):
            self.placements[key] = placement

    def _placement(self, entry: PlanEntry) -> Placement:
        seats = self.seats.get(entry.key)
        if seats is not None:
            return seats.placement()
        return self.placements.get(entry.key) or place(entry)

    def _compile(self, entry: PlanEntry | None, placement: Placement | None) -> Compiled:
        return self.compile(entry, placement) if entry is not None else NOTHING
