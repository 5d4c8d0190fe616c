"""The wanted state of one family's tables, and the restore input for it.

This follows kube-proxy's sync: every sync writes the complete dispatch chains; the chains of a Service are written only
if the Service changed, or in a full sync.
"""

from collections.abc import Iterable
from typing import NamedTuple

from dataplane.model.net import Family
from dataplane.plan.change import EntryChange
from dataplane.plan.types import EntryKey, HealthCheck, Plan, PlanEntry
from dataplane.planes.iptables.readback import chains_of, rules_of
from dataplane.planes.iptables.rules import names
from dataplane.planes.iptables.rules.service import ServiceRules
from dataplane.planes.iptables.rules.skeleton import JUMPS, chain_lines, filter_head, filter_tail, nat_head, nat_tail
from dataplane.planes.iptables.settings import LARGE_CLUSTER_ENDPOINTS, FamilySettings

HealthChecks = dict[tuple[str, str], HealthCheck]


class _Entry(NamedTuple):
    """A plan entry with its part of the dispatch chains (text, lines ended) and the names of its own chains."""

    entry: PlanEntry
    filter_dispatch: str
    nat_dispatch: str
    chains: tuple[str, ...]
    endpoints: int


class Saved(NamedTuple):
    """iptables-save of both tables."""

    filter: str
    nat: str


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


class FamilyState:
    """The wanted state of one family's tables. A change makes a new state (`changed`); a failed one is discarded."""

    def __init__(self, settings: FamilySettings, health_checks: HealthChecks) -> None:
        self.settings = settings
        self.health_checks = health_checks
        self.total_endpoints = 0
        self._entries: dict[EntryKey, _Entry] = {}

    @classmethod
    def of(cls, plan: Plan, settings: FamilySettings) -> "FamilyState":
        """Return the state of a whole plan. O(size of the plan)."""
        state = cls(settings, dict(plan.health_checks))
        for entry in plan.entries.values():
            if entry.key.family is settings.family:
                state._put(entry)
        return state

    @property
    def family(self) -> Family:
        return self.settings.family

    @property
    def large(self) -> bool:
        """kube-proxy's large-cluster mode. It counts every endpoint, a plan knows the usable ones only."""
        return self.total_endpoints > LARGE_CLUSTER_ENDPOINTS

    @property
    def keys(self) -> Iterable[EntryKey]:
        return self._entries.keys()

    def changed(
        self, entries: Iterable[EntryChange], health_checks: HealthChecks, settings: FamilySettings
    ) -> "FamilyState":
        """Return the state after a change; if the settings differ, everything is rendered again."""
        state = FamilyState(settings, health_checks)
        state.total_endpoints = self.total_endpoints
        state._entries = dict(self._entries)
        for change in entries:
            state._remove(change.key)
            if change.new is not None:
                state._put(change.new)
        if settings != self.settings or _ports(health_checks) != _ports(self.health_checks):
            for held in list(state._entries.values()):
                state._remove(held.entry.key, keep_place=True)
                state._put(held.entry)
        return state

    def _rules(self, entry: PlanEntry) -> ServiceRules:
        health = self.health_checks.get((entry.key.namespace, entry.key.name))
        return ServiceRules(entry, self.settings, health.port if health else 0, large=self.large)

    def _put(self, entry: PlanEntry) -> None:
        rules = self._rules(entry)
        endpoints = len({*entry.cluster, *entry.local})
        self.total_endpoints += endpoints
        self._entries[entry.key] = _Entry(
            entry, _text(rules.filter_dispatch()), _text(rules.nat_dispatch()), rules.written_chains, endpoints
        )

    def _remove(self, key: EntryKey, *, keep_place: bool = False) -> None:
        held = self._entries.get(key) if keep_place else self._entries.pop(key, None)
        if held is not None:
            self.total_endpoints -= held.endpoints

    def chains(self) -> set[str]:
        """Return the chains of Services that should exist in nat."""
        return {chain for held in self._entries.values() for chain in held.chains}

    def stale_chains(self, nat_saved: str) -> list[str]:
        """Return the Service chains in the kernel that no Service uses."""
        return sorted(c for c in chains_of(nat_saved) - self.chains() if names.is_service_chain(c))

    def restore_input(self, written: Iterable[EntryKey], stale: Iterable[str], saved: Saved | None = None) -> str:
        """Return input for iptables-restore --noflush, both tables.

        written: the entries whose own chains are written. stale: chains to delete. saved: what the kernel holds, for
        a full sync, which also restores missing jumps.
        """
        filter_chains = list(names.FILTER_CHAINS)
        missing: dict[str, list[str]] = {"filter": [], "nat": []}
        if saved is not None:
            held = {"filter": rules_of(saved.filter), "nat": rules_of(saved.nat)}
            for jump in JUMPS:
                if f"{jump.match}-j {jump.target}" not in held[jump.table].get(jump.source, ()):
                    missing[jump.table].append(f"-I {jump.rule}")
        # A chain line empties the chain, and the kubelet's rule in there is not ours to remove.
        if self.settings.localhost_node_ports or (saved and names.FIREWALL not in chains_of(saved.filter)):
            filter_chains.append(names.FIREWALL)
        wanted = [self._entries[key] for key in written if key in self._entries]
        stale = list(stale)
        parts = [
            "*filter\n",
            _text(chain_lines(tuple(filter_chains))),
            _text(filter_head(self.settings)),
            *(held.filter_dispatch for held in self._entries.values()),
            _text(filter_tail(self.settings)),
            _text(missing["filter"]),
            "COMMIT\n*nat\n",
            _text(chain_lines(names.NAT_CHAINS)),
            *(_text(chain_lines(held.chains)) for held in wanted),
            _text(chain_lines(tuple(stale))),
            _text(nat_head(self.settings)),
            *(held.nat_dispatch for held in self._entries.values()),
            *(_text(self._rules(held.entry).nat_rules()) for held in wanted),
            _text(f"-X {chain}" for chain in stale),
            _text(nat_tail(self.settings)),
            _text(missing["nat"]),
            "COMMIT\n",
        ]
        return "".join(parts)


def _ports(health_checks: HealthChecks) -> dict[tuple[str, str], int]:
    """Return the part of the health checks that has rules, without the endpoint counts."""
    return {service: health.port for service, health in health_checks.items()}


def undo_input(saved: Saved, now: Saved) -> str:
    """Return restore input that reverts our chains from `now` to their state in `saved`."""
    parts = []
    for table, before, after in (("filter", saved.filter, now.filter), ("nat", saved.nat, now.nat)):
        old, new = rules_of(before), rules_of(after)
        old_chains = {c for c in chains_of(before) if c.startswith("KUBE-")}
        added = {c for c in chains_of(after) if c.startswith("KUBE-")} - old_chains
        lines = chain_lines(tuple(sorted(old_chains | added)))
        for chain, rules in new.items():
            if not chain.startswith("KUBE-"):
                lines += [f"-D {chain} {rule}" for rule in rules if rule not in old.get(chain, ())]
        lines += [f"-A {chain} {rule}" for chain in sorted(old_chains) for rule in old.get(chain, ())]
        parts.append(_text([f"*{table}", *lines, *(f"-X {chain}" for chain in sorted(added)), "COMMIT"]))
    return "".join(parts)
