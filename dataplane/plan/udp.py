"""When a UDP flow outlives its endpoint's place in the sets, and which flows a change makes stale.

UDP has no handshake, so a client that keeps sending keeps its conntrack entry alive, and with it a translation to an
endpoint that is gone, or the decision "no translation" from when there was no frontend. Those must go; all others must
stay, or each rolling update cuts QUIC and DTLS flows to pods that drain.

The rule, kube-proxy's (its conntrack reconciler): a flow stays while its endpoint serves that Service port, whatever
traffic policy, topology, hints or termination say of new flows. `serving` and `stale_backends` are the rule itself;
planes with flow tables of their own go by them, too.
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
    """UDP flows whose first packet was addressed to address:port, by where they were translated to.

    address: "" stands for any, of flows that were translated (a node port is recognised by its number; what merely has
    that number somewhere else is nobody's). backend: only flows to this endpoint. keep: all but those to these.
    """

    family: Family
    address: str
    port: int
    backend: tuple[str, int] | None = None
    keep: Endpoints = _NOBODY

    def hit(self, address: str, backend: tuple[str, int]) -> bool:
        """True if a flow to this port, first addressed to `address` and answered by `backend`, is among them."""
        if self.address not in ("", address) or (not self.address and backend == (address, self.port)):
            return False
        return backend == self.backend if self.backend is not None else backend not in self.keep


def serving(entry: PlanEntry | None) -> Endpoints:
    """Every endpoint that serves a UDP Service port, chosen for new flows or not."""
    if entry is None:
        return _NOBODY
    return frozenset((b.address, b.port) for b in (*entry.cluster, *entry.local, *entry.lingering))


def stale_backends(old: PlanEntry | None, new: PlanEntry | None) -> Endpoints:
    """The endpoints of a UDP Service port to which no flow may stay after a change."""
    return serving(old) - serving(new)


def stale_udp(change: PlanChange, node: NodeConfig, loaded: Plan | None = None) -> list[StaleFlows]:
    """The flows to remove from conntrack once the change is in the kernel; `node` as it is after the change.

    loaded: the plan, after a load. Whatever was there before, an earlier run, another mode or kube-proxy itself, flows
    to endpoints that serve stay, and all others to the plan's frontends go.
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
    """True if a UDP port keeps its frontends and goes from some endpoints to some."""
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
    """The endpoints of such a change that serve no more, for each frontend. O(what differs)."""
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
    """Who serves each UDP frontend. By frontend, not by entry: a port that gets another name is no reason."""
    found: dict[FrontendKey, Endpoints] = {}
    for entry in entries:
        if entry is not None and entry.key.protocol is Protocol.UDP:
            found |= dict.fromkeys((frontend.key for frontend in entry.frontends), serving(entry))
    return found


def _stale(old: Endpoints | None, new: Endpoints | None) -> Iterator[tuple[tuple[str, int] | None, Endpoints]]:
    """(endpoint, or None for all flows; those to be kept) for a frontend; None is one that is not there."""
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
    if not key.address and backend is None:  # and those that were not translated, where node ports answer
        for address in _node_port_addresses(node, key.family):
            yield StaleFlows(key.family, address, key.port, None, keep)


def _node_port_addresses(node: NodeConfig, family: Family) -> list[str]:
    own = [a for a in node.addresses if (":" in a) is (family is Family.IPV6) and not is_loopback(a)]
    candidates = [*dict.fromkeys([*own, *node.nodeports.addresses]), _LOOPBACK[family]]
    return [a for a in candidates if (":" in a) is (family is Family.IPV6) and node.answers_node_ports(a)]
