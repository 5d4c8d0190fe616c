"""What the kernel holds in one of hotplane's tables, as elements and names, and in the plan's terms."""

from collections import defaultdict
from typing import NamedTuple

import msgspec

from dataplane.model.net import Family, Protocol
from dataplane.plan.types import FrontendKey, Row, SourceRanges
from dataplane.planes.nftables.elements import ElementId
from dataplane.planes.nftables.placement import Address, Placement
from dataplane.planes.nftables.shapes import Masquerade, Shape, ShapeIds, shape_of
from dataplane.planes.nftables.syntax import (
    BY_SOURCE_ID,
    DROP_ID,
    LOCAL_OFFSET,
    REJECT_ID,
    RESTRICTED_ID,
    VERSION_CHAIN,
    Kind,
    Syntax,
)
from dataplane.policy.routes import DROP, REJECT, Action, Route, Routes, Scope


class TableState(msgspec.Struct):
    """One table as the kernel lists it. elements: as in `elements.Compiled`. rules: number of rules of each chain."""

    elements: dict[ElementId, str] = {}
    rules: dict[str, int] = {}
    sets: set[str] = set()

    @property
    def current(self) -> bool:
        """Whether the table has this version's skeleton."""
        return VERSION_CHAIN in self.rules


def _element(text: str) -> tuple[str, str]:
    """(key, rest) of one listed element of a set or a map."""
    for separator in (' comment "', " : "):
        key, found, rest = text.partition(separator)
        if found:
            return key, found + rest
    return text, ""


class _Listing:
    """Reads the text that `list table` prints, line by line. libnftables' JSON of the same table takes three times as
    long and many times the memory."""

    def __init__(self, words: Syntax) -> None:
        self.state = TableState()
        self._words = words
        self._block = ""
        self._what = ""
        self._skip = False
        self._in_elements = False

    def line(self, line: str) -> None:
        """Take the next line, without the white space around it."""
        if self._in_elements or line.startswith("elements = {"):
            self._elements(line.removeprefix("elements = {"))
        elif line.endswith(" {") and line.startswith(("map ", "set ", "chain ")):
            self._what, self._block = line.split()[:2]
            self._skip = False
            if self._what == "chain":
                self.state.rules[self._block] = 0
            else:
                self.state.sets.add(self._block)
        elif line == "}":
            self._what = ""
        elif self._what == "chain" and line and not (line.startswith("type ") and " hook " in line):
            self.state.rules[self._block] += 1
        elif line.startswith("flags ") and "dynamic" in line:
            self._skip = True  # what clients wrote

    def _elements(self, text: str) -> None:
        self._in_elements = not text.endswith("}")
        if self._skip:
            return
        target = self._words.target(self._block)
        for part in text.rstrip("}").split(","):
            element = part.strip()
            if element:
                key, rest = _element(element)
                self.state.elements[(target, key)] = rest


def table_state(words: Syntax, listing: str) -> TableState:
    """Read the text of one table, protocols as numbers. What clients wrote (affinity) is left out."""
    reader = _Listing(words)
    for line in listing.splitlines():
        reader.line(line.strip())
    return reader.state


class _Held(NamedTuple):
    """A frontend's maps, gathered. `by_index`: index to backend or slot. `slots`: slot text to backend, by scope."""

    by_index: dict[int, str]
    slots: dict[str, str]
    local_slots: dict[str, str]


def _split(rest: str) -> tuple[str, str]:
    """(comment, data) of the rest of an element."""
    comment = ""
    if rest.startswith(' comment "'):
        comment, _, rest = rest.removeprefix(' comment "').partition('"')
    return comment, rest.removeprefix(" : ")


def _address(text: str) -> Address:
    address, _, port = text.partition(" . ")
    return address, int(port)


class TableReader:
    """Reads a `TableState` in the plan's terms."""

    def __init__(self, words: Syntax, family: Family, state: TableState) -> None:
        self._words = words
        self._family = family
        self._state = state
        self._maps: dict[str, dict[str, str]] = defaultdict(dict)
        for (target, key), rest in state.elements.items():
            self._maps[target.rpartition(" ")[2]][key] = rest
        self._held: dict[tuple[bool, str], _Held] = defaultdict(lambda: _Held({}, {}, {}))
        for nodeport in (False, True):
            self._gather(nodeport, words.kind(nodeport))
        self._cidrs: dict[str, list[str]] = defaultdict(list)
        for name, elements in self._maps.items():
            if name.startswith("ranges-"):
                for key in elements:
                    frontend, _, source = key.rpartition(" . ")
                    self._cidrs[frontend].append(f"{source}/{name.removeprefix('ranges-')}")

    def _gather(self, nodeport: bool, kind: Kind) -> None:
        for name in (kind.endpoints, kind.slots):
            for key, rest in self._maps[name].items():
                frontend, _, index = key.rpartition(" . ")
                self._held[(nodeport, frontend)].by_index[int(index[5:], 16)] = rest[3:]
        for key, rest in self._maps[kind.slot_endpoints].items():
            frontend, _, slot = key.rpartition(" . ")
            self._held[(nodeport, frontend)].slots[slot] = rest[3:]
        for key, rest in self._maps[kind.local_slot_endpoints].items():
            frontend, _, slot = key.rpartition(" . ")
            self._held[(nodeport, frontend)].local_slots[slot] = rest[3:]

    def _shape(self, way: str, broken: set[str]) -> Shape | None:
        name = self._maps["shapes"].get(way, "").removeprefix(" : goto ")
        return None if name in broken or name not in self._state.rules else shape_of(name)

    def shape_ids(self) -> ShapeIds:
        """The numbers of shapes that the table uses."""
        ids = ShapeIds()
        for key, rest in self._maps["shapes"].items():
            shape = shape_of(rest.removeprefix(" : goto "))
            if shape is not None and key.startswith("ffff:"):
                ids.adopt(shape, int(key[5:], 16))
        return ids

    def _routes(self, kind: Kind, key: str, way: str, broken: set[str]) -> tuple[Routes, int] | None:
        """Routes and affinity behind a frontend's way; None where a chain or an element is missing."""
        if way == BY_SOURCE_ID:
            ways = []
            for name in (kind.pod, kind.node, kind.outside):
                if key not in self._maps[name]:
                    return None
                ways.append(_split(self._maps[name][key])[1])
        else:
            ways = [way] * 3
        routes: list[Route] = []
        affinity = 0
        for position, text in enumerate(ways):
            if text in (DROP_ID, REJECT_ID):
                routes.append(DROP if text == DROP_ID else REJECT)
                continue
            shape = self._shape(text, broken)
            if shape is None:
                return None
            masquerade = shape.masquerade is Masquerade.EVERYBODY or (
                shape.masquerade is Masquerade.OFF_POD and position > 0
            )
            routes.append(Route(Action.FORWARD, Scope.LOCAL if shape.local else Scope.CLUSTER, masquerade))
            affinity = shape.affinity
        return Routes(*routes), affinity

    def order(self, nodeport: bool, key: str) -> Placement:
        """Where a frontend's backends stand now, as far as the kernel holds them."""
        held = self._held[(nodeport, key)]
        orders: dict[bool, list[Address]] = {False: [], True: []}
        for index, value in sorted(held.by_index.items()):
            local = index >= LOCAL_OFFSET
            backend = value
            if value.startswith("ffff:"):
                backend = (held.local_slots if local else held.slots).get(value, "")
            if backend:
                orders[local].append(_address(backend))
        slots = {_address(backend): int(slot[5:], 16) for slot, backend in (held.slots | held.local_slots).items()}
        return Placement(tuple(orders[False]), tuple(orders[True]), slots)

    def frontends(self) -> dict[tuple[bool, str], FrontendKey]:
        """Every frontend in the first maps: (node port?, key text) to its key."""
        found = {}
        for nodeport in (False, True):
            for key in self._maps[self._words.kind(nodeport).first]:
                parts = key.split(" . ")
                address = "" if nodeport else parts[0]
                found[(nodeport, key)] = FrontendKey(self._family, address, Protocol(int(parts[-2])), int(parts[-1]))
        return found

    def service(self, nodeport: bool, key: str) -> str:
        """`namespace/name:port` that a frontend belongs to, from its comment."""
        kind = self._words.kind(nodeport)
        return _split(self._maps[kind.first][key])[0] + _split(self._maps[kind.long_names].get(key, ""))[0]

    def rows(self, broken: set[str]) -> dict[FrontendKey, Row]:
        """Every frontend as a row. One whose chain is among the `broken` is left out: it does not work."""
        table = {}
        for (nodeport, key), frontend in self.frontends().items():
            row = self._row(nodeport, key, broken)
            if row is not None:
                table[frontend] = row
        return table

    def _row(self, nodeport: bool, key: str, broken: set[str]) -> Row | None:
        kind = self._words.kind(nodeport)
        way = _split(self._maps[kind.first][key])[1]
        restricted = way == RESTRICTED_ID
        if restricted:
            if key not in self._maps["restricted"] or "restricted" in broken:
                return None
            way = _split(self._maps["restricted"][key])[1]
        result = self._routes(kind, key, way, broken)
        if result is None:
            return None
        routes, affinity = result
        placement = self.order(nodeport, key)
        ranges = None
        if restricted:
            address = key.partition(" . ")[0]
            own = f"{address} . {key}" in self._maps["own_sources"]
            ranges = SourceRanges(tuple(sorted(self._cidrs.get(key, ()))), own)
        return Row(
            service=self.service(nodeport, key),
            routes=routes,
            cluster=tuple(sorted(placement.cluster)),
            local=tuple(sorted(placement.local)),
            affinity_seconds=affinity,
            source_ranges=ranges,
        )
