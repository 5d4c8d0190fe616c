"""The endpoints of a Service port with many of them, kept up slice by slice: the rules of `endpoints`, incrementally.

An event brings one slice of perhaps hundreds. What it says of an address is compared with what the slice said before,
and only addresses of which it says something else are looked at again. The sets are made anew from all endpoints only
where the rule changes that picks them: the first ready endpoint, the last, hints that begin or cease to apply.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from dataplane.model.objects import Endpoint, EndpointSlice
from dataplane.policy.difference import Backends, spliced
from dataplane.policy.endpoints import Backend, BackendSets, most_useful

_Address = tuple[str, int]
_Said = tuple[tuple[str, Endpoint], ...]
"""What slices say of an address: (slice's name, endpoint), by name, then as they stand there."""

_Picks = Callable[[Endpoint], bool]


def _nobody(_: Endpoint) -> bool:
    return False


def _is_ready(endpoint: Endpoint) -> bool:
    return endpoint.ready


def _is_draining(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating and not endpoint.ready


class _Counts:
    """How many endpoints there are of each kind that decides between rules; duplicates count once."""

    def __init__(self, node: str, zone: str) -> None:
        self._node, self._zone = node, zone
        self.ready = self.draining = self.ready_here = self.draining_here = 0
        self.node_hinted = self.for_node = self.zone_hinted = self.for_zone = 0

    def add(self, endpoint: Endpoint, times: int) -> None:
        """Count an endpoint, or count it no more (-1)."""
        here = bool(self._node) and endpoint.node == self._node
        if _is_draining(endpoint):
            self.draining += times
            self.draining_here += times * here
        if not endpoint.ready:
            return
        self.ready += times
        self.ready_here += times * here
        if endpoint.node_hints:
            self.node_hinted += times
            self.for_node += times * (self._node in endpoint.node_hints)
        if endpoint.zone_hints:
            self.zone_hinted += times
            self.for_zone += times * (self._zone in endpoint.zone_hints)


class _Rule(NamedTuple):
    """Which endpoints are in the sets now. topology: see BackendSets."""

    cluster: str
    local: str
    topology: str


class MergedEndpoints:
    """Every endpoint of one Service port in one family.

    port: gives the port number that a slice has for it, None where the slice has none. slices: all of its Service, of
    the family. node, zone: where this is.
    """

    def __init__(
        self, port: Callable[[EndpointSlice], int | None], slices: Iterable[EndpointSlice], node: str, zone: str
    ) -> None:
        self._port, self._node, self._zone = port, node, zone
        self._said: dict[_Address, _Said] = {}
        self._chosen: dict[_Address, Endpoint] = {}
        self._touched: dict[_Address, Endpoint | None] = {}  # what was chosen at the last look
        self._counts = _Counts(node, zone)
        self._rule = _Rule("", "", "")
        self._sets, self._lingering = BackendSets(), Backends()
        for piece in slices:
            self.replace(None, piece)

    def __len__(self) -> int:
        """How many endpoints there are, duplicates left out."""
        return len(self._chosen)

    def replace(self, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        """A slice appeared, changed or went. Both have the same name."""
        before, after = self._by_address(old), self._by_address(new)
        for address, said in after.items():
            if before.get(address) != said:
                self._say(address, new.name if new else "", said)
        for address in before:
            if address not in after:
                self._say(address, old.name if old else "", ())

    def _by_address(self, piece: EndpointSlice | None) -> dict[_Address, tuple[Endpoint, ...]]:
        port = self._port(piece) if piece is not None else None
        if piece is None or port is None:
            return {}
        found: dict[_Address, tuple[Endpoint, ...]] = {(e.address, port): (e,) for e in piece.endpoints}
        if len(found) < len(piece.endpoints):
            found = {}
            for endpoint in piece.endpoints:
                key = (endpoint.address, port)
                found[key] = (*found.get(key, ()), endpoint)
        return found

    def _say(self, address: _Address, name: str, endpoints: tuple[Endpoint, ...]) -> None:
        """A slice says this of an address from now on."""
        said = tuple([each for each in self._said.get(address, ()) if each[0] != name])
        said += tuple([(name, endpoint) for endpoint in endpoints])
        if len(said) > 1:
            said = tuple(sorted(said, key=lambda each: each[0]))
        old = self._chosen.get(address)
        if said:
            self._said[address] = said
            new = self._chosen[address] = most_useful([endpoint for _, endpoint in said], self._node)
            self._counts.add(new, 1)
        else:
            self._said.pop(address, None)
            self._chosen.pop(address, None)
        if old is not None:
            self._counts.add(old, -1)
        self._touched.setdefault(address, old)

    def _rule_now(self) -> _Rule:
        counts = self._counts
        local = "ready" if counts.ready_here else "draining" if counts.draining_here else ""
        if not counts.ready:
            return _Rule("draining" if counts.draining else "", local, "")
        if self._node and counts.for_node and counts.node_hinted == counts.ready:
            return _Rule("forNodes", local, "forNodes")
        if self._zone and counts.for_zone and counts.zone_hinted == counts.ready:
            return _Rule("forZones", local, "forZones")
        return _Rule("ready", local, "")

    def _picks(self, rule: _Rule) -> tuple[_Picks, _Picks]:
        """Which endpoints are in the Cluster and in the Local set."""
        node, zone = self._node, self._zone
        kinds: dict[str, _Picks] = {
            "": _nobody,
            "ready": _is_ready,
            "draining": _is_draining,
            "forNodes": lambda e: e.ready and node in (e.node_hints or ()),
            "forZones": lambda e: e.ready and zone in (e.zone_hints or ()),
        }
        local = kinds[rule.local]
        return kinds[rule.cluster], lambda e: e.node == node and local(e)

    def sets(self, *, lingering: bool) -> tuple[BackendSets, Backends]:
        """Both sets, and the endpoints that linger (see endpoints.lingering; () where nobody asks for them).

        Backends that were there at the last look are the same objects.
        """
        rule = self._rule_now()
        touched = self._touched if rule == self._rule else None
        in_cluster, in_local = self._picks(rule)

        def lingers(e: Endpoint) -> bool:
            return (e.ready or e.serving) and not in_cluster(e) and not in_local(e)

        cluster = self._updated(self._sets.cluster, in_cluster, touched)
        local = self._updated(self._sets.local, in_local, touched)
        self._lingering = self._updated(self._lingering, lingers, touched) if lingering else ()
        self._rule, self._touched = rule, {}
        self._sets = BackendSets(cluster, local, rule.topology, rule.cluster == "draining", rule.local == "draining")
        return self._sets, self._lingering

    def _updated(self, members: Backends, picks: _Picks, touched: dict[_Address, Endpoint | None] | None) -> Backends:
        """A set after what was touched; None: the rule is another one, everything counts."""
        here = self._node or None
        if touched is None:
            kept = {backend: backend for backend in members}
            made = [Backend(*key, e.node == here) for key, e in self._chosen.items() if picks(e)]
            made.sort()
            return tuple([kept.get(backend, backend) for backend in made])
        removed, added = [], []
        for key, old in touched.items():
            now = self._chosen.get(key)
            before = Backend(*key, old.node == here) if old is not None and picks(old) else None
            after = Backend(*key, now.node == here) if now is not None and picks(now) else None
            if before != after:
                removed += [before] if before is not None else []
                added += [after] if after is not None else []
        return spliced(members, removed, added) if removed or added else members
