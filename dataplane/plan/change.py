"""Differences between plans, and how to apply one."""

from collections.abc import Iterator
from operator import ne
from typing import Any

import msgspec

from dataplane.plan.types import EntryKey, HealthCheck, OffPod, Plan, PlanEntry
from dataplane.policy.difference import LARGE, difference
from dataplane.policy.forwarding import Dispatch
from dataplane.policy.node import NodeConfig


class EntryChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry before and after; None where it does not exist. Never equal on both sides."""

    old: PlanEntry | None
    new: PlanEntry | None

    @property
    def key(self) -> EntryKey:
        entry = self.new or self.old
        assert entry is not None, "an EntryChange has at least one side"
        return entry.key

    def size(self) -> int:
        """Estimate how many backends a plane looks at: only those that differ, if nothing else does."""
        old, new = self.old, self.new
        if (
            old is None
            or new is None
            or len(new.cluster) < LARGE
            or old.frontends != new.frontends
            or old.affinity_seconds != new.affinity_seconds
            or old.forwarding is not new.forwarding
            or old.weighted
            or new.weighted
        ):
            return sum(len(entry.cluster) + len(entry.local) for entry in (old, new) if entry is not None)
        moved = sum(map(ne, old.tunnels, new.tunnels)) if new.cluster == old.cluster else 0
        return moved + sum(map(len, (*difference(old.cluster, new.cluster), *difference(old.local, new.local))))


class PlanChange(msgspec.Struct, frozen=True):
    """The change from one plan to the next. O(what changed) in size.

    node, service_cidrs, health_checks, connect_off, tunnel_peers, tunnel_formats, tunnel_moves: the new value when it
    changed, else None. In health_checks a value None means that the Service no longer has one; the others are the
    complete new values.
    """

    entries: tuple[EntryChange, ...] = ()
    node: NodeConfig | None = None
    service_cidrs: tuple[str, ...] | None = None
    health_checks: dict[tuple[str, str], HealthCheck | None] | None = None
    connect_off: dict[tuple[str, str], OffPod] | None = None
    tunnel_peers: frozenset[str] | None = None
    tunnel_formats: dict[str, Dispatch] | None = None
    tunnel_moves: dict[str, str] | None = None

    def __bool__(self) -> bool:
        return bool(self.entries or self.health_checks) or any(getattr(self, name) is not None for name in SETTINGS)

    def settings(self) -> dict[str, Any]:
        """Return the settings that changed, by their names in Plan (see SETTINGS)."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}

    def inverse_of_entries(self) -> Iterator[EntryChange]:
        """Return the entry changes that undo this change."""
        return (EntryChange(change.new, change.old) for change in self.entries)


SETTINGS = tuple(name for name in PlanChange.__struct_fields__ if name not in ("entries", "health_checks"))
"""The fields that PlanChange has as a whole or not at all; a Plan has them under the same names."""


def diff(old: Plan, new: Plan) -> PlanChange:
    """Return the change that turns `old` into `new`. O(size of both plans); for start-up and tests, not for events."""
    changes = [
        EntryChange(old.entries.get(key), entry) for key, entry in new.entries.items() if old.entries.get(key) != entry
    ]
    changes += [EntryChange(entry, None) for key, entry in old.entries.items() if key not in new.entries]
    health: dict[tuple[str, str], HealthCheck | None] = {
        k: v for k, v in new.health_checks.items() if old.health_checks.get(k) != v
    }
    health |= {k: None for k in old.health_checks if k not in new.health_checks}
    return PlanChange(
        entries=tuple(changes),
        health_checks=health or None,
        **{name: getattr(new, name) for name in SETTINGS if getattr(new, name) != getattr(old, name)},
    )


def apply_change(plan: Plan, change: PlanChange) -> None:
    """Apply a change to a plan in place. O(size of the change)."""
    for entry in change.entries:
        if entry.new is None:
            plan.entries.pop(entry.key, None)
        else:
            plan.entries[entry.key] = entry.new
    for service, health in (change.health_checks or {}).items():
        if health is None:
            plan.health_checks.pop(service, None)
        else:
            plan.health_checks[service] = health
    for name, value in change.settings().items():
        setattr(plan, name, value)


def merged(first: PlanChange, second: PlanChange) -> PlanChange:
    """Merge two consecutive changes. O(size of both)."""
    if not second:
        return first
    entries: dict[EntryKey, EntryChange] = {change.key: change for change in first.entries}
    for change in second.entries:
        earlier = entries.get(change.key)
        entries[change.key] = EntryChange(earlier.old, change.new) if earlier else change
    return PlanChange(
        entries=tuple(change for change in entries.values() if change.old != change.new),
        health_checks={**(first.health_checks or {}), **(second.health_checks or {})} or None,
        **(first.settings() | second.settings()),
    )
