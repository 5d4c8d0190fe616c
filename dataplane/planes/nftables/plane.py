"""The nftables plane: Services as elements of a constant set of maps.

One table of each family, owned by hotplane alone. A change becomes one transaction whose size is that of the change;
nothing is listed for it, because the plane knows from the change what the kernel holds.
"""

import contextlib
import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from dataplane.kernel.nft import Nft
from dataplane.model.net import Family
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import EntryKey, FrontendKey, Plan, PlanEntry, Row, Table
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.adopt import adoption, broken_chains, changed_entries, previous_placements
from dataplane.planes.nftables.elements import NOTHING, Compiled, compile_entry
from dataplane.planes.nftables.placement import Placement, place
from dataplane.planes.nftables.shapes import ShapeIds
from dataplane.planes.nftables.skeleton import (
    restricted_rules,
    rewrite_chain,
    set_service_cidrs,
    skeleton_objects,
    skeleton_rules,
)
from dataplane.planes.nftables.state import TableReader, TableState, table_state
from dataplane.planes.nftables.syntax import syntax
from dataplane.planes.nftables.transaction import References, Transaction
from dataplane.policy.node import NodeConfig

ENTRIES_A_TRANSACTION = 4000
"""Entries that a first load puts into one transaction, so that no single commit holds the kernel's lock for long."""


class NftablesPlane:
    """See planes.base.Plane. Works in the network namespace in which the object was made.

    families: the families to program; entries of others are ignored. table: name of the tables.
    loaded_for: the node of the plan that an earlier run loaded; lets `read_back` check every chain before a load.
    """

    name = "nftables"

    def __init__(
        self,
        families: Iterable[Family] = (Family.IPV4, Family.IPV6),
        table: str = "hotplane",
        nft: Nft | None = None,
        loaded_for: NodeConfig | None = None,
    ) -> None:
        self._words = {family: syntax(family, table) for family in families}
        self._nft = nft or Nft()
        self._node: NodeConfig | None = None
        self._loaded_for = loaded_for
        self._ids = {family: ShapeIds() for family in self._words}
        self._references = References()
        # Only placements that differ from what `place` makes of the entry alone.
        self._placements: dict[EntryKey, Placement] = {}

    def load(self, plan: Plan) -> PlanChange:
        """Bring the kernel to `plan`; see planes.base.Plane.load.

        An empty kernel is filled in several transactions, each of whole entries. A table of the same version
        is adopted: one transaction with what differs. Any other table is replaced in one transaction.
        """
        with _no_garbage_collection():
            states = self._states()
        entries = [entry for entry in plan.entries.values() if entry.key.family in self._words]
        self._node, self._references, self._placements = None, References(), {}
        if not states:
            self._fill(plan, entries)
            changed = tuple(EntryChange(None, entry) for entry in entries)
        else:
            with _no_garbage_collection():
                changed = self._adopt(plan, entries, states)
        self._node = plan.node
        return PlanChange(entries=changed)

    def apply(self, change: PlanChange) -> None:
        """Apply a change in one transaction; see planes.base.Plane.apply."""
        if self._node is None:
            raise PlaneError("nftables plane: a change came before a plan was loaded; call load first")
        transaction = Transaction(self._words, self._ids, self._references)
        placements: dict[EntryKey, Placement | None] = {}
        for old, new in change.entries:
            key = (new or old or _neither()).key
            if key.family not in self._words:
                continue
            before = self._placement(old) if old is not None else None
            after = place(new, before) if new is not None else None
            transaction.replace(self._compile(old, before), self._compile(new, after))
            placements[key] = after if new is not None and after != place(new) else None
        text = self._settings(change) + transaction.text()
        if text:
            self._nft.run(text)
        transaction.commit()
        for key, placement in placements.items():
            if placement is None:
                self._placements.pop(key, None)
            else:
                self._placements[key] = placement
        self._node = change.node or self._node

    def read_back(self) -> Table:
        """Every frontend that the kernel holds and that works; see planes.base.Plane.read_back.

        A frontend is left out when a chain on its way is missing or does not have the number of rules it should have.
        """
        table: dict[FrontendKey, Row] = {}
        with _no_garbage_collection():
            for family, state in self._states().items():
                words = self._words[family]
                broken = broken_chains(words, family, state, self._node or self._loaded_for)
                if broken is not None:
                    table |= TableReader(words, family, state).rows(broken)
        return table

    def cleanup(self) -> None:
        """Delete hotplane's tables of the plane's families, and nothing else."""
        present = self._nft.tables()
        mine = [w for w in self._words.values() if (w.ip, w.table) in present]
        if mine:
            self._nft.run("".join(f"delete table {w.ip} {w.table}\n" for w in mine))
        self._node, self._references, self._placements = None, References(), {}

    def _states(self) -> dict[Family, TableState]:
        """What the kernel holds, for the families whose table exists."""
        present = self._nft.tables()
        return {
            family: table_state(words, self._nft.text(f"list table {words.ip} {words.table}"))
            for family, words in self._words.items()
            if (words.ip, words.table) in present
        }

    def _placement(self, entry: PlanEntry) -> Placement:
        stored = self._placements.get(entry.key)
        return stored if stored is not None else place(entry)

    def _compile(self, entry: PlanEntry | None, placement: Placement | None) -> Compiled:
        if entry is None or placement is None:
            return NOTHING
        family = entry.key.family
        return compile_entry(self._words[family], self._ids[family], entry, placement)

    def _settings(self, change: PlanChange) -> str:
        """Commands for what changed beside the entries."""
        parts = []
        for family, words in self._words.items():
            if change.node is not None:
                parts.append(skeleton_rules(words, family, change.node))
            if change.service_cidrs is not None:
                parts.append(set_service_cidrs(words, family, change.service_cidrs))
        return "".join(parts)

    def _skeleton(self, plan: Plan) -> str:
        """Commands that make the constant part of every table right, with an empty check of source ranges."""
        return "".join(
            skeleton_objects(words, family, plan.node)
            + skeleton_rules(words, family, plan.node)
            + rewrite_chain(words, "restricted", restricted_rules(words, ()))
            + set_service_cidrs(words, family, plan.service_cidrs)
            for family, words in self._words.items()
        )

    def _fill(self, plan: Plan, entries: list[PlanEntry]) -> None:
        """Load into a kernel without hotplane's tables."""
        text = self._skeleton(plan)
        running: Future[None] | None = None
        with ThreadPoolExecutor(1) as kernel, _no_garbage_collection():
            for chunk in _chunks(entries, ENTRIES_A_TRANSACTION):
                transaction = Transaction(self._words, self._ids, self._references)
                for entry in chunk:
                    transaction.replace(NOTHING, self._compile(entry, place(entry)))
                text += transaction.text()
                transaction.commit()
                if running is not None:
                    running.result()
                # The kernel takes one chunk while the next is compiled.
                running = kernel.submit(self._nft.run, text)
                text = ""
            if running is not None:
                running.result()
        if text:
            self._nft.run(text)

    def _adopt(self, plan: Plan, entries: list[PlanEntry], states: dict[Family, TableState]) -> tuple[EntryChange, ...]:
        """Load over tables of an earlier run; returns the entries that changed."""
        replaced = [family for family, state in states.items() if not state.current]
        deletions = "".join(f"delete table {self._words[f].ip} {self._words[f].table}\n" for f in replaced)
        readers = {
            family: TableReader(self._words[family], family, state)
            for family, state in states.items()
            if family not in replaced
        }
        self._ids = {f: readers[f].shape_ids() if f in readers else ShapeIds() for f in self._words}
        previous = previous_placements(readers, entries)
        references = References()
        wanted = Transaction(self._words, self._ids, references)
        for entry in entries:
            placement = place(entry, previous.get(entry.key))
            if placement != place(entry):
                self._placements[entry.key] = placement
            wanted.replace(NOTHING, self._compile(entry, placement))
        present = {
            family: states.get(family, TableState()) if family in readers else TableState() for family in self._words
        }
        body, differs = adoption(self._words, wanted, present)
        self._nft.run(deletions + self._skeleton(plan) + body)
        wanted.commit()
        self._references = references
        if not differs:
            return ()
        before: dict[FrontendKey, Row] = {}
        for family, reader in readers.items():
            before |= reader.rows(broken_chains(self._words[family], family, states[family], None) or set())
        return changed_entries(before, plan, self._words)


def _neither() -> PlanEntry:
    raise PlaneError("nftables plane: a change with neither an old nor a new entry")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Hold the cyclic collector while millions of small values are made, none of them in a cycle."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _chunks(entries: list[PlanEntry], size: int) -> Iterator[list[PlanEntry]]:
    iterator = iter(entries)
    while chunk := list(islice(iterator, size)):
        yield chunk
