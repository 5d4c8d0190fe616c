"""The executable specification: decide what happens to a packet under a plan.

Every plane must agree with it. It is written to be read: a decision is a lookup, a check of the source ranges and
the route for the class of the source. It does not depend on a kernel.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import msgspec

from dataplane.model.net import contains, family_of
from dataplane.oracle.keeps import NOTHING, Keeping, kept_backends
from dataplane.oracle.reasons import Owner, reasons
from dataplane.oracle.types import Decision, Packet, Verdict
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry, SourceRanges
from dataplane.policy.dispatch import formats_of
from dataplane.policy.endpoints import Backend
from dataplane.policy.maglev import Hashing, fits, flow_hash, seed_of, slot_of, table
from dataplane.policy.node import NodeConfig, Source
from dataplane.policy.routes import Action

__all__ = ["Decision", "Oracle", "Packet", "Verdict", "decide"]

Notes = Callable[[EntryKey], Sequence[str]]
"""Returns sentences about a plan entry that are not known from the plan."""


def _no_notes(_key: EntryKey) -> Sequence[str]:
    return ()


class Oracle:
    """Decides packets under a plan, which is indexed once, in O(1) each.

    It is a snapshot: make a new one after the plan has changed. `notes` gives further sentences for the reasons of
    an entry, such as how its endpoints came about; `keeping` is what the ebpf mode leaves unmasqueraded; `node_names`
    has the names of nodes by their addresses, as far as they are known.
    Raises ValueError when a plan holds one frontend twice, which no planner may let happen.
    """

    def __init__(
        self,
        plan: Plan,
        notes: Notes = _no_notes,
        keeping: Keeping = NOTHING,
        node_names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._node: NodeConfig = plan.node
        self._formats = plan.tunnel_formats
        self._node_names = node_names
        self._keeping = keeping
        self._hashing = Hashing(plan.node.maglev_table_size, seed_of(plan.node.hash_seed))
        self._notes = notes
        self._index: dict[FrontendKey, tuple[Frontend, PlanEntry]] = {}
        self._owners: dict[str, list[Owner]] = {}
        self._service_cidrs: tuple[str, ...] = plan.service_cidrs
        self._health_ports = {check.port: f"{check.namespace}/{check.name}" for check in plan.health_checks.values()}
        for frontend, entry in plan.frontends():
            claimed = self._index.setdefault(frontend.key, (frontend, entry))
            if claimed[0] is not frontend:
                raise ValueError(f"{frontend.key} is claimed by {claimed[1].key.service} and by {entry.key.service}")
            if frontend.kind is FrontendKind.CLUSTER_IP:
                self._owners.setdefault(frontend.key.address, []).append(Owner(entry.key, frontend.key.port))

    def find(self, packet: Packet) -> tuple[Frontend, PlanEntry] | None:
        """Return the frontend that matches a packet: exact address, protocol and port first, then a node port."""
        family = family_of(packet.destination)
        exact = self._index.get(FrontendKey(family, packet.destination, packet.protocol, packet.port))
        if exact is not None or not self._node.answers_node_ports(packet.destination):
            return exact
        return self._index.get(FrontendKey(family, "", packet.protocol, packet.port))

    def decide(self, packet: Packet) -> Decision:
        """Decide a packet. Raises ValueError if its addresses are of different families."""
        if family_of(packet.source) is not family_of(packet.destination):
            raise ValueError(f"{packet}: source and destination are of different IP families")
        found = self.find(packet)
        decision = self._claimed(packet, *found) if found else self._refused_beside(packet) or self._unclaimed(packet)
        return self._with_reasons(decision)

    def _claimed(self, packet: Packet, frontend: Frontend, entry: PlanEntry) -> Decision:
        source = self._node.source(packet.source, packet.interface)
        if not admits(frontend.source_ranges, packet):
            return Decision(packet, Verdict.DROP, source, entry=entry, frontend=frontend, refused=True)
        route = frontend.routes.of(source)
        if route.action is not Action.FORWARD:
            verdict = Verdict.REJECT if route.action is Action.REJECT else Verdict.DROP
            return Decision(packet, verdict, source, entry=entry, frontend=frontend, route=route)
        backends = entry.backends(route.scope)
        steady = source is Source.OUTSIDE and entry.steady(frontend) and fits(len(backends), self._hashing)
        decision = Decision(
            packet, Verdict.DNAT, source, backends, entry=entry, frontend=frontend, route=route,
            steady=steady, chosen=self._led_to(packet, backends, entry) if steady else None,
        )  # fmt: skip
        if decision.may_forward:
            decision = self._forwarded(decision, entry)
        kept = kept_backends(decision, self._keeping, self._node.addresses, masquerade_all=self._node.masquerade_all)
        kept += tuple(b for b in self._staying(decision) if b not in kept)
        return msgspec.structs.replace(decision, kept=kept) if kept else decision

    def _forwarded(self, decision: Decision, entry: PlanEntry) -> Decision:
        """Add which backends the packet is forwarded to, and in what."""
        tunnels = {b: address for b, address in zip(entry.cluster, entry.tunnels, strict=True) if address}
        return msgspec.structs.replace(
            decision,
            tunnels=tunnels,
            formats=formats_of(tunnels.items(), self._formats, entry.key.protocol),
            wanted=self._node.lb_dispatch,
            opened=frozenset(self._formats),
        )

    def _led_to(self, packet: Packet, backends: tuple[Backend, ...], entry: PlanEntry) -> Backend | None:
        """Return the backend that Maglev gives a packet, None if its source port is needed and not known."""
        by_client = entry.affinity_seconds > 0
        if not (packet.source_port or by_client):
            return None
        size, seed = self._hashing
        value = flow_hash(
            seed, packet.source, packet.destination, (packet.source_port, packet.port), packet.protocol,
            by_client=by_client,
        )  # fmt: skip
        return backends[table(backends, self._hashing)[slot_of(value, size)]]

    def _staying(self, decision: Decision) -> Iterator[Backend]:
        """Yield backends on the host network of this node, for packets from other hosts: those are delivered locally
        and never pass POSTROUTING, where every mode masquerades."""
        if not self._node.is_local(decision.packet.source):
            yield from (b for b in decision.backends if self._node.is_local(b.address) and decision.masquerades(b))

    def _refused_beside(self, packet: Packet) -> Decision | None:
        """Decide a packet to a local address without node ports that is rejected anyway: kube-proxy's iptables mode
        rejects a node port without endpoints for outside sources on every local address. None: not rejected."""
        if self._node.reject_unknown_ports or not self._node.is_local(packet.destination):
            return None
        found = self._index.get(FrontendKey(family_of(packet.destination), "", packet.protocol, packet.port))
        if found is None or found[0].routes.outside.action is Action.FORWARD:
            return None
        frontend, entry = found
        route = frontend.routes.outside
        verdict = Verdict.REJECT if route.action is Action.REJECT else Verdict.DROP
        source = self._node.source(packet.source, packet.interface)
        return Decision(packet, verdict, source, entry=entry, frontend=frontend, route=route)

    def _unclaimed(self, packet: Packet) -> Decision:
        verdict = Verdict.ACCEPT
        if self._node.reject_unknown_ports and not self._node.is_local(packet.destination):
            if packet.destination in self._owners:
                verdict = Verdict.REJECT
            elif self.in_service_cidrs(packet.destination):
                verdict = Verdict.DROP
        return Decision(packet, verdict, self._node.source(packet.source, packet.interface))

    def in_service_cidrs(self, address: str) -> bool:
        """True if clusterIPs are allocated from a range that holds this address."""
        return contains(self._service_cidrs, address)

    def _with_reasons(self, decision: Decision) -> Decision:
        sentences = reasons(
            decision,
            self._node,
            notes=self._notes(decision.entry.key) if decision.entry else (),
            owners=self._owners.get(decision.packet.destination, ()),
            node_names=self._node_names,
            health_service=self._health_ports.get(decision.packet.port, ""),
        )
        return msgspec.structs.replace(decision, reasons=sentences)


def admits(ranges: SourceRanges | None, packet: Packet) -> bool:
    """True if source ranges allow a packet; None allows all."""
    return ranges is None or contains(ranges.cidrs, packet.source)


def decide(plan: Plan, packet: Packet) -> Decision:
    """Decide one packet under a plan. O(size of the plan): use an `Oracle` for several packets."""
    return Oracle(plan).decide(packet)
