"""Compile a plan entry to elements: pure, the same entry and placement always give the same elements.

An element is known by (target, key), where target is `family table set` and key its text; the rest of its text (the
comment and the data) is its value. What several entries may need alike (a shape chain, a clusterIP, a hairpin
pair) is not an element of the entry but a reference, counted by the plane.
"""

from functools import lru_cache
from typing import NamedTuple

from dataplane.model.net import Family, network
from dataplane.plan.types import Frontend, FrontendKind, PlanEntry
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.placement import Address, Placement
from dataplane.planes.nftables.shapes import Masquerade, Shape, ShapeIds
from dataplane.planes.nftables.skeleton import ranges_name
from dataplane.planes.nftables.syntax import (
    BY_SOURCE_ID,
    COMMENT_LIMIT,
    DROP_ID,
    LOCAL_OFFSET,
    REJECT_ID,
    RESTRICTED_ID,
    Kind,
    Syntax,
)
from dataplane.policy.routes import REJECT_ALL, Action, Route, Scope


class ShapeRef(NamedTuple):
    """A use of a shape chain (and of the affinity map that it needs)."""

    family: Family
    shape: Shape


class RangesRef(NamedTuple):
    """A use of the set of source ranges of one prefix length."""

    family: Family
    prefix: int


class ElementRef(NamedTuple):
    """A use of an element that several entries may share."""

    target: str
    key: str


Reference = ShapeRef | RangesRef | ElementRef
ElementId = tuple[str, str]


class Compiled(NamedTuple):
    """elements: (target, key) to the rest of the element's text. references: with repetition, one for each use."""

    elements: dict[ElementId, str]
    references: list[Reference]


NOTHING = Compiled({}, [])


@lru_cache(maxsize=65536)
def _backend(address: str, port: int) -> str:
    return f" : {address} . {port}"


def number_text(number: int) -> str:
    """A slot number or an index as nftables writes a packet priority: in the range ffff:0 and above."""
    return f"ffff:{number:x}"


def _needs_hairpin_everywhere(entry: PlanEntry) -> bool:
    """Whether pods of other nodes may reach themselves through this node: an external frontend hands them the
    Cluster set unmasqueraded. Otherwise only this node's own pods can."""
    return any(
        frontend.kind is not FrontendKind.CLUSTER_IP
        and frontend.routes.pod.action is Action.FORWARD
        and frontend.routes.pod.scope is Scope.CLUSTER
        and not frontend.routes.pod.masquerade
        for frontend in entry.frontends
    )


class _Compiler:
    """Collects the elements of one entry."""

    def __init__(self, words: Syntax, ids: ShapeIds, entry: PlanEntry, placement: Placement) -> None:
        self.words = words
        self.ids = ids
        self.entry = entry
        self.placement = placement
        self.family = entry.key.family
        self.elements: dict[ElementId, str] = {}
        self.references: list[Reference] = []
        self.service = entry.key.service
        if any(character in self.service for character in '",\n'):
            raise PlaneError(f"{self.service!r}: a name with quotes, commas or line breaks cannot stand in a comment")

    def frontend(self, frontend: Frontend) -> None:
        """Add one frontend."""
        nodeport = not frontend.key.address
        kind = self.words.kind(nodeport)
        port = f"{frontend.key.protocol.value} . {frontend.key.port}"
        key = port if nodeport else f"{frontend.key.address} . {port}"
        way = self._way(frontend, kind, key, nodeport)
        if frontend.source_ranges is not None and frontend.routes != REJECT_ALL:
            way = self._restricted(frontend, key, way)
        name, rest = self.service[:COMMENT_LIMIT], self.service[COMMENT_LIMIT:]
        self._add(kind.first, key, f' comment "{name}" : {way}')
        if rest:
            self._add(kind.long_names, key, f' comment "{rest}"')
        if frontend.kind is FrontendKind.CLUSTER_IP:
            self.references.append(ElementRef(self.words.target("cluster_ips"), frontend.key.address))
        used = {route.scope for route in frontend.routes if route.action is Action.FORWARD}
        for scope in Scope:
            if scope in used:
                self._backends(kind, key, scope)

    def hairpin(self) -> None:
        """Add the pairs under which a backend that reached itself is recognised."""
        if not self.entry.frontends:
            return
        everybody = _needs_hairpin_everywhere(self.entry)
        addresses = {b.address for b in self.entry.cluster if everybody or b.local}
        addresses.update(b.address for b in self.entry.local)
        target = self.words.target("hairpin")
        self.references += [ElementRef(target, f"{a} . {a}") for a in sorted(addresses)]

    def _add(self, name: str, key: str, rest: str) -> None:
        self.elements[(self.words.target(name), key)] = rest

    def _route(self, route: Route, nodeport: bool, masquerade: Masquerade) -> str:
        if route.action is Action.REJECT:
            return REJECT_ID
        if route.action is Action.DROP:
            return DROP_ID
        count = len(self.entry.backends(route.scope))
        if not count:
            raise PlaneError(f"{self.service}: a route forwards to the {route.scope.value} set, which is empty")
        shape = Shape(nodeport, count, route.scope is Scope.LOCAL, masquerade, self.entry.affinity_seconds)
        self.references.append(ShapeRef(self.family, shape))
        return self.ids.of(shape)

    def _simple(self, route: Route, nodeport: bool) -> str:
        return self._route(route, nodeport, Masquerade.EVERYBODY if route.masquerade else Masquerade.NOBODY)

    def _way(self, frontend: Frontend, kind: Kind, key: str, nodeport: bool) -> str:
        """What the element of a frontend says: a shape where every source is treated alike or only masquerading
        differs between pods and others, else the three maps by source. Any combination of routes can be held."""
        pod, node, outside = frontend.routes
        if pod == node == outside:
            return self._simple(pod, nodeport)
        if node == outside == pod._replace(masquerade=True) and pod.action is Action.FORWARD:
            return self._route(pod, nodeport, Masquerade.OFF_POD)
        for name, route in ((kind.pod, pod), (kind.node, node), (kind.outside, outside)):
            self._add(name, key, f" : {self._simple(route, nodeport)}")
        return BY_SOURCE_ID

    def _restricted(self, frontend: Frontend, key: str, way: str) -> str:
        """Put the check of source ranges before a way; returns the way that leads there."""
        ranges = frontend.source_ranges
        assert ranges is not None, "only called for frontends with source ranges"
        if not frontend.key.address:
            raise PlaneError(f"{self.service}: source ranges on node port {frontend.key}; only addresses can have them")
        self._add("restricted", key, f" : {way}")
        for cidr in dict.fromkeys(map(network, ranges.cidrs)):
            self._add(ranges_name(cidr.prefixlen), f"{key} . {cidr.network_address}", "")
            self.references.append(RangesRef(self.family, cidr.prefixlen))
        if ranges.own_address:
            self._add("own_sources", f"{frontend.key.address} . {key}", "")
        return RESTRICTED_ID

    def _backends(self, kind: Kind, key: str, scope: Scope) -> None:
        local = scope is Scope.LOCAL
        order = self.placement.local if local else self.placement.cluster
        offset = LOCAL_OFFSET if local else 0
        if not self.entry.affinity_seconds:
            target = self.words.target(kind.endpoints)
            for index, (address, port) in enumerate(order, offset):
                self.elements[(target, f"{key} . {number_text(index)}")] = _backend(address, port)
            return
        self._slots(kind, key, order, offset)

    def _slots(self, kind: Kind, key: str, order: tuple[Address, ...], offset: int) -> None:
        slots = self.words.target(kind.slots)
        backends = self.words.target(kind.local_slot_endpoints if offset else kind.slot_endpoints)
        for index, backend in enumerate(order, offset):
            slot = number_text(self.placement.slots[backend])
            self.elements[(slots, f"{key} . {number_text(index)}")] = f" : {slot}"
            self.elements[(backends, f"{key} . {slot}")] = _backend(*backend)


def compile_entry(words: Syntax, ids: ShapeIds, entry: PlanEntry, placement: Placement) -> Compiled:
    """Elements and references of one entry. Raises PlaneError for what nftables cannot hold, naming the Service."""
    compiler = _Compiler(words, ids, entry, placement)
    for frontend in entry.frontends:
        compiler.frontend(frontend)
    compiler.hairpin()
    return Compiled(compiler.elements, compiler.references)
