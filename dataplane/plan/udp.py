"""Find the UDP flows that a change makes stale.

UDP has no handshake, so a client that keeps sending keeps its conntrack entry alive, and with it a translation to a
deleted endpoint, or "no translation" from before the frontend existed. Those entries must be deleted; all others must
stay, or each rolling update would cut QUIC and DTLS flows to draining pods.

The rule is that of kube-proxy's conntrack reconciler: a flow stays while its endpoint serves that Service port, even if
traffic policy, topology, hints or termination keep new flows off it. `serving` and `stale_backends` implement the rule,
also for planes with flow tables of their own.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from dataplane.model.net import Family, Protocol, is_loopback
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import FrontendKey, Plan, PlanEntry
from dataplane.policy.difference import difference, holds
from dataplane.policy.node import NodeConfig

_LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}

Endpoints = frozenset[tuple[str, int]]
"""Addresses and ports of endpoints."""

_NOBODY: Endpoints = frozenset()


class StaleFlows(NamedTuple):
    """Selects UDP flows whose first packet was addressed to address:port, by their translation.

    address: "" matches any, but only translated flows (a node port is recognised by its number; an untranslated flow to
    that number elsewhere is not ours). backend: only flows to this endpoint. keep: all flows except those to these.
    """

    family: Family
    address: str
    port: int
    backend: tuple[str, int] | None = None
    keep: Endpoints = _NOBODY

    def hit(self, address: str, backend: tuple[str, int]) -> bool:
        """True if a flow to this port, first addressed to `address` and answered by `backend`, is selected."""
        if self.address not in ("", address) or (not self.address and backend == (address, self.port)):
            return False
        return backend == self.backend if self.backend is not None else backend not in self.keep


def serving(entry: PlanEntry | None) -> Endpoints:
    """Return every endpoint that serves a UDP Service port, in the sets or lingering."""
    if entry is None:
        return _NOBODY
    return frozenset((b.address, b.port) for b in (*entry.cluster, *entry.local, *entry.lingering))


def stale_backends(old: PlanEntry | None, new: PlanEntry | None) -> Endpoints:
    """Return the endpoints of a UDP Service port that may keep no flow after a change."""
    return serving(old) - serving(new)


def stale_udp(change: PlanChange, node: NodeConfig, loaded: Plan | None = None) -> list[StaleFlows]:
    """Return the flows to delete from conntrack once the change is in the kernel; `node` is that after the change.

    loaded: the plan, after a load. Then flows of an earlier run, another mode or kube-proxy count as well: those to
    serving endpoints stay, all others to the plan's frontends are deleted.
    """
    found: dict[StaleFlows, None] = {}
    if loaded is None:
        simple = [entry for entry in change.entries if _changes_only_endpoints(entry)]
        for entry in simple:
            for key, gone in _gone(entry):
                found.update(dict.fromkeys(_flows(key, gone, _NOBODY, node)))
        others = [entry for entry in change.entries if not _changes_only_endpoints(entry)] if simple else change.entries
        before = _by_frontend(entry.old for entry in others)
        after = _by_frontend(entry.new for entry in others)
    else:
        before = _by_frontend(entry.old for entry in change.entries)
        after = _by_frontend(loaded.entries.values())
        before = {key: endpoints for key, endpoints in before.items() if key not in after}
    for key in before | after:
        for backend, keep in _stale(before.get(key), after.get(key)):
            found.update(dict.fromkeys(_flows(key, backend, keep, node)))
    return list(found)


def _changes_only_endpoints(change: EntryChange) -> bool:
    """True if a UDP port keeps its frontends and has endpoints before and after."""
    old, new = change.old, change.new
    return (
        old is not None
        and new is not None
        and change.key.protocol is Protocol.UDP
        and [f.key for f in old.frontends] == [f.key for f in new.frontends]
        and bool(old.cluster or old.local or old.lingering)
        and bool(new.cluster or new.local or new.lingering)
    )


def _gone(change: EntryChange) -> Iterator[tuple[FrontendKey, tuple[str, int]]]:
    """Return the endpoints of such a change that no longer serve, for each frontend. O(what differs)."""
    old, new = change.old, change.new
    assert old is not None, "_changes_only_endpoints"
    assert new is not None, "_changes_only_endpoints"
    pairs = ((old.cluster, new.cluster), (old.local, new.local), (old.lingering, new.lingering))
    removed = {(b.address, b.port) for was, now in pairs for b in difference(was, now).removed}
    for backend in sorted(removed):
        if not any(holds(now, *backend) for _, now in pairs):
            for frontend in new.frontends:
                yield frontend.key, backend


def _by_frontend(entries: Iterable[PlanEntry | None]) -> dict[FrontendKey, Endpoints]:
    """Return the serving endpoints of each UDP frontend, so that renaming a port makes no flow stale."""
    found: dict[FrontendKey, Endpoints] = {}
    for entry in entries:
        if entry is not None and entry.key.protocol is Protocol.UDP:
            found |= dict.fromkeys((frontend.key for frontend in entry.frontends), serving(entry))
    return found


def _stale(old: Endpoints | None, new: Endpoints | None) -> Iterator[tuple[tuple[str, int] | None, Endpoints]]:
    """Yield (endpoint, or None for all flows; endpoints to keep) of a frontend. old, new: None if there is no
    frontend."""
    if old is None or (new and not old):
        yield None, new or _NOBODY
    elif new:
        yield from ((backend, _NOBODY) for backend in sorted(old - new))
    elif old or new is None:
        yield None, _NOBODY


def _flows(
    key: FrontendKey, backend: tuple[str, int] | None, keep: Endpoints, node: NodeConfig
) -> Iterator[StaleFlows]:
    yield StaleFlows(key.family, key.address, key.port, backend, keep)
    if not key.address and backend is None:  # and untranslated flows to addresses where node ports answer
        for address in _node_port_addresses(node, key.family):
            yield StaleFlows(key.family, address, key.port, None, keep)


def _node_port_addresses(node: NodeConfig, family: Family) -> list[str]:
    own = [a for a in node.addresses if (":" in a) is (family is Family.IPV6) and not is_loopback(a)]
    candidates = [*dict.fromkeys([*own, *node.nodeports.addresses]), _LOOPBACK[family]]
    return [a for a in candidates if (":" in a) is (family is Family.IPV6) and node.answers_node_ports(a)]
