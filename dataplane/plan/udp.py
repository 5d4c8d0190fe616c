"""Which UDP flows a change makes stale.

UDP has no handshake, so a client that keeps sending keeps its conntrack entry alive, and with it a translation to an
endpoint that is gone, or the decision "no translation" from when the Service had no endpoint. kube-proxy removes such
entries; so do we, in every case: endpoint removed, scaled to zero and back, Service deleted or created, port changed.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dataplane.model.net import Family, Protocol, is_loopback
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import Frontend, PlanEntry
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import Action

_LOOPBACK = "127.0.0.1"


class StaleFlows(NamedTuple):
    """UDP flows whose first packet was addressed to address:port; with `backend`, only those translated to it."""

    family: Family
    address: str
    port: int
    backend: tuple[str, int] | None = None


def stale_udp(change: PlanChange, node: NodeConfig) -> list[StaleFlows]:
    """The flows to remove from conntrack once the change is in the kernel; `node` as it is after the change."""
    found: dict[StaleFlows, None] = {}
    for entry in change.entries:
        if entry.key.protocol is Protocol.UDP:
            found.update(dict.fromkeys(_of_entry(entry, node)))
    return list(found)


def _backends(frontend: Frontend | None, entry: PlanEntry | None) -> set[tuple[str, int]]:
    if frontend is None or entry is None:
        return set()
    scopes = {route.scope for route in frontend.routes if route.action is Action.FORWARD}
    return {(backend.address, backend.port) for scope in scopes for backend in entry.backends(scope)}


def _of_entry(change: EntryChange, node: NodeConfig) -> Iterator[StaleFlows]:
    before = {frontend.key: frontend for frontend in change.old.frontends} if change.old else {}
    after = {frontend.key: frontend for frontend in change.new.frontends} if change.new else {}
    for key in before | after:
        old = _backends(before.get(key), change.old)
        new = _backends(after.get(key), change.new)
        removed: set[tuple[str, int] | None] = set(old - new)
        if not (old and new):
            # From nothing or to nothing: every entry of the frontend was decided under rules that no longer hold.
            removed = {None} if key not in before or key not in after or old != new else set()
        for address in (key.address,) if key.address else _node_port_addresses(node, key.family):
            for backend in removed:
                yield StaleFlows(key.family, address, key.port, backend)


def _node_port_addresses(node: NodeConfig, family: Family) -> list[str]:
    own = [a for a in node.addresses if (":" in a) is (family is Family.IPV6) and not is_loopback(a)]
    candidates = [*dict.fromkeys([*own, *node.nodeports.addresses])] + ([_LOOPBACK] if family is Family.IPV4 else [])
    return [a for a in candidates if (":" in a) is (family is Family.IPV6) and node.answers_node_ports(a)]
