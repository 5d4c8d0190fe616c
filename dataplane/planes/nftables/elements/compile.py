"""Compile a plan entry to elements: pure, the same entry and placement always give the same elements.

An element is identified by its target (`family table set`) and its key; its value is its data and comment, all as bytes
(see `fields`). What several entries may share (a shape chain, a clusterIP, a hairpin pair) is not an element of the
entry but a reference, counted by the plane.
"""

from collections.abc import Iterable, Sequence
from socket import inet_pton
from typing import NamedTuple

from dataplane.model.net import Family, network, packed
from dataplane.plan.types import Frontend, FrontendKey, FrontendKind, PlanEntry
from dataplane.planes.base import EntryRefused
from dataplane.planes.nftables.elements.placement import Address, Placement
from dataplane.planes.nftables.elements.seats import Touched, needs_hairpin_everywhere
from dataplane.planes.nftables.netlink.fields import Element, address_port, number, port
from dataplane.planes.nftables.rules.shapes import Masquerade, Shape, ShapeIds, drawn_from
from dataplane.planes.nftables.rules.skeleton import declarations, ranges_name
from dataplane.planes.nftables.rules.syntax import (
    BY_SOURCE_ACTION,
    COMMENT_LIMIT,
    DROP_ACTION,
    LOCAL_OFFSET,
    REJECT_ACTION,
    RESTRICTED_ACTION,
    Kind,
    Syntax,
)
from dataplane.policy.routes import Action, Route, Routes, Scope


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
    key: bytes


Reference = ShapeRef | RangesRef | ElementRef


class Compiled(NamedTuple):
    """elements: to their values. references: with repetition, one for each use."""

    elements: dict[Element, bytes]
    references: list[Reference]


NOTHING = Compiled({}, [])

INDEXES = [number(index) for index in range(64)]
"""Of the first backends of a set."""
_FORWARDING_CACHE_SIZE = 4096
PROTOCOLS = [bytes((value, 0, 0, 0)) for value in range(256)]
"""Protocols in a register."""


def frontend_key(key: FrontendKey) -> bytes:
    """A frontend's key in the maps: address (none for a node port), protocol, port."""
    return (packed(key.address) if key.address else b"") + PROTOCOLS[key.protocol] + port(key.port)


def _indexes(first: int, count: int) -> Iterable[bytes]:
    """Numbers of backends, from the first on."""
    if not first and count <= len(INDEXES):
        return INDEXES[:count]
    return map(number, range(first, first + count))


class Compiler:
    """Compiles the entries of one family. `ids`: the numbers of shapes, new ones are given as they come up."""

    def __init__(self, syntax: Syntax, family: Family, ids: ShapeIds) -> None:
        self.syntax = syntax
        self.family = family
        self._ids = ids
        self._targets = {name: syntax.target(name) for name in declarations(syntax)}
        self._forwarding: dict[tuple[int, bool, int, int, int], _Forwarding] = {}
        self._number = family.socket_family

    def compile(self, entry: PlanEntry, placement: Placement | Touched | None) -> Compiled:
        """Elements and references of one entry.

        placement None: the backends stand in the entry's own order (which affinity does not allow). Touched: of the
        backends, only what a change touches. Raises PlaneError for what nftables cannot hold, naming the Service.
        """
        entry_compiler = _Entry(self, entry, placement)
        for frontend in entry.frontends:
            entry_compiler.frontend(frontend)
        entry_compiler.hairpin()
        return Compiled(entry_compiler.elements, entry_compiler.references)

    def target(self, name: str) -> str:
        """`family table name` of a set or a map."""
        return self._targets.get(name) or self.syntax.target(name)

    def packed(self, address: str) -> bytes:
        """An address of the family in network byte order."""
        return inet_pton(self._number, address)

    def forwarding(self, entry: PlanEntry, routes: Routes, nodeport: bool) -> "_Forwarding":
        """Return what the elements of a frontend hold; cached, because few distinct values exist.

        The cache key has the identity of the routes, which the cache keeps alive, since hashing them takes longest.
        """
        drawn = drawn_from(len(entry.drawn(Scope.CLUSTER))), drawn_from(len(entry.drawn(Scope.LOCAL)))
        key = (id(routes), nodeport, *drawn, entry.affinity_seconds)
        known = self._forwarding.get(key)
        if known is None:
            if len(self._forwarding) >= _FORWARDING_CACHE_SIZE:
                self._forwarding.clear()
            known = self._forwarding[key] = self._new_forwarding(entry, routes, nodeport)
        return known

    def forget(self) -> None:
        """Empty the cache, because the number of a shape was given up."""
        self._forwarding.clear()

    def _new_forwarding(self, entry: PlanEntry, routes: Routes, nodeport: bool) -> "_Forwarding":
        """A shape where every source is treated alike or only masquerading differs between pods and others, else one
        for each kind of source. Any combination of routes can be held."""
        references: list[Reference] = []

        def action_of(route: Route, masquerade: Masquerade) -> int:
            if route.action is not Action.FORWARD:
                return REJECT_ACTION if route.action is Action.REJECT else DROP_ACTION
            count = len(entry.drawn(route.scope))
            if not count:
                raise EntryRefused(entry.key, f"a route forwards to the {route.scope.value} set, which is empty")
            shape = Shape(nodeport, drawn_from(count), route.scope is Scope.LOCAL, masquerade, entry.affinity_seconds)
            references.append(ShapeRef(self.family, shape))
            return self._ids.of(shape)

        def simple(route: Route) -> int:
            return action_of(route, Masquerade.EVERYBODY if route.masquerade else Masquerade.NOBODY)

        pod, node, outside = routes
        by_source: tuple[int, ...] = ()
        if pod == node == outside:
            first = simple(pod)
        elif node == outside == pod._replace(masquerade=True) and pod.action is Action.FORWARD:
            first = action_of(pod, Masquerade.OFF_POD)
        else:
            first, by_source = BY_SOURCE_ACTION, (simple(pod), simple(node), simple(outside))
        used = {route.scope for route in routes if route.action is Action.FORWARD}
        scopes = tuple(scope for scope in Scope if scope in used)
        return _Forwarding(routes, first, by_source, tuple(references), scopes)


class _Forwarding(NamedTuple):
    """How a frontend's packets are forwarded. first: value of its own element. by_source: values in the three maps by
    source, if used. scopes: the backend sets in use. routes: kept alive, because the cache key has their identity."""

    routes: Routes
    first: int
    by_source: tuple[int, ...]
    references: tuple[Reference, ...]
    scopes: tuple[Scope, ...]


class _Entry:
    """Collects the elements of one entry."""

    __slots__ = ("_common", "_entry", "_name", "_placement", "_service", "elements", "references")

    def __init__(self, common: Compiler, entry: PlanEntry, placement: Placement | Touched | None) -> None:
        self._common = common
        self._entry = entry
        self._placement = placement
        self.elements: dict[Element, bytes] = {}
        self.references: list[Reference] = []
        self._service = entry.key.service
        if not self._service.isascii() or not self._service.isprintable() or '"' in self._service:
            raise EntryRefused(entry.key, "a name with quotes or beyond printable ASCII cannot be a comment")
        self._name = self._service.encode()

    def frontend(self, frontend: Frontend) -> None:
        """Add one frontend."""
        nodeport = not frontend.key.address
        common = self._common
        kind = common.syntax.nodeports if nodeport else common.syntax.services
        key = PROTOCOLS[frontend.key.protocol] + port(frontend.key.port)
        if not nodeport:
            key = common.packed(frontend.key.address) + key
        forwarding = common.forwarding(self._entry, frontend.routes, nodeport)
        action = forwarding.first
        self.references += forwarding.references
        if forwarding.by_source:
            for name, by_source in zip((kind.pod, kind.node, kind.outside), forwarding.by_source, strict=True):
                self._add(name, key, number(by_source))
        if frontend.source_ranges is not None and any(r.action is not Action.DROP for r in frontend.routes):
            action = self._restricted(frontend, key, action)
        self._add(kind.first, key, number(action) + self._name[:COMMENT_LIMIT])
        if len(self._name) > COMMENT_LIMIT:
            self._add(kind.long_names, key, self._name[COMMENT_LIMIT:])
        if frontend.kind is FrontendKind.CLUSTER_IP:
            self.references.append(ElementRef(common.target("cluster_ips"), key[:-8]))
        for scope in forwarding.scopes:
            self._backends(kind, key, scope)

    def hairpin(self) -> None:
        """Add the pairs under which a backend that reached itself is recognised."""
        entry = self._entry
        if not entry.frontends:
            return
        if isinstance(self._placement, Touched):
            addresses = set(self._placement.hairpin)
        else:
            everybody = needs_hairpin_everywhere(entry)
            addresses = {b.address for b in entry.cluster if everybody or b.local}
            if entry.local:
                addresses.update(b.address for b in entry.local)
            addresses.update(b.address for b in entry.unplaced)
        if addresses:
            target = self._common.target("hairpin")
            self.references += [ElementRef(target, packed(a) * 2) for a in sorted(addresses)]

    def _add(self, name: str, key: bytes, value: bytes) -> None:
        self.elements[(self._common.target(name), key)] = value

    def _restricted(self, frontend: Frontend, key: bytes, action: int) -> int:
        """Put the check of source ranges before an action; returns the action that leads to the check."""
        ranges = frontend.source_ranges
        assert ranges is not None, "only called for frontends with source ranges"
        if not frontend.key.address:
            raise EntryRefused(
                self._entry.key, f"source ranges on node port {frontend.key}; only addresses can have them"
            )
        self._add("restricted", key, number(action))
        for cidr in dict.fromkeys(map(network, ranges.cidrs)):
            self._add(ranges_name(cidr.prefixlen), key + cidr.network_address.packed, b"")
            self.references.append(RangesRef(self._common.family, cidr.prefixlen))
        return RESTRICTED_ACTION

    def _order(self, local: bool) -> Iterable[tuple[bytes, Address]]:
        """Backends by index, as placed or as the entry has them."""
        offset = LOCAL_OFFSET if local else 0
        placement = self._placement
        if isinstance(placement, Touched):
            touched = placement.local if local else placement.cluster
            return [(number(offset + index), backend) for index, backend in touched]
        if placement is not None:
            order: Sequence[Address] = placement.local if local else placement.cluster
        else:
            order = [(b.address, b.port) for b in self._entry.drawn(Scope.LOCAL if local else Scope.CLUSTER)]
        return zip(_indexes(offset, len(order)), order, strict=True)

    def _backends(self, kind: Kind, key: bytes, scope: Scope) -> None:
        local = scope is Scope.LOCAL
        order = self._order(local)
        if self._entry.affinity_seconds:
            self._slots(kind, key, order, local=local)
            return
        target = self._common.target(kind.endpoints)
        elements, pack = self.elements, self._common.packed
        for index, (address, port_number) in order:
            elements[(target, key + index)] = pack(address) + port(port_number)

    def _slots(self, kind: Kind, key: bytes, order: Iterable[tuple[bytes, Address]], *, local: bool) -> None:
        assert self._placement is not None, "affinity needs slots"
        slots = self._common.target(kind.slots)
        backends = self._common.target(kind.local_slot_endpoints if local else kind.slot_endpoints)
        for index, backend in order:
            slot = number(self._placement.slots[backend])
            self.elements[(slots, key + index)] = slot
            self.elements[(backends, key + slot)] = address_port(*backend)
