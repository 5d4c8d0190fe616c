"""Endpoints of a large Service port, merged slice by slice: the rules of `endpoints`, incrementally.

An event brings one slice of perhaps hundreds. The endpoints of the slice are compared with those it had before, and
only addresses that differ are processed. The sets are rebuilt from all endpoints only if the rule that picks them
changes: the first ready endpoint comes, the last one goes, or hints begin or cease to apply.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import NamedTuple

from dataplane.model.objects import Endpoint, EndpointSlice
from dataplane.policy.difference import Backends, at_address, difference, is_in, realigned, spliced
from dataplane.policy.endpoints import Backend, BackendSets, most_useful
from dataplane.policy.limit import Limit

_Address = tuple[str, int]
_BySlice = tuple[tuple[str, Endpoint], ...]
"""Endpoints with one address: (slice's name, endpoint), by name, then in the order of the slice."""

_Picks = Callable[[Endpoint], bool]


def _nobody(_: Endpoint) -> bool:
    return False


def _is_ready(endpoint: Endpoint) -> bool:
    return endpoint.traits.ready


def _is_draining(endpoint: Endpoint) -> bool:
    return endpoint.traits.serving and endpoint.traits.terminating and not endpoint.traits.ready


def _weighted(picks: "_Picks") -> "_Picks":
    """Return the predicate for those of them that are not drained."""
    return lambda endpoint: endpoint.traits.weight > 0 and picks(endpoint)


def _backend(key: "_Address", endpoint: Endpoint, here: str | None) -> Backend:
    return Backend(*key, endpoint.traits.node == here, endpoint.traits.weight or 1)


class _Usable:
    """Number of endpoints that a set may consist of. drained, drained_terminating: those of weight 0, which are not
    among the others."""

    def __init__(self) -> None:
        self.ready = self.terminating = self.drained = self.drained_terminating = 0

    def add(self, endpoint: Endpoint, times: int) -> None:
        """Count an endpoint as often; -1 = stop counting it."""
        weighs = endpoint.traits.weight > 0
        if endpoint.traits.ready:
            self.ready += times * weighs
            self.drained += times * (not weighs)
        elif _is_draining(endpoint):
            self.terminating += times * weighs
            self.drained_terminating += times * (not weighs)

    @property
    def rule(self) -> str:
        """The rule that picks the set, of those that find somebody."""
        if self.ready:
            return "ready"
        if self.drained:
            return "drained"
        return "draining" if self.terminating else "drained and draining" if self.drained_terminating else ""


class _Counts:
    """Number of endpoints of each kind that decides between rules; duplicates count once. hinted, for: of those that
    are ready and not drained. weighted: of all, those with another weight than 0 and 1."""

    def __init__(self, node: str, zone: str) -> None:
        self._node, self._zone = node, zone
        self.everywhere, self.here = _Usable(), _Usable()
        self.node_hinted = self.for_node = self.zone_hinted = self.for_zone = self.weighted = 0

    def add(self, endpoint: Endpoint, times: int) -> None:
        """Count an endpoint (times 1), or stop counting it (-1)."""
        self.everywhere.add(endpoint, times)
        if self._node and endpoint.traits.node == self._node:
            self.here.add(endpoint, times)
        self.weighted += times * (endpoint.traits.weight > 1)
        if not (endpoint.traits.ready and endpoint.traits.weight):
            return
        if endpoint.traits.node_hints:
            self.node_hinted += times
            self.for_node += times * (self._node in endpoint.traits.node_hints)
        if endpoint.traits.zone_hints:
            self.zone_hinted += times
            self.for_zone += times * (self._zone in endpoint.traits.zone_hints)


class _Rule(NamedTuple):
    """The rules that pick the endpoints of the sets. topology: see BackendSets."""

    cluster: str
    local: str
    topology: str


class _Doubted(NamedTuple):
    """Cached result of `doubted`: at which call of `sets`, and for which set."""

    looks: int = -1
    knowledge: Hashable = None
    cluster: Backends = ()
    found: Backends = ()


class _Tunnelled(NamedTuple):
    """Cached result of `tunnels`: at which call of `sets`, and for which set and ways."""

    looks: int = -1
    knowledge: Hashable = None
    cluster: Backends = ()
    found: tuple[str, ...] = ()


class MergedEndpoints:
    """Every endpoint of one Service port in one family.

    port: returns the port number in a slice, None if the slice does not have the port. slices: all slices of the
    Service in the family. node, zone: of this node. most: limit of backends in a set, 0 = no limit.
    """

    def __init__(
        self,
        port: Callable[[EndpointSlice], int | None],
        slices: Iterable[EndpointSlice],
        node: str,
        zone: str,
        most: int = 0,
    ) -> None:
        self._port, self._node, self._zone = port, node, zone
        self._by_slice: dict[_Address, _BySlice] = {}
        self._chosen: dict[_Address, Endpoint] = {}
        self._here: dict[_Address, Endpoint] = {}  # those of them on this node
        self._touched: dict[_Address, Endpoint | None] = {}  # what was chosen at the last call of `sets`
        self._counts = _Counts(node, zone)
        self._rule = _Rule("", "", "")
        self._sets, self._lingering = BackendSets(), Backends()
        self._whole = self._sets  # as they would be without a limit
        self._limits = Limit(most, node), Limit(most, node)
        self._looks = 0
        self._looked_at: frozenset[_Address] = frozenset()  # touched before the last call of `sets`
        self._doubted = _Doubted()
        self._tunnelled = _Tunnelled()
        self._on_nodes: Counter[str] | None = None  # once somebody asks
        for endpoint_slice in slices:
            self.replace(None, endpoint_slice)

    def replace(self, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        """Process an added, changed or removed slice. Both have the same name."""
        before, after = self._by_address(old), self._by_address(new)
        for address, endpoints in after.items():
            if before.get(address) != endpoints:
                self._set_endpoints(address, new.name if new else "", endpoints)
        for address in before:
            if address not in after:
                self._set_endpoints(address, old.name if old else "", ())

    def _by_address(self, endpoint_slice: EndpointSlice | None) -> dict[_Address, tuple[Endpoint, ...]]:
        port = self._port(endpoint_slice) if endpoint_slice is not None else None
        if endpoint_slice is None or port is None:
            return {}
        found: dict[_Address, tuple[Endpoint, ...]] = {(e.address, port): (e,) for e in endpoint_slice.endpoints}
        if len(found) < len(endpoint_slice.endpoints):
            found = {}
            for endpoint in endpoint_slice.endpoints:
                key = (endpoint.address, port)
                found[key] = (*found.get(key, ()), endpoint)
        return found

    def _set_endpoints(self, address: _Address, name: str, endpoints: tuple[Endpoint, ...]) -> None:
        """Set the endpoints that a slice has for an address."""
        known = tuple([each for each in self._by_slice.get(address, ()) if each[0] != name])
        known += tuple([(name, endpoint) for endpoint in endpoints])
        if len(known) > 1:
            known = tuple(sorted(known, key=lambda each: each[0]))
        old = self._chosen.get(address)
        if known:
            self._by_slice[address] = known
            new = self._chosen[address] = most_useful([endpoint for _, endpoint in known], self._node)
            self._counts.add(new, 1)
        else:
            new = None
            self._by_slice.pop(address, None)
            self._chosen.pop(address, None)
        if new is not None and new.traits.node == self._node:
            self._here[address] = new
        else:
            self._here.pop(address, None)
        if old is not None:
            self._counts.add(old, -1)
        if self._on_nodes is not None:
            self._count_nodes(self._on_nodes, old, new)
        self._touched.setdefault(address, old)

    def _rule_now(self) -> _Rule:
        counts = self._counts
        cluster, local, ready = counts.everywhere.rule, counts.here.rule, counts.everywhere.ready
        if ready and self._node and counts.for_node and counts.node_hinted == ready:
            return _Rule("forNodes", local, "forNodes")
        if ready and self._zone and counts.for_zone and counts.zone_hinted == ready:
            return _Rule("forZones", local, "forZones")
        return _Rule(cluster, local, "")

    def _picks(self, rule: _Rule) -> tuple[_Picks, _Picks]:
        """Return the predicates of the Cluster and the Local set."""
        node, zone = self._node, self._zone
        kinds: dict[str, _Picks] = {
            "": _nobody,
            "ready": _weighted(_is_ready),
            "drained": _is_ready,
            "draining": _weighted(_is_draining),
            "drained and draining": _is_draining,
            "forNodes": _weighted(lambda e: e.traits.ready and node in (e.traits.node_hints or ())),
            "forZones": _weighted(lambda e: e.traits.ready and zone in (e.traits.zone_hints or ())),
        }
        local = kinds[rule.local]
        return kinds[rule.cluster], lambda e: e.traits.node == node and local(e)

    def margin(self) -> int:
        """Return the least number of changed endpoints that can change the rule of the Cluster set, which makes `sets`
        look at every endpoint."""
        if self._rule.cluster != "ready" or self.limited:
            return 0
        counts = self._counts
        return counts.everywhere.ready - max(counts.node_hinted, counts.zone_hinted)

    def sets(self, *, lingering: bool) -> tuple[BackendSets, Backends]:
        """Return both sets and the lingering endpoints (see endpoints.lingering; () if not requested).

        Unchanged backends are the same objects as at the last call. O(what changed), except for sets whose rule has
        changed.
        """
        rule, before = self._rule_now(), self._rule
        in_cluster, in_local = self._picks(rule)

        def lingers(e: Endpoint) -> bool:
            return (e.traits.ready or e.traits.serving) and not in_cluster(e) and not in_local(e)

        same_cluster, same_local = rule.cluster == before.cluster, rule.local == before.local
        cluster, local = self._whole.cluster, self._whole.local
        cluster = self._updated(cluster, in_cluster) if same_cluster else self._made(cluster, in_cluster, self._chosen)
        local = self._updated(local, in_local) if same_local else self._made(local, in_local, self._here)
        self._rule, self._whole = rule, BackendSets(cluster, local)
        within = (limit.keep(members) for limit, members in zip(self._limits, (cluster, local), strict=True))
        cluster, local = within
        if not lingering:
            self._lingering = ()
        elif same_cluster and same_local and not self.limited:
            self._lingering = self._updated(self._lingering, lingers)
        else:
            serving = self._made((), lambda e: e.traits.ready or e.traits.serving, self._chosen)
            removed, _ = difference(serving, tuple(sorted({*cluster, *local})))
            self._lingering = tuple(removed)
        self._looked_at, self._touched = frozenset(self._touched), {}
        self._looks += 1
        self._sets = BackendSets(
            cluster,
            local,
            rule.topology,
            rule.cluster.endswith("draining"),
            rule.local.endswith("draining"),
            self._counts.weighted > 0,
        )
        return self._sets, self._lingering

    def doubted(self, doubtful: Callable[[str], bool], knowledge: Hashable) -> Backends:
        """Return the backends of the last Cluster set that are not local and have an endpoint with a doubtful nodeName;
        the set itself if that is all of them.

        knowledge: equal as long as `doubtful` gives the same results. Then it is O(what changed), if it was also called
        after the previous call of `sets`.
        """
        cluster, before = self._sets.cluster, self._doubted
        if (before.looks, before.knowledge) == (self._looks, knowledge):
            return before.found
        known = (before.looks, before.knowledge) == (self._looks - 1, knowledge)
        about: Iterable[Backend] = cluster
        if known:
            differ = difference(before.cluster, cluster)
            looked_at = (b for address, port in self._looked_at for b in at_address(cluster, address) if b.port == port)
            about = {*looked_at, *differ.removed, *differ.added}
        doubted = [
            backend
            for backend in about
            if not backend.local
            and (not known or is_in(cluster, backend))
            and any(doubtful(endpoint.traits.node) for _, endpoint in self._by_slice[backend.address, backend.port])
        ]
        if known:
            found = spliced(before.found, [b for b in about if is_in(before.found, b)], doubted)
        else:
            found = tuple(doubted)
        if len(found) == len(cluster):
            found = cluster
        self._doubted = _Doubted(self._looks, knowledge, cluster, found)
        return found

    @staticmethod
    def _count_nodes(counts: Counter[str], old: Endpoint | None, new: Endpoint | None) -> None:
        if new is not None:
            counts[new.traits.node] += 1
        if old is not None:
            counts[old.traits.node] -= 1
            if not counts[old.traits.node]:
                del counts[old.traits.node]

    @property
    def nodes(self) -> Collection[str]:
        """The names of the nodes that have endpoints, in any condition. O(endpoints) when first asked for."""
        if self._on_nodes is None:
            self._on_nodes = Counter(endpoint.traits.node for endpoint in self._chosen.values())
        return self._on_nodes.keys()

    def tunnels(self, ways: Mapping[str, str], knowledge: Hashable) -> tuple[str, ...]:
        """Return, aligned with the last Cluster set, what `ways` has for the node of each backend that is not local;
        "" where it has nothing.

        knowledge: equal as long as `ways` is. Then it is O(what changed), if it was also called after the previous
        call of `sets`.
        """
        cluster, before = self._sets.cluster, self._tunnelled
        if (before.looks, before.knowledge) == (self._looks, knowledge):
            return before.found

        def way(backend: Backend) -> str:
            if backend.local:
                return ""
            return ways.get(self._chosen[backend.address, backend.port].traits.node, "")

        if (before.looks, before.knowledge) == (self._looks - 1, knowledge):
            order = realigned(before.found, before.cluster, cluster, way)
            for key in self._looked_at:
                at = bisect_left(cluster, Backend(*key))
                if at < len(cluster) and (cluster[at].address, cluster[at].port) == key:
                    order[at] = way(cluster[at])
            found = tuple(order)
        else:
            found = tuple(map(way, cluster))
        self._tunnelled = _Tunnelled(self._looks, knowledge, cluster, found)
        return found

    @property
    def limited(self) -> bool:
        """True if a set was above its limit at the last call of `sets`."""
        return any(limit.reached for limit in self._limits)

    def _made(self, before: Backends, picks: _Picks, among: dict[_Address, Endpoint]) -> Backends:
        """Build a set from all endpoints."""
        here = self._node or None
        kept = {backend: backend for backend in before}
        made = [_backend(key, e, here) for key, e in among.items() if picks(e)]
        made.sort()
        return tuple([kept.get(backend, backend) for backend in made] if kept else made)

    def _updated(self, members: Backends, picks: _Picks) -> Backends:
        """Update a set by the touched endpoints, if its rule is unchanged."""
        here = self._node or None
        removed, added = [], []
        for key, old in self._touched.items():
            now = self._chosen.get(key)
            before = _backend(key, old, here) if old is not None and picks(old) else None
            after = _backend(key, now, here) if now is not None and picks(now) else None
            if before != after:
                removed += [before] if before is not None else []
                added += [after] if after is not None else []
        return spliced(members, removed, added) if removed or added else members
