"""Compute the change of a load, in the plan's terms, from the rows that the kernel held before."""

from collections import defaultdict

from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.rows import row
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry, Row, Table
from dataplane.policy.endpoints import Backend


def _entry_key(service: str, protocol: Protocol, family: Family) -> EntryKey:
    namespace, _, rest = service.partition("/")
    name, _, port = rest.partition(":")
    return EntryKey(namespace, name, port, protocol, family)


def _kind(key: FrontendKey, held: Row) -> FrontendKind:
    """Guess the kind of a frontend from its row."""
    if not key.address:
        return FrontendKind.NODE_PORT
    return FrontendKind.CLUSTER_IP if held.source_ranges is None else FrontendKind.LOAD_BALANCER


def _entry(key: EntryKey, held: dict[FrontendKey, Row], like: PlanEntry | None) -> PlanEntry:
    """Reconstruct a plan entry from rows; `like` (the plan's entry of the same key) provides what rows lack."""
    kinds = {frontend.key: frontend.kind for frontend in like.frontends} if like else {}
    cluster = {pair for r in held.values() for pair in r.cluster}
    local = {pair for r in held.values() for pair in r.local}
    return PlanEntry(
        key=key,
        cluster=tuple(Backend(*pair, local=pair in local) for pair in sorted(cluster)),
        local=tuple(Backend(*pair, local=True) for pair in sorted(local)),
        frontends=tuple(Frontend(kinds.get(k) or _kind(k, r), k, r.routes, r.source_ranges) for k, r in held.items()),
        affinity_seconds=max(r.affinity_seconds for r in held.values()),
        internal_local=like.internal_local if like else False,
        external_local=like.external_local if like else False,
    )


def load_change(before: Table, plan: Plan, families: frozenset[Family]) -> PlanChange:
    """Return the change from the kernel's rows to the plan, without unchanged entries."""
    held: defaultdict[EntryKey, dict[FrontendKey, Row]] = defaultdict(dict)
    for key, r in before.items():
        held[_entry_key(r.service, key.protocol, key.family)][key] = r
    changes = []
    for entry_key, entry in plan.entries.items():
        if entry_key.family not in families:
            continue
        old = held.pop(entry_key, {})
        if old != {frontend.key: row(frontend, entry) for frontend in entry.frontends}:
            changes.append(EntryChange(_entry(entry_key, old, entry) if old else None, entry))
    changes += [EntryChange(_entry(entry_key, old, None), None) for entry_key, old in held.items()]
    return PlanChange(entries=tuple(changes))
