"""Queue of object changes from the sources to the reconcile loop; only the latest state of each object is kept."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from typing import NamedTuple, Protocol

from ctl.daemon.sync.names import Names, Waiting
from dataplane.model.decode import DecodedObject
from dataplane.model.net import Family
from dataplane.model.objects import EndpointSlice, ModelObject, ObjectRef, Problem


class Batch(NamedTuple):
    """The changes since the last batch.

    upserts, deletes: objects that were added, changed or deleted; no object is in both.
    arrived: when the oldest of them arrived (time.monotonic seconds). triggers: for annotated slices, when
    their change happened in the cluster (seconds since 1970), with the slice's family.
    events: how many events of each kind and family were folded into it; one of a Service counts for both families.
    """

    upserts: list[ModelObject]
    deletes: list[ObjectRef]
    arrived: float
    triggers: list[tuple[Family, float]]
    events: Counter[tuple[str, Family]]


class Listener(Protocol):
    """Hears of objects of some kinds before anything else is done with them."""

    kinds: frozenset[str]

    def put(self, found: DecodedObject) -> None:
        """An object was added or changed; one without a value cannot be read."""

    def remove(self, ref: ObjectRef) -> None:
        """An object was deleted; it need not be known."""

    def complete(self, kind: str, present: Container[tuple[str, str]]) -> None:
        """A list is complete: there are no other objects of its kind."""

    def not_served(self, kind: str, status: int, why: str) -> None:
        """Objects of a kind cannot be listed. status: the HTTP status that the server answers with."""

    def unknown(self, kind: str) -> None:
        """An object of a kind cannot be read, not even its name."""


class Inbox:
    """Collects objects from all sources. For use in one event loop.

    kinds: those that are followed. beside: of these, kinds that are not handed out, and that nothing waits for.
    listener: hears of objects at once, whether or not they are handed out.

    problems, notes: errors in the current objects, and warnings about them, by object.
    synced: the kinds that have been listed completely.
    Nothing is handed out before every kind in `kinds` is complete.
    """

    def __init__(self, kinds: Iterable[str], beside: Iterable[str] = (), listener: Listener | None = None) -> None:
        self._beside = frozenset(beside)
        self.kinds = frozenset(kinds) | self._beside
        self._needed = self.kinds - self._beside
        self._listener = listener
        self.problems: dict[ObjectRef, tuple[Problem, ...]] = {}
        self.notes: dict[ObjectRef, tuple[Problem, ...]] = {}
        self.synced: set[str] = set()
        self.invalid_events = 0
        self._known = {kind: Names() for kind in self.kinds}
        self._upserts = Waiting()
        self._deletes: dict[ObjectRef, None] = {}
        self._triggers: list[tuple[Family, float]] = []
        self._events: Counter[tuple[str, Family]] = Counter()
        self._ipv6: set[tuple[str, str]] = set()  # slices, by namespace and name
        self._arrived = 0.0
        self._news = asyncio.Event()
        self._listed = asyncio.Event()

    def put(self, found: DecodedObject, trigger: float = 0.0) -> None:
        """Add or change an object. An invalid one counts as absent, so that a restart would change nothing."""
        ref = found.ref
        if self._listener is not None and ref is not None and ref.kind in self._listener.kinds:
            self._listener.put(found)
        if found.value is not None:
            ref = found.value.ref
            self._known[ref.kind].add(ref.namespace, ref.name)
            self._deletes.pop(ref, None)
            if ref.kind not in self._beside:
                self._upserts.put(ref, found.value)
            if isinstance(found.value, EndpointSlice):
                (self._ipv6.add if found.value.family is Family.IPV6 else self._ipv6.discard)((ref.namespace, ref.name))
                if trigger:
                    self._triggers.append((found.value.family, trigger))
            if ref.kind not in self._beside:
                self._touch(ref)
        elif ref is not None:
            self._drop(ref)
        if ref is not None:
            self.notes.pop(ref, None)
            if found.notes:
                self.notes[ref] = found.notes
        if found.problems and ref is not None:
            self.invalid_events += 1
            self.problems[ref] = found.problems
            self._touch(ref)
        elif ref is not None:
            self.problems.pop(ref, None)

    def remove(self, ref: ObjectRef) -> None:
        """Delete an object; it need not be known."""
        if self._listener is not None and ref.kind in self._listener.kinds:
            self._listener.remove(ref)
        self._drop(ref)

    def _drop(self, ref: ObjectRef) -> None:
        self.problems.pop(ref, None)
        self.notes.pop(ref, None)
        if not self._known[ref.kind].discard(ref.namespace, ref.name):
            return
        if ref.kind not in self._beside:
            self._upserts.discard(ref)
            self._deletes[ref] = None
            self._touch(ref)

    def complete(
        self, kind: str, present: Container[tuple[str, str]], covers: Callable[[str], bool] = lambda _: True
    ) -> int:
        """Complete a list of a kind: delete the known objects that are not in it. Returns their number. covers: true
        for the names of objects that the list would have."""
        if self._listener is not None and kind in self._listener.kinds:
            self._listener.complete(kind, present)
        gone = self._drop_others(kind, present, covers)
        self._note_listed(kind)
        return gone

    def complete_part(self, kind: str, present: Container[tuple[str, str]], covers: Callable[[str], bool]) -> int:
        """The same for a list that has only some objects of a kind, those that `covers` tells, and that nothing waits
        for. Whether the kind is complete, the list of the others says."""
        return self._drop_others(kind, present, covers)

    def not_served(self, kind: str, status: int, why: str) -> None:
        """Go on without a kind, as if there were no object of it. status, why: the server's answer."""
        if self._listener is not None and kind in self._listener.kinds:
            self._listener.not_served(kind, status, why)
        self._drop_others(kind, set(), lambda _: True)
        self._note_listed(kind)

    def unknown(self, kind: str) -> None:
        """Count an object of a kind that cannot be read, not even its name."""
        self.invalid_events += 1
        if self._listener is not None and kind in self._listener.kinds:
            self._listener.unknown(kind)

    def _drop_others(self, kind: str, present: Container[tuple[str, str]], covers: Callable[[str], bool]) -> int:
        gone = [name for name in self._known[kind] if name not in present and covers(name[1])]
        for namespace, name in gone:
            self._drop(ObjectRef(kind, namespace, name))
        for ref in [ref for ref in self.problems if ref.kind == kind and covers(ref.name)]:
            if (ref.namespace, ref.name) not in present:
                del self.problems[ref]
        return len(gone)

    def _note_listed(self, kind: str) -> None:
        if kind not in self.synced:
            self.synced.add(kind)
            self._touch(None)
            if self.complete_once:
                self._listed.set()

    @property
    def complete_once(self) -> bool:
        """True if every kind that is handed out has been listed completely."""
        return self.synced >= self._needed

    @property
    def unlisted(self) -> list[str]:
        """The kinds that are handed out and have not been listed completely yet, sorted."""
        return sorted(self._needed - self.synced)

    async def listed(self) -> None:
        """Wait until every kind that is handed out has been listed completely."""
        await self._listed.wait()

    @property
    def pending(self) -> bool:
        """True if there is anything to take."""
        return bool(self._upserts or self._deletes)

    def waiting(self) -> Iterator[ModelObject]:
        """Yield the added and changed objects that wait."""
        yield from self._upserts

    def pending_of(self, kind: str, family: Family) -> int:
        """Return the number of waiting objects of a kind that concern a family. O(waiting objects)."""
        waiting = (ref for ref in (*(item.ref for item in self._upserts), *self._deletes) if ref.kind == kind)
        return sum(family in self._families(ref) for ref in waiting)

    def _families(self, ref: ObjectRef) -> tuple[Family, ...]:
        """The families that an object concerns: an EndpointSlice one, others both."""
        if ref.kind != "EndpointSlice":
            return tuple(Family)
        return (Family.IPV6 if (ref.namespace, ref.name) in self._ipv6 else Family.IPV4,)

    async def news(self) -> None:
        """Wait until there is something to take."""
        await self._news.wait()

    def wake(self) -> None:
        """Make `news` return at once."""
        self._news.set()

    def take(self) -> Batch:
        """Return and clear everything that waits."""
        self._ipv6 -= {(ref.namespace, ref.name) for ref in self._deletes if ref.kind == "EndpointSlice"}
        batch = Batch(
            list(self._upserts), list(self._deletes), self._arrived or time.monotonic(), self._triggers,
            self._events,
        )  # fmt: skip
        self._upserts, self._deletes, self._triggers, self._events = Waiting(), {}, [], Counter()
        self._arrived = 0.0
        self._news.clear()
        return batch

    def put_back(self, batch: Batch) -> None:
        """Put back a batch that could not be used; newer changes take precedence."""
        for item in batch.upserts:
            if item.ref not in self._deletes and item.ref not in self._upserts:
                self._upserts.put(item.ref, item)
        for ref in batch.deletes:
            if ref not in self._upserts:
                self._deletes[ref] = None
        self._triggers = [*batch.triggers, *self._triggers]
        self._events += batch.events
        self._arrived = batch.arrived
        self._news.set()

    def _touch(self, ref: ObjectRef | None) -> None:
        if ref is not None:
            self._events.update((ref.kind, family) for family in self._families(ref))
        if not self._arrived:
            self._arrived = time.monotonic()
        if self.complete_once:
            self._news.set()
