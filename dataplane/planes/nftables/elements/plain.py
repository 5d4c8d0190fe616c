"""Compile entries of the plainest kind many at a time: nearly all that a whole load is made of.

The elements are those of `compile`, which looks at each of them for everything that a Service may have; here whole
columns of keys and values are made by functions that Python has in C. Entries of another kind are left to `compile`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, repeat
from operator import add, mul
from socket import inet_pton
from typing import NamedTuple

from dataplane.model.net import Protocol
from dataplane.plan.types import Frontend, FrontendKey, FrontendKind, PlanEntry
from dataplane.planes.nftables.elements.compile import INDEXES, PROTOCOLS, Compiler, Reference
from dataplane.planes.nftables.netlink.fields import cut, number, port, ports
from dataplane.planes.nftables.rules.syntax import COMMENT_LIMIT, Kind
from dataplane.policy.endpoints import Backend
from dataplane.policy.routes import Action, Routes, Scope

_INDEXES, _INDEX = b"".join(INDEXES), len(INDEXES[0])
"""Numbers of backends laid end to end, and the bytes of one."""


class Column(NamedTuple):
    """Elements of one target: keys and values (see netlink.fields) in the same order."""

    target: str
    keys: Sequence[bytes]
    values: Sequence[bytes]


class Endpoints(NamedTuple):
    """Elements of one target that lead to backends, in their order, each part of theirs laid end to end. keys: of the
    frontend; indexes: in its set; addresses, ports: of the backend."""

    target: str
    keys: bytes
    indexes: bytes
    addresses: bytes
    ports: bytes

    def parts(self) -> tuple[int, Sequence[bytes], Sequence[bytes]]:
        """Return how many there are, and the parts of their keys and values."""
        return len(self.indexes) // _INDEX, (self.keys, self.indexes), (self.addresses, self.ports)

    def column(self) -> Column:
        """Return the same as single keys and values."""
        count, *parts = self.parts()
        keys, values = (list(map(add, *(cut(part, count) for part in pair))) for pair in parts)
        return Column(self.target, keys, values)


class Columns(NamedTuple):
    """What a number of entries needs. own: elements of one entry each, those of frontends and those of their backends.
    shared: keys of elements without a value, by target, one for each use. references: shapes in use, with how often."""

    own: list[tuple[Column, Endpoints]]
    shared: dict[str, list[bytes]]
    references: Counter[Reference]


class _Way(NamedTuple):
    """How plain frontends with equal routes and equally large sets are forwarded. routes: kept alive, because their
    identity is looked up. action: value of a frontend's element. balanced: to the Cluster set, else refused.
    cluster_ip: their addresses are clusterIPs."""

    routes: Routes
    action: bytes
    balanced: bool
    cluster_ip: bool
    references: tuple[Reference, ...]


_Row = tuple[FrontendKey, _Way, bytes, Sequence[Backend]]
"""A frontend, how it is forwarded, the comment of its element, and its backends. A plain tuple, for its speed."""


class _Ends(dict[tuple[Protocol, int], bytes]):
    """Keys of frontends behind the address, by protocol and port."""

    def __missing__(self, key: tuple[Protocol, int]) -> bytes:
        end = self[key] = PROTOCOLS[key[0]] + port(key[1])
        return end


class PlainEntries:
    """Collects plain entries of one family: without affinity, weights, source ranges, ways that depend on the source, a
    Local set in use, or more backends than usual."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._ways: dict[tuple[int, FrontendKind, bool, int, int], _Way | None] = {}
        self._ends = _Ends()
        self._clear()

    def _clear(self) -> None:
        self._services: list[_Row] = []
        self._nodeports: list[_Row] = []
        self._hairpin: list[str] = []

    def add(self, entry: PlanEntry) -> int:
        """Add an entry and return about how many elements it has; 0, and nothing is added, if it is not plain."""
        cluster, local, ways = entry.cluster, entry.local, self._ways
        count = len(cluster)
        if entry.affinity_seconds or entry.weighted or count > len(INDEXES):
            return 0
        found: list[_Way] = []
        for frontend in entry.frontends:
            sort = (id(frontend.routes), frontend.kind, frontend.key[1] == "", count, len(local))
            if sort not in ways:
                ways[sort] = self._way(entry, frontend)
            way = ways[sort]
            if way is None or frontend.source_ranges is not None:
                return 0
            found.append(way)
        name = entry.key.service
        if not found or len(name) > COMMENT_LIMIT or not (name.isascii() and name.isprintable()) or '"' in name:
            return 0
        comment, size = name.encode(), 0
        for frontend, way in zip(entry.frontends, found, strict=True):
            rows = self._services if frontend.key[1] else self._nodeports
            rows.append((frontend.key, way, comment, cluster if way.balanced else ()))
            size += 2 + count
        here = [backend.address for backend in cluster if backend.local]
        if here or local or entry.unplaced:
            self._hairpin += {*here, *[b.address for b in local], *[b.address for b in entry.unplaced]}
        return size

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
        is_cluster_ip = frontend.kind is FrontendKind.CLUSTER_IP
        action, balanced = number(forwarding.first), bool(forwarding.scopes)
        return _Way(frontend.routes, action, balanced, is_cluster_ip, forwarding.references)

    def take(self) -> Columns:
        """Return what was collected since the last time, and begin anew."""
        syntax, target = self._compiler.syntax, self._compiler.target
        rows, pack = self._services, partial(map, inet_pton, repeat(self._compiler.family.socket_family))
        addresses = list(pack([key[1] for key, _, _, _ in rows]))
        ends = [self._ends[key[2:]] for key, _, _, _ in rows]
        own = [self._columns(syntax.services, list(map(add, addresses, ends)), rows, pack)]
        ends = [self._ends[key[2:]] for key, _, _, _ in self._nodeports]
        own += [self._columns(syntax.nodeports, ends, self._nodeports, pack)]
        shared = {
            target("cluster_ips"): [packed for packed, row in zip(addresses, rows, strict=True) if row[1].cluster_ip],
            target("hairpin"): [packed * 2 for packed in pack(self._hairpin)],
        }
        used = Counter([id(way) for _, way, _, _ in (*rows, *self._nodeports)])
        references: Counter[Reference] = Counter()
        for way in self._ways.values():
            if way is not None and id(way) in used:
                references.update(dict.fromkeys(way.references, used[id(way)]))
        self._clear()
        return Columns(own, {name: keys for name, keys in shared.items() if keys}, references)

    def _columns(
        self, kind: Kind, keys: list[bytes], rows: list[_Row], pack: Callable[[list[str]], Iterable[bytes]]
    ) -> tuple[Column, Endpoints]:
        """Return the frontends' own elements and those of their backends."""
        target, counts = self._compiler.target, [len(each) for _, _, _, each in rows]
        values = [way.action + comment for _, way, comment, _ in rows]
        members = list(chain.from_iterable([each for _, _, _, each in rows]))
        endpoints = Endpoints(
            target(kind.endpoints),
            b"".join(map(mul, keys, counts)),
            b"".join([_INDEXES[: _INDEX * count] for count in counts]),
            b"".join(pack([backend.address for backend in members])),
            ports([backend.port for backend in members]),
        )
        return Column(target(kind.first), keys, values), endpoints
