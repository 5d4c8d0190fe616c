"""Adopt a table of an earlier run: find what differs from the plan, as elements and in the plan's terms."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping

import msgspec

from dataplane.model.net import Family
from dataplane.plan.change import EntryChange
from dataplane.plan.rows import row
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry, Row
from dataplane.planes.nftables.elements.compile import frontend_key
from dataplane.planes.nftables.elements.placement import Placement
from dataplane.planes.nftables.elements.plain import Column
from dataplane.planes.nftables.elements.transaction import affinity_names
from dataplane.planes.nftables.netlink.fields import Element
from dataplane.planes.nftables.netlink.state import TableReader, TableState
from dataplane.planes.nftables.rules.shapes import shape_of, shape_rules
from dataplane.planes.nftables.rules.skeleton import BASE_CHAINS, chains, restricted_rules
from dataplane.planes.nftables.rules.syntax import Syntax
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodeConfig


def broken_chains(syntax: Syntax, family: Family, state: TableState, node: NodeConfig | None) -> set[str] | None:
    """Return the chains with a wrong number of rules; None if the base chains do not lead to Services at all.

    `node` None: the node's settings of the run that made the table are unknown; only base chains are checked, for the
    rules that any settings lead to.
    """
    if not state.current:
        return None
    broken = set()
    for name, count in state.rules.items():
        shape = shape_of(name)
        if shape is not None and count != len(shape_rules(syntax, shape)):
            broken.add(name)
    prefixes = sum(name.startswith("ranges-") for name in state.sets)
    if state.rules.get("restricted") != len(restricted_rules(syntax, range(prefixes))):
        broken.add("restricted")
    if node is None:
        least = chains(syntax, family, NodeConfig(reject_unknown_ports=False))
        wrong = any(state.rules.get(name, -1) < len(least[name]) for name in BASE_CHAINS.keys() & least)
    else:
        wrong = any(state.rules.get(name) != len(rules) for name, rules in chains(syntax, family, node).items())
    return None if wrong else broken


def previous_placement(reader: TableReader, entry: PlanEntry) -> Placement | None:
    """Return the placement of an entry's backends in the kernel, read from those of its frontends that exist there.

    A backend may have more indexes than it should: an interrupted load may have added a new one without removing the
    old one.
    """
    keys = [frontend_key(frontend.key) for frontend in entry.frontends]
    known = [reader.order(k) for k in keys if reader.holds(k) and reader.service(k) == entry.key.service]
    if not known:
        return None
    slots = {backend: slot for placement in known for backend, slot in placement.slots.items()}
    if len(set(slots.values())) < len(slots):
        slots = {}
    cluster, local = (max(orders, key=len) for orders in zip(*((p.cluster, p.local) for p in known), strict=True))
    return Placement(cluster, local, slots)


class Held:
    """The kernel's elements that are not yet accounted for by the plan."""

    def __init__(self, syntax: Mapping[Family, Syntax], present: Mapping[Family, TableState]) -> None:
        self._maps = {
            syntax[family].target(name): elements
            for family, state in present.items()
            for name, elements in state.elements.items()
        }

    def account(self, elements: Mapping[Element, bytes]) -> bool:
        """Account for all these elements if each exists with this value, else for none; return True if they do."""
        maps = self._maps
        for (target, key), value in elements.items():
            held = maps.get(target)
            if held is None or held.get(key) != value:
                return False
        for target, key in elements:
            del maps[target][key]
        return True

    def account_columns(self, columns: Iterable[Column]) -> bool:
        """The same for elements in columns, each of them once."""
        expected = [
            (self._maps.get(target, {}), dict(zip(keys, values, strict=True))) for target, keys, values in columns
        ]
        if not all(wanted.items() <= held.items() for held, wanted in expected):
            return False
        for held, wanted in expected:
            for key in wanted:
                del held[key]
        return True

    def difference(self, wanted: Mapping[Element, bytes]) -> tuple[list[Element], list[tuple[Element, bytes]]]:
        """Return the elements to remove and to add, to turn the remaining elements into the wanted ones."""
        missing: dict[bytes, bytes] = {}
        left = [(target, key, value) for target, held in self._maps.items() for key, value in held.items()]
        removed = [(target, key) for target, key, value in left if wanted.get((target, key)) != value]
        added = [(e, value) for e, value in wanted.items() if self._maps.get(e[0], missing).get(e[1]) != value]
        return removed, added


def leftovers(syntax: Syntax, state: TableState, shapes: Container[str], sets: Container[str]) -> str:
    """Return commands that delete unused shape chains, range sets and affinity maps."""
    old = [name for name in state.rules if shape_of(name) is not None and name not in shapes]
    text = "".join(f"flush chain {syntax.target(name)}\n" for name in old)
    text += "".join(f"delete chain {syntax.target(name)}\n" for name in old)
    prefixes = ("ranges-", *affinity_names(syntax))
    gone = [name for name in sorted(state.sets) if name.startswith(prefixes) and name not in sets]
    for name in gone:
        text += f"delete {'set' if name.startswith('ranges-') else 'map'} {syntax.target(name)}\n"
    return text


def _entries_of(table: Mapping[FrontendKey, Row]) -> dict[EntryKey, PlanEntry]:
    """Reconstruct entries from rows, as far as rows have the data, to find the backends of an earlier run."""
    grouped: dict[EntryKey, list[tuple[FrontendKey, Row]]] = defaultdict(list)
    for key, held in table.items():
        name, _, port = held.service.partition(":")
        namespace, _, service = name.partition("/")
        grouped[EntryKey(namespace, service, port, key.protocol, key.family)].append((key, held))
    entries = {}
    for entry_key, held_rows in grouped.items():
        local = sorted({backend for _, held in held_rows for backend in held.local})
        cluster = sorted({backend for _, held in held_rows for backend in held.cluster})
        here = set(local)
        entries[entry_key] = PlanEntry(
            key=entry_key,
            cluster=tuple(Backend(*backend, backend in here) for backend in cluster),
            local=tuple(Backend(*backend, True) for backend in local),
            frontends=tuple(Frontend(_kind(key), key, held.routes, held.source_ranges) for key, held in held_rows),
            affinity_seconds=max(held.affinity_seconds for _, held in held_rows),
        )
    return entries


def _kind(key: FrontendKey) -> FrontendKind:
    return FrontendKind.EXTERNAL_IP if key.address else FrontendKind.NODE_PORT


def changed_entries(
    before: Mapping[FrontendKey, Row], differing: Iterable[PlanEntry], plan: Plan
) -> tuple[EntryChange, ...]:
    """Return the changes from the rows of an earlier run to the plan.

    before: the rows without an equal in the plan, or of the `differing` entries. Old entries are reconstructed from
    rows: their frontends and backends are exact, the kinds of frontends are guessed (address or node port).
    """
    old = _entries_of(before)
    changes = []
    for entry in differing:
        known = old.pop(entry.key, None)
        now = {frontend.key: row(frontend, entry) for frontend in entry.frontends}
        held = {frontend.key: before[frontend.key] for frontend in known.frontends} if known is not None else {}
        if now != held:
            changes.append(EntryChange(known, entry))
    for key, entry in old.items():
        new = plan.entries.get(key)
        if new is None:
            changes.append(EntryChange(entry, None))
        else:  # all of the entry is there, and a frontend of it that is no more
            frontends = new.frontends + entry.frontends
            changes.append(EntryChange(msgspec.structs.replace(new, frontends=frontends), new))
    return tuple(changes)
