"""The way of a packet through the nftables mode's chains and maps: the very elements, as `nft get element` takes them.

Source: the rules of rules.skeleton and rules.shapes; numbers of shapes are told by the names of their chains.
"""

from collections.abc import Iterator

from dataplane.model.net import Family, family_of, network
from dataplane.oracle.types import Decision, Verdict
from dataplane.plan.types import Frontend
from dataplane.planes.nftables.elements.compile import Compiler, ShapeRef
from dataplane.planes.nftables.rules import flowtable
from dataplane.planes.nftables.rules.shapes import Masquerade, Shape, ShapeIds, affinity_name, shape_of
from dataplane.planes.nftables.rules.skeleton import ranges_name
from dataplane.planes.nftables.rules.syntax import (
    BY_SOURCE_ACTION,
    DROP_ACTION,
    LAST,
    LOCAL_OFFSET,
    REJECT_ACTION,
    Kind,
    Syntax,
    number_text,
    syntax_for,
)
from dataplane.planes.path import At, Step
from dataplane.planes.path import Kind as Passed
from dataplane.policy.node import Source

_ACTIONS = {REJECT_ACTION: "reject-packet", DROP_ACTION: "drop", BY_SOURCE_ACTION: "by-source"}


def path(decision: Decision, at: At, table: str = "hotplane") -> tuple[Step, ...]:
    """The steps of a packet; none if no element of the mode's own concerns it."""
    family = family_of(decision.packet.destination)
    walk = _Walk(decision, at, syntax_for(family, table), family)
    return tuple(walk.claimed() if decision.frontend is not None else walk.unclaimed())


class _Walk:
    """One packet's way."""

    def __init__(self, decision: Decision, at: At, syntax: Syntax, family: Family) -> None:
        self._decision, self._at, self._syntax, self._family = decision, at, syntax, family
        chain = "output" if decision.source is Source.NODE else "prerouting"
        self._chain = chain
        self._hook = f"nat {chain} -100"

    def _map(self, name: str, key: str, result: str = "", share: str = "", note: str = "") -> Step:
        return Step(self._hook, Passed.MAP, f"{self._syntax.own} {name}", key, result, share, note)

    def _set(self, name: str, key: str, result: str = "") -> Step:
        return Step(self._hook, Passed.SET, f"{self._syntax.own} {name}", key, result)

    def _to(self, name: str, result: str = "", note: str = "") -> Step:
        return Step(self._hook, Passed.CHAIN, name, "", result, note=note)

    def claimed(self) -> Iterator[Step]:
        """The way of a packet to a frontend."""
        decision, frontend, entry = self._decision, self._decision.frontend, self._decision.entry
        assert frontend is not None, "only called for packets that a frontend claims"
        assert entry is not None, "a frontend is an entry's"
        ids = ShapeIds()
        held = Compiler(self._syntax, self._family, ids).forwarding(entry, frontend.routes, not frontend.key.address)
        names = {ids.of(r.shape): r.shape.name for r in held.references if isinstance(r, ShapeRef)}
        kind = self._syntax.kind(not frontend.key.address)
        key = self._key(frontend)
        first = names.get(held.first) or _ACTIONS[held.first]
        if frontend.source_ranges is not None:
            yield from self._ranges(frontend, kind, key)
            if decision.refused:
                return
            yield self._map("restricted", key, kind.by_source if held.by_source else first)
        else:
            yield self._map(kind.first, key, kind.by_source if held.by_source else first)
        chain = first
        if held.by_source:
            number = held.by_source[(Source.POD, Source.NODE, Source.OUTSIDE).index(decision.source)]
            source = {Source.POD: kind.pod, Source.NODE: kind.node, Source.OUTSIDE: kind.outside}[decision.source]
            chain = names.get(number) or _ACTIONS[number]
            yield self._map(source, key, chain)
        shape = shape_of(chain)
        if shape is not None and decision.verdict is Verdict.DNAT:
            yield from self._forward(kind, key, shape)

    def _key(self, frontend: Frontend) -> str:
        """The frontend's key; node ports have no address in it."""
        packet = self._decision.packet
        address = f"{frontend.key.address} . " if frontend.key.address else ""
        return f"{address}{packet.protocol.text} . {packet.port}"

    def _ranges(self, frontend: Frontend, kind: Kind, key: str) -> Iterator[Step]:
        """The look-ups of source ranges, one a prefix length, until one hits."""
        ranges, decision = frontend.source_ranges, self._decision
        assert ranges is not None, "only called for restricted frontends"
        yield self._map(kind.first, key, "restricted")
        source = decision.packet.source
        allowed = [cidr for cidr in map(network, ranges.cidrs) if cidr.version == self._family.value]
        for prefix in sorted({cidr.prefixlen for cidr in allowed}, reverse=True):
            masked = network(f"{source}/{prefix}")
            if masked in allowed:
                yield self._set(ranges_name(prefix), f"{key} . {masked.network_address}", "unrestricted")
                return
        yield self._to("restricted", "drop", f"no range holds {source}")

    def _forward(self, kind: Kind, key: str, shape: Shape) -> Iterator[Step]:
        """The chain that chooses an endpoint, its look-ups, and what happens behind it."""
        decision, node = self._decision, self._at.node
        yield self._to(shape.name, note=f"draws one of {shape.size}")
        marked = "marked to be masqueraded"
        if shape.masquerade is Masquerade.EVERYBODY:
            yield self._to("mark-packet", note=marked)
        elif shape.masquerade is Masquerade.OFF_POD and decision.source is Source.POD:
            yield self._to("mark-off-pod", note="pods are not marked")
        elif shape.masquerade is Masquerade.OFF_POD:
            yield self._to("mark-off-pod", "mark-packet", marked)
        if shape.affinity:
            yield from self._sticky(kind, key, shape)
        else:
            yield from self._endpoints(kind, key, shape)
        if any(map(decision.masquerades, decision.backends)):
            bit = f"mark & {node.masquerade_mark:#x}"
            some = "" if decision.masquerade else "if it meets itself"
            if not (decision.route and decision.route.masquerade):
                pair = f"{decision.packet.source} . {decision.packet.source}"
                own = f"{self._syntax.own} hairpin"
                yield Step("nat postrouting 98", Passed.SET, own, pair, "mark-packet", note=some)
            yield Step("nat postrouting 100", Passed.CHAIN, "postrouting", bit, "masquerade", note=some)
        if node.flowtable:
            where = f"flowtable {flowtable.FLOWTABLE} after {node.flowtable} packets"
            yield Step(f"filter forward {LAST}", Passed.CHAIN, flowtable.CHAIN, result=where)

    def _endpoints(self, kind: Kind, key: str, shape: Shape) -> Iterator[Step]:
        backends, first = self._decision.backends, LOCAL_OFFSET if shape.local else 0
        if len(backends) == 1:
            yield self._map(kind.endpoints, f"{key} . {number_text(first)}", str(backends[0]))
            return
        # Which index an endpoint has is known to the kernel alone: it depends on the changes before.
        last, shares = number_text(first + len(self._decision.drawn) - 1), self._decision.shares
        for backend in backends:
            place = f"{key} . {number_text(first)} to {last}"
            yield self._map(kind.endpoints, place, str(backend), shares.get(backend, ""))

    def _sticky(self, kind: Kind, key: str, shape: Shape) -> Iterator[Step]:
        """The look-ups of session affinity: client, slot, endpoint."""
        client = (
            f"{self._decision.packet.source} . {key}" if self._syntax.ip == "ip" else "two hashes of client and key"
        )
        yield self._map(affinity_name(kind, shape.affinity), client, note="a known client's slot, else a drawn one")
        name = kind.local_slot_endpoints if shape.local else kind.slot_endpoints
        shares = self._decision.shares
        for backend in self._decision.backends:
            yield self._map(name, f"{key} . SLOT", str(backend), shares.get(backend, ""))

    def unclaimed(self) -> Iterator[Step]:
        """The way of a packet that no frontend claims: through the last nat chain of its hook."""
        decision = self._decision
        if decision.verdict is Verdict.ACCEPT:
            return
        self._hook = f"nat {self._chain} {LAST}"
        if decision.verdict is Verdict.REJECT:
            yield self._set("cluster_ips", decision.packet.destination, "reject-packet")
        else:
            yield self._set("service_cidrs", decision.packet.destination, "drop")
