"""Ledger of failed changes: entries that the kernel lacks or holds in an older version."""

from collections.abc import Iterable

from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import EntryKey, FrontendKey, HealthCheck, Plan, PlanEntry


class Ledger:
    """Turns the plan's changes into the kernel's: a change that failed before is part of the next one.

    For an entry that is behind, `held` remembers what the kernel holds; the plan says what it should hold.
    """

    def __init__(self) -> None:
        self._held: dict[EntryKey, PlanEntry | None] = {}
        self._settings: frozenset[str] = frozenset()
        self._health: dict[tuple[str, str], HealthCheck | None] = {}

    def __len__(self) -> int:
        """Return the number of entries and settings that are behind."""
        return len(self._held) + len(self._settings)

    def services(self) -> list[str]:
        """Return the Service ports that are behind, as text."""
        return sorted({key.service for key in self._held})

    def due(self, change: PlanChange, plan: Plan) -> PlanChange:
        """Return the change to apply: this one (already in the plan) merged with those that failed before."""
        if not (self or self._health):
            return change
        held = {entry.key: entry.old for entry in change.entries} | self._held
        now = plan.entries
        return PlanChange(
            entries=tuple(EntryChange(old, now.get(key)) for key, old in held.items() if old != now.get(key)),
            health_checks={**self._health, **(change.health_checks or {})} or None,
            **{name: getattr(plan, name) for name in self._settings.union(change.settings())},
        )

    def clear(self) -> None:
        """Note that the kernel holds the plan."""
        self._held, self._settings, self._health = {}, frozenset(), {}

    def behind(self, failed: Iterable[PlanChange]) -> None:
        """Note that only these parts of the last due change are behind."""
        self.clear()
        for change in failed:
            self._held |= {entry.key: entry.old for entry in change.entries}
            self._settings |= change.settings().keys()
            self._health |= change.health_checks or {}


def groups(entries: Iterable[EntryChange]) -> list[tuple[EntryChange, ...]]:
    """Group entry changes that can be applied independently: those that share a frontend stay together."""
    changes = list(entries)
    leader = list(range(len(changes)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    seen: dict[FrontendKey, int] = {}
    for index, change in enumerate(changes):
        for entry in (change.old, change.new):
            for frontend in entry.frontends if entry is not None else ():
                leader[find(index)] = find(seen.setdefault(frontend.key, index))
    found: dict[int, list[EntryChange]] = {}
    for index, change in enumerate(changes):
        found.setdefault(find(index), []).append(change)
    return [tuple(group) for group in found.values()]
