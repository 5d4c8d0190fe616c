"""What the plane knows of the kernel: the use of everything shared, and where backends stand."""

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
    """placements: of small entries, those that differ from what `place` makes of the entry. seats: of large ones."""

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
        """Elements and references of an entry of one of the plane's families."""
        return self.compilers[entry.key.family].compile(entry, placement)

    def transaction(self) -> Transaction:
        """An empty change against what the books say."""
        return Transaction(self.syntax, self.layouts, self.ids, self.references)

    def refusals(self, entries: Iterable[PlanEntry]) -> list[EntryRefused]:
        """Every entry that cannot be held, whatever the others are. O(size); for when one was refused."""
        found = []
        for entry in entries:
            try:
                if entry.key.family in self.syntax:
                    self.compile(entry, place(entry))
            except EntryRefused as error:
                found.append(error)
        return found

    def forget(self, unused: Iterable[ShapeRef]) -> None:
        """Shapes that the kernel holds no more: their numbers may be given to others."""
        for family, shape in unused:
            self.ids[family].forget(shape)
            self.compilers[family].forget()

    def seat(self, entries: Iterable[PlanEntry]) -> None:
        """After a load: prepare for changes of what is large, which shall be quick from the first one on."""
        for entry in entries:
            if entry.key.family in self.syntax and is_large(entry):
                self.seats[entry.key] = Seats(self._placement(entry))
                self.placements.pop(entry.key, None)

    def replace(self, change: EntryChange, transaction: Transaction) -> Callable[[], None]:
        """Put the change of an entry into a transaction; what is returned is to be called once the kernel took it.

        O(what changes) for a large entry of which nothing but backends changes. Raises EntryRefused.
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
        """Remember where the backends of an entry stand; None: it is gone."""
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
