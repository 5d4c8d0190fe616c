"""Totals of the plan for metrics, updated with each change instead of counted each time."""

from dataplane.model.net import Family
from dataplane.plan.change import PlanChange
from dataplane.plan.types import PlanEntry


class Tally:
    """entries, frontends: in the plan. limited: entries with more endpoints than are used. internal, external:
    entries of a family whose Local traffic policy finds no endpoint on this node although there are some elsewhere."""

    def __init__(self) -> None:
        self.entries = self.frontends = self.limited = 0
        self.internal = dict.fromkeys(Family, 0)
        self.external = dict.fromkeys(Family, 0)

    def count(self, change: PlanChange) -> None:
        """Update the totals by a change."""
        for entry in change.entries:
            if entry.old is not None:
                self._add(entry.old, -1)
            if entry.new is not None:
                self._add(entry.new, 1)

    def _add(self, entry: PlanEntry, times: int) -> None:
        self.entries += times
        self.frontends += times * len(entry.frontends)
        self.limited += times * entry.limited
        if entry.cluster and not entry.local:
            self.internal[entry.key.family] += times * entry.internal_local
            self.external[entry.key.family] += times * entry.external_local
