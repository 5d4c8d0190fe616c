"""Differences between plans, and how to apply one."""

from collections.abc import Iterator
from operator import ne

import msgspec

from dataplane.plan.types import EntryKey, HealthCheck, OffPod, Plan, PlanEntry
from dataplane.policy.difference import LARGE, difference
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

    node, service_cidrs, health_checks, connect_off, tunnel_peers: the new value when it changed, else None. In
    health_checks a value None means that the Service no longer has one; connect_off and tunnel_peers are the complete
    new values.
    """

    entries: tuple[EntryChange, ...] = ()
    node: NodeConfig | None = None
    service_cidrs: tuple[str, ...] | None = None
    health_checks: dict[tuple[str, str], HealthCheck | None] | None = None
    connect_off: dict[tuple[str, str], OffPod] | None = None
    tunnel_peers: frozenset[str] | None = None

    def __bool__(self) -> bool:
        settings = (self.node, self.service_cidrs, self.connect_off, self.tunnel_peers)
        return bool(self.entries or self.health_checks) or any(setting is not None for setting in settings)

    def inverse_of_entries(self) -> Iterator[EntryChange]:
        """Return the entry changes that undo this change."""
        return (EntryChange(change.new, change.old) for change in self.entries)


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
        node=new.node if new.node != old.node else None,
        service_cidrs=new.service_cidrs if new.service_cidrs != old.service_cidrs else None,
        health_checks=health or None,
        connect_off=new.connect_off if new.connect_off != old.connect_off else None,
        tunnel_peers=new.tunnel_peers if new.tunnel_peers != old.tunnel_peers else None,
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
    if change.node is not None:
        plan.node = change.node
    if change.service_cidrs is not None:
        plan.service_cidrs = change.service_cidrs
    if change.connect_off is not None:
        plan.connect_off = dict(change.connect_off)
    if change.tunnel_peers is not None:
        plan.tunnel_peers = change.tunnel_peers
