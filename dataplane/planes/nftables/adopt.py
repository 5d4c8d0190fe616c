"""Taking over a table that an earlier run left: what differs, and what that means in the plan's terms."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping

from dataplane.model.net import Family
from dataplane.plan.change import EntryChange
from dataplane.plan.rows import row
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry, Row
from dataplane.planes.nftables.placement import Placement
from dataplane.planes.nftables.shapes import shape_of, shape_rules
from dataplane.planes.nftables.skeleton import BASE_CHAINS, chains, restricted_rules
from dataplane.planes.nftables.state import TableReader, TableState
from dataplane.planes.nftables.syntax import Syntax
from dataplane.planes.nftables.transaction import Transaction, affinity_names, commands
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodeConfig


def broken_chains(words: Syntax, family: Family, state: TableState, node: NodeConfig | None) -> set[str] | None:
    """Chains whose number of rules is not what it should be; None when the base chains do not lead to Services at all.

    `node` None: the node's settings of the run that made the table are unknown; only chains that do not depend on
    them are checked.
    """
    if not state.current:
        return None
    broken = set()
    for name, count in state.rules.items():
        shape = shape_of(name)
        if shape is not None and count != len(shape_rules(words, shape)):
            broken.add(name)
    prefixes = sum(name.startswith("ranges-") for name in state.sets)
    if state.rules.get("restricted") != len(restricted_rules(words, range(prefixes))):
        broken.add("restricted")
    expected = chains(words, family, node or NodeConfig())
    checked = expected if node is not None else BASE_CHAINS
    wrong = {name for name in checked if state.rules.get(name) != len(expected[name])}
    return None if wrong & {*BASE_CHAINS, "services", *expected} else broken


def previous_placements(
    readers: Mapping[Family, TableReader], entries: Iterable[PlanEntry]
) -> dict[EntryKey, Placement]:
    """Where the kernel has the backends of each entry now, from the entry's frontends that exist there."""
    found: dict[tuple[str, FrontendKey], Placement] = {}
    for reader in readers.values():
        for (nodeport, key), frontend in reader.frontends().items():
            found[(reader.service(nodeport, key), frontend)] = reader.order(nodeport, key)
    placements = {}
    for entry in entries:
        known = [found[k] for f in entry.frontends if (k := (entry.key.service, f.key)) in found]
        if known:
            cluster = max((p.cluster for p in known), key=len)
            local = max((p.local for p in known), key=len)
            slots = {backend: slot for p in known for backend, slot in p.slots.items()}
            if len(set(slots.values())) < len(slots):
                slots = {}
            placements[entry.key] = Placement(cluster, local, slots)
    return placements


def adoption(
    words: Mapping[Family, Syntax], wanted: Transaction, present: Mapping[Family, TableState]
) -> tuple[str, bool]:
    """Commands that turn the elements and chains of `present` into those that `wanted` adds to nothing, run after the
    skeleton's; and whether any element differs."""
    held = {element: rest for state in present.values() for element, rest in state.elements.items()}
    cidrs = {w.target("service_cidrs") for w in words.values()}
    held = {element: rest for element, rest in held.items() if element[0] not in cidrs}
    needed = wanted.elements()
    removed = [(element, "") for element, rest in held.items() if needed.get(element) != rest]
    added = [(element, rest) for element, rest in needed.items() if held.get(element) != rest]
    text = wanted.structures_text() + "".join(commands("delete", removed) + commands("add", added))
    text += wanted.restricted_text()
    for family, state in present.items():
        text += _leftovers(words[family], state, wanted.chain_names(family), wanted.set_names(family))
    return text, bool(removed or added)


def _leftovers(words: Syntax, state: TableState, shapes: Container[str], sets: Container[str]) -> str:
    """Commands that delete shape chains, range sets and affinity maps that nobody needs any more."""
    old = [name for name in state.rules if shape_of(name) is not None and name not in shapes]
    text = "".join(f"flush chain {words.target(name)}\n" for name in old)
    text += "".join(f"delete chain {words.target(name)}\n" for name in old)
    prefixes = ("ranges-", *affinity_names(words))
    gone = [name for name in sorted(state.sets) if name.startswith(prefixes) and name not in sets]
    for name in gone:
        text += f"delete {'set' if name.startswith('ranges-') else 'map'} {words.target(name)}\n"
    return text


def _entries_of(table: Mapping[FrontendKey, Row]) -> dict[EntryKey, PlanEntry]:
    """Entries that would show as these rows, as far as rows tell: for finding what an earlier run forwarded to."""
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
    before: Mapping[FrontendKey, Row], plan: Plan, families: Container[Family]
) -> tuple[EntryChange, ...]:
    """The changes from what the rows of an earlier run say to the plan. An old entry is as far as rows tell: its kinds
    of frontend are a guess (an address or a node port), its frontends and backends are exact."""
    old = _entries_of(before)
    changes = []
    for key, entry in plan.entries.items():
        if key.family not in families:
            continue
        known = old.pop(key, None)
        now = {frontend.key: row(frontend, entry) for frontend in entry.frontends}
        held = {frontend.key: before[frontend.key] for frontend in known.frontends} if known is not None else {}
        if now != held:
            changes.append(EntryChange(known, entry))
    changes += [EntryChange(entry, None) for entry in old.values()]
    return tuple(changes)
