"""Compile entries of the plainest kind many at a time: nearly all that a whole load is made of.

The elements are those of `compile`, which looks at each of them for everything that a Service may have; here whole
columns of keys and values are made by functions that Python has in C. Entries of another kind are left to `compile`.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import repeat
from operator import add
from socket import inet_pton
from typing import NamedTuple

from dataplane.plan.types import Frontend, FrontendKind, PlanEntry
from dataplane.planes.nftables.elements.compile import INDEXES, PROTOCOLS, Compiler, Reference
from dataplane.planes.nftables.netlink.fields import number, port
from dataplane.planes.nftables.rules.syntax import COMMENT_LIMIT
from dataplane.policy.endpoints import Backend
from dataplane.policy.routes import Action, Routes, Scope


class Column(NamedTuple):
    """Elements of one target: keys and values (see netlink.fields) in the same order."""

    target: str
    keys: Sequence[bytes]
    values: Sequence[bytes]


class Columns(NamedTuple):
    """What a number of entries needs. own: elements of one entry each. shared: keys of elements without a value, by
    target, one for each use. references: shapes in use, with how often."""

    own: list[Column]
    shared: dict[str, list[bytes]]
    references: Counter[Reference]


class _Way(NamedTuple):
    """How plain frontends with equal routes and equally large sets are forwarded. routes: kept alive, because their
    identity is looked up. action: value of a frontend's element. balanced: to the Cluster set, else refused."""

    routes: Routes
    action: bytes
    balanced: bool
    references: tuple[Reference, ...]


class _Kind:
    """Columns of one kind of frontend, a row for each frontend: its address (none for a node port), protocol and port,
    value, and the backends that it forwards to."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.ends: list[bytes] = []
        self.values: list[bytes] = []
        self.members: list[Sequence[Backend]] = []


class PlainEntries:
    """Collects plain entries of one family: without affinity, source ranges, ways that depend on the source, a Local
    set in use, or more backends than usual."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._ways: dict[tuple[int, FrontendKind, bool, int, int], _Way | None] = {}
        self._ends: dict[tuple[int, int], bytes] = {}
        self._clear()

    def _clear(self) -> None:
        self._services, self._nodeports = _Kind(), _Kind()
        self._cluster_ips: list[int] = []
        self._hairpin: list[str] = []
        self._used: Counter[int] = Counter()

    def add(self, entry: PlanEntry) -> int:
        """Add an entry and return about how many elements it has; 0, and nothing is added, if it is not plain."""
        cluster, local = entry.cluster, entry.local
        if entry.affinity_seconds or len(cluster) > len(INDEXES):
            return 0
        found: list[_Way] = []
        for frontend in entry.frontends:
            sort = (id(frontend.routes), frontend.kind, not frontend.key.address, len(cluster), len(local))
            if sort not in self._ways:
                self._ways[sort] = self._way(entry, frontend)
            way = self._ways[sort]
            if way is None or frontend.source_ranges is not None:
                return 0
            found.append(way)
        name = entry.key.service
        if len(name) > COMMENT_LIMIT or not (name.isascii() and name.isprintable()) or '"' in name:
            return 0
        comment, size = name.encode(), 0
        for frontend, way in zip(entry.frontends, found, strict=True):
            members = cluster if way.balanced else ()
            self._frontend(frontend, way, comment, members)
            size += 2 + len(members)
        if found:
            here = [backend.address for backend in cluster if backend.local]
            if here or local or entry.unplaced:
                self._hairpin += {*here, *[b.address for b in local], *[b.address for b in entry.unplaced]}
        return size

    def _frontend(self, frontend: Frontend, way: _Way, comment: bytes, members: Sequence[Backend]) -> None:
        _, address, protocol, number_of_port = frontend.key
        kind = self._services if address else self._nodeports
        end = self._ends.get((protocol, number_of_port))
        if end is None:
            end = self._ends[protocol, number_of_port] = PROTOCOLS[protocol] + port(number_of_port)
        if frontend.kind is FrontendKind.CLUSTER_IP:
            self._cluster_ips.append(len(kind.ends))
        if address:
            kind.addresses.append(address)
        kind.ends.append(end)
        kind.values.append(way.action + comment)
        kind.members.append(members)
        self._used[id(way)] += 1

    def _way(self, entry: PlanEntry, frontend: Frontend) -> _Way | None:
        """None: frontends like this one are not plain."""
        pod = frontend.routes.pod
        if frontend.kind is FrontendKind.CLUSTER_IP and not frontend.key.address:
            return None
        if frontend.kind is not FrontendKind.CLUSTER_IP and pod.action is Action.FORWARD and not pod.masquerade:
            return None  # pods of other nodes may reach themselves through it (see seats.needs_hairpin_everywhere)
        forwarding = self._compiler.forwarding(entry, frontend.routes, not frontend.key.address)
        if forwarding.by_source or Scope.LOCAL in forwarding.scopes:
            return None
        return _Way(frontend.routes, number(forwarding.first), bool(forwarding.scopes), forwarding.references)

    def take(self) -> Columns:
        """Return what was collected since the last time, and begin anew."""
        syntax, own = self._compiler.syntax, list[Column]()
        family = self._compiler.family.socket_family
        addresses = list(map(inet_pton, repeat(family), self._services.addresses))
        for kind, held, keys in (
            (syntax.services, self._services, list(map(add, addresses, self._services.ends))),
            (syntax.nodeports, self._nodeports, self._nodeports.ends),
        ):
            members = [backend for each in held.members for backend in each]
            targets = [key + at for key, each in zip(keys, held.members, strict=True) for at in INDEXES[: len(each)]]
            packed = map(inet_pton, repeat(family), [backend.address for backend in members])
            backends = list(map(add, packed, map(port, [backend.port for backend in members])))
            own.append(Column(self._compiler.target(kind.first), keys, held.values))
            own.append(Column(self._compiler.target(kind.endpoints), targets, backends))
        pairs = [packed * 2 for packed in map(inet_pton, repeat(family), self._hairpin)]
        shared = {
            self._compiler.target("cluster_ips"): [addresses[at] for at in self._cluster_ips],
            self._compiler.target("hairpin"): pairs,
        }
        references: Counter[Reference] = Counter()
        for way in self._ways.values():
            if way is not None and id(way) in self._used:
                references.update(dict.fromkeys(way.references, self._used[id(way)]))
        self._clear()
        return Columns(own, {target: keys for target, keys in shared.items() if keys}, references)
