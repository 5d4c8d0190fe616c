"""Where sources leave what they heard, until the reconcile loop takes it: the latest word on each object wins."""

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

from dataplane.model.decode import DecodedObject
from dataplane.model.objects import ModelObject, ObjectRef, Problem


class Batch(NamedTuple):
    """What became known since the last batch.

    upserts, deletes: objects that appeared, changed or went; no object is in both.
    arrived: when the oldest of it arrived (time.monotonic seconds). triggers: for slices, when the change
    that they tell of happened in the cluster (seconds since 1970), as far as they say.
    events: how many events of each kind were folded into it.
    """

    upserts: list[ModelObject]
    deletes: list[ObjectRef]
    arrived: float
    triggers: list[float]
    events: dict[str, int]


class Inbox:
    """Collects objects from all sources. For use in one event loop.

    problems, notes: what is wrong with objects as they are now, and what may surprise in them, by object.
    synced: the kinds of which everything is known.
    Nothing is handed out before every kind in `kinds` is complete.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self.kinds = frozenset(kinds)
        self.problems: dict[ObjectRef, tuple[Problem, ...]] = {}
        self.notes: dict[ObjectRef, tuple[Problem, ...]] = {}
        self.synced: set[str] = set()
        self.invalid_events = 0
        self._known: dict[str, set[tuple[str, str]]] = {kind: set() for kind in self.kinds}
        self._upserts: dict[ObjectRef, ModelObject] = {}
        self._deletes: dict[ObjectRef, None] = {}
        self._triggers: list[float] = []
        self._events: dict[str, int] = {}
        self._arrived = 0.0
        self._news = asyncio.Event()

    def put(self, found: DecodedObject, trigger: float = 0.0) -> None:
        """An object as it is now. One that is not valid counts as absent, so that a restart would change nothing."""
        ref = found.ref
        if found.value is not None:
            ref = found.value.ref
            self._known[ref.kind].add((ref.namespace, ref.name))
            self._deletes.pop(ref, None)
            self._upserts[ref] = found.value
            if trigger:
                self._triggers.append(trigger)
            self._touch(ref.kind)
        elif ref is not None:
            self.remove(ref)
        if ref is not None:
            self.notes.pop(ref, None)
            if found.notes:
                self.notes[ref] = found.notes
        if found.problems and ref is not None:
            self.invalid_events += 1
            self.problems[ref] = found.problems
            self._touch(ref.kind)
        elif ref is not None:
            self.problems.pop(ref, None)

    def remove(self, ref: ObjectRef) -> None:
        """An object that is gone; fine when it was never there."""
        self.problems.pop(ref, None)
        self.notes.pop(ref, None)
        known = self._known[ref.kind]
        if (ref.namespace, ref.name) not in known:
            return
        known.remove((ref.namespace, ref.name))
        self._upserts.pop(ref, None)
        self._deletes[ref] = None
        self._touch(ref.kind)

    def complete(self, kind: str, present: set[tuple[str, str]]) -> int:
        """A list of a kind is complete: everything known but not in it is gone. Returns how many went."""
        gone = self._known[kind] - present
        for namespace, name in gone:
            self.remove(ObjectRef(kind, namespace, name))
        for ref in [ref for ref in self.problems if ref.kind == kind and (ref.namespace, ref.name) not in present]:
            del self.problems[ref]
        if kind not in self.synced:
            self.synced.add(kind)
            self._touch("")
        return len(gone)

    @property
    def complete_once(self) -> bool:
        """Whether every kind has been listed completely."""
        return self.synced >= self.kinds

    @property
    def pending(self) -> bool:
        """Whether anything waits to be taken."""
        return bool(self._upserts or self._deletes)

    def pending_of(self, kind: str) -> int:
        """How many objects of a kind wait. O(what waits)."""
        return sum(ref.kind == kind for ref in (*self._upserts, *self._deletes))

    async def news(self) -> None:
        """Wait until something may be taken."""
        await self._news.wait()

    def wake(self) -> None:
        """Make `news` return, whatever waits."""
        self._news.set()

    def take(self) -> Batch:
        """Hand over everything that waits."""
        batch = Batch(
            list(self._upserts.values()), list(self._deletes), self._arrived or time.monotonic(), self._triggers,
            self._events,
        )  # fmt: skip
        self._upserts, self._deletes, self._triggers, self._events = {}, {}, [], {}
        self._arrived = 0.0
        self._news.clear()
        return batch

    def _touch(self, kind: str) -> None:
        if kind:
            self._events[kind] = self._events.get(kind, 0) + 1
        if not self._arrived:
            self._arrived = time.monotonic()
        if self.complete_once:
            self._news.set()
