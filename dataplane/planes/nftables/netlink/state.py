"""Read one of hotplane's tables from the kernel, as elements and names, and in the plan's terms."""

from collections import defaultdict

import msgspec

from dataplane.model.net import Family, Protocol
from dataplane.plan.types import FrontendKey, Row, SourceRanges
from dataplane.planes.nftables.elements.placement import Address, Placement
from dataplane.planes.nftables.netlink.fields import address_of, number_of, port_of
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.rules.shapes import Masquerade, Shape, ShapeIds, shape_of
from dataplane.planes.nftables.rules.syntax import (
    BY_SOURCE_ACTION,
    DROP_ACTION,
    LOCAL_OFFSET,
    REJECT_ACTION,
    RESTRICTED_ACTION,
    VERSION_CHAIN,
    Kind,
    Syntax,
)
from dataplane.policy.routes import DROP, REJECT, Action, Route, Routes, Scope


class TableState(msgspec.Struct):
    """One table as the kernel holds it. elements: by the name of their set or map; to what clients and the node's
    settings fill, there are none here. rules: number of rules of each chain. sets: names of all sets and maps."""

    elements: dict[str, dict[bytes, bytes]] = {}
    rules: dict[str, int] = {}
    sets: set[str] = set()

    @property
    def current(self) -> bool:
        """True if the table has this version's skeleton."""
        return VERSION_CHAIN in self.rules


def table_state(syntax: Syntax, store: ElementStore) -> TableState:
    """Read one table that exists. The elements of a table of another version are left out. Raises PlaneError."""
    sets = store.sets(syntax.own)
    state = TableState(rules=store.chains(syntax.own), sets=set(sets))
    if state.current:
        for name, dynamic in sets.items():
            if not dynamic and name != "service_cidrs":
                state.elements[name] = store.elements(syntax.target(name))
    return state


def shape_ids(state: TableState) -> ShapeIds:
    """Return the numbers of shapes that a table uses."""
    ids = ShapeIds()
    for key, name in state.elements.get("shapes", {}).items():
        shape = shape_of(name.decode())
        if shape is not None and number_of(key) > 0:
            ids.adopt(shape, number_of(key))
    return ids


def _address(data: bytes) -> Address:
    return address_of(data[:-4]), port_of(data[-4:])


class TableReader:
    """Reads a `TableState` in the plan's terms, as it is now: later changes of the state do not show."""

    def __init__(self, syntax: Syntax, family: Family, state: TableState) -> None:
        self._syntax = syntax
        self._family = family
        self._state = state
        self._maps: dict[str, dict[bytes, bytes]] = defaultdict(dict, state.elements)
        # What stands behind each frontend: index to backend or to slot number, in maps of those alone.
        self._indexes: dict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
        self._slots: dict[bool, dict[bytes, dict[int, bytes]]] = {
            False: defaultdict(dict),
            True: defaultdict(dict),
        }
        for kind in (syntax.services, syntax.nodeports):
            self._gather(kind)
        self._cidrs: dict[bytes, list[str]] = defaultdict(list)
        width = syntax.bits // 8
        for name, elements in self._maps.items():
            if name.startswith("ranges-"):
                for key in elements:
                    self._cidrs[key[:-width]].append(f"{address_of(key[-width:])}/{name.removeprefix('ranges-')}")

    def _gather(self, kind: Kind) -> None:
        for name in (kind.endpoints, kind.slots):
            for key, data in self._maps[name].items():
                self._indexes[key[:-4]].append((number_of(key[-4:]), data))
        for local, name in ((False, kind.slot_endpoints), (True, kind.local_slot_endpoints)):
            for key, data in self._maps[name].items():
                self._slots[local][key[:-4]][number_of(key[-4:])] = data

    def _shape(self, action: bytes, broken: set[str]) -> Shape | None:
        name = self._maps["shapes"].get(action, b"").decode()
        return None if name in broken or name not in self._state.rules else shape_of(name)

    def _routes(self, kind: Kind, key: bytes, action: bytes, broken: set[str]) -> tuple[Routes, int] | None:
        """Return the routes and affinity of a frontend's action; None if a chain or an element is missing."""
        actions = [action] * 3
        if number_of(action) == BY_SOURCE_ACTION:
            actions = [self._maps[name].get(key, b"") for name in (kind.pod, kind.node, kind.outside)]
        routes: list[Route] = []
        affinity = 0
        for position, data in enumerate(actions):
            if data and number_of(data) in (DROP_ACTION, REJECT_ACTION):
                routes.append(DROP if number_of(data) == DROP_ACTION else REJECT)
                continue
            shape = self._shape(data, broken)
            if shape is None:
                return None
            masquerade = shape.masquerade is Masquerade.EVERYBODY or (
                shape.masquerade is Masquerade.OFF_POD and position > 0
            )
            routes.append(Route(Action.FORWARD, Scope.LOCAL if shape.local else Scope.CLUSTER, masquerade))
            affinity = shape.affinity
        return Routes(*routes), affinity

    def order(self, key: bytes) -> Placement:
        """Return the placement of a frontend's backends, as far as the kernel holds them."""
        orders: dict[bool, list[Address]] = {False: [], True: []}
        slots = {local: self._slots[local].get(key, {}) for local in (False, True)}
        for index, data in sorted(self._indexes.get(key, ())):
            local = index >= LOCAL_OFFSET
            backend = data if len(data) > 4 else slots[local].get(number_of(data), b"")
            if backend:
                orders[local].append(_address(backend))
        found = {_address(backend): slot for slot, backend in (slots[False] | slots[True]).items()}
        return Placement(tuple(orders[False]), tuple(orders[True]), found)

    def frontends(self) -> dict[bytes, FrontendKey]:
        """Return every frontend in the first maps, by its key there."""
        found = {}
        for nodeport in (False, True):
            for key in self._maps[self._syntax.kind(nodeport).first]:
                address = "" if nodeport else address_of(key[:-8])
                found[key] = FrontendKey(self._family, address, Protocol(key[-8]), port_of(key[-4:]))
        return found

    def holds(self, key: bytes) -> bool:
        """True if there is a frontend of that key."""
        return key in self._maps[self._kind(key).first]

    def _kind(self, key: bytes) -> Kind:
        return self._syntax.kind(len(key) == 8)

    def service(self, key: bytes) -> str:
        """`namespace/name:port` that a frontend belongs to, from its comment."""
        kind = self._kind(key)
        return (self._maps[kind.first][key][4:] + self._maps[kind.long_names].get(key, b"")).decode()

    def rows(self, broken: set[str]) -> dict[FrontendKey, Row]:
        """Return every frontend as a row, without those that use a `broken` chain."""
        table = {}
        for key, frontend in self.frontends().items():
            row = self._row(key, broken)
            if row is not None:
                table[frontend] = row
        return table

    def _row(self, key: bytes, broken: set[str]) -> Row | None:
        kind = self._kind(key)
        action = self._maps[kind.first][key][:4]
        restricted = number_of(action) == RESTRICTED_ACTION
        if restricted:
            if key not in self._maps["restricted"] or "restricted" in broken:
                return None
            action = self._maps["restricted"][key]
        result = self._routes(kind, key, action, broken)
        if result is None:
            return None
        routes, affinity = result
        placement = self.order(key)
        ranges = None
        if restricted:
            ranges = SourceRanges(tuple(sorted(self._cidrs.get(key, ()))))
        return Row(
            service=self.service(key),
            routes=routes,
            cluster=tuple(sorted(placement.cluster)),
            local=tuple(sorted(placement.local)),
            affinity_seconds=affinity,
            source_ranges=ranges,
        )
