"""Load a plan into the kernel: fill empty tables, or adopt the tables of an earlier run."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from dataplane.garbage import no_garbage_collection, short_turns
from dataplane.kernel.netlink.nfnetlink import Message
from dataplane.kernel.nft.transaction import Nft
from dataplane.kernel.rcu import wait_for_packets
from dataplane.model.net import Family
from dataplane.plan.change import EntryChange
from dataplane.plan.types import FrontendKey, Plan, PlanEntry, Row
from dataplane.planes.base import EntryRefused, PlaneError
from dataplane.planes.nftables.adopt import Held, broken_chains, changed_entries, leftovers, previous_placement
from dataplane.planes.nftables.elements.books import Books
from dataplane.planes.nftables.elements.compile import ElementRef
from dataplane.planes.nftables.elements.placement import fresh, place
from dataplane.planes.nftables.elements.plain import PlainEntries
from dataplane.planes.nftables.elements.transaction import Transaction, add_commands, delete_commands
from dataplane.planes.nftables.netlink.fields import Element, Layouts
from dataplane.planes.nftables.netlink.state import TableReader, TableState
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.rules.flowtable import CHAIN as FAST_PATH
from dataplane.planes.nftables.rules.flowtable import without_flowtable
from dataplane.planes.nftables.rules.skeleton import (
    BASE_CHAINS,
    activation,
    rewrite_restricted,
    set_service_cidrs,
    skeleton_objects,
    skeleton_rules,
)
from dataplane.planes.nftables.rules.syntax import Syntax
from dataplane.policy.routes import Scope

ELEMENTS_A_TRANSACTION = 8_000
"""Elements in one transaction of a large load, so that no commit holds the kernel's lock for long, and its messages
take little memory."""

ENTRIES_COMPARED = 500
"""Entries that are compared with the kernel at once: few enough that one that differs makes few others be looked at."""

TEXT_LIMIT = 5_000
"""Loads of at most this many elements are a single transaction, structure included."""


def remove_tables(nft: Nft, store: ElementStore, syntax: Iterable[Syntax]) -> None:
    """Delete those of the tables that exist. Raises PlaneError.

    In two transactions: the first stops packets from entering; once those in flight have left, the second deletes the
    tables. In a single transaction, a packet in flight would find the maps empty but not the sets (when a table is
    deleted, the kernel hides only the elements of maps), and would be rejected as if the port were unknown.
    """
    mine = [w for w in syntax if store.has_table(w.own)]
    if not mine:
        return
    entrances = [w.target(name) for w in mine for name in sorted(BASE_CHAINS.keys() & store.chains(w.own))]
    nft.run("".join(f"flush chain {chain}\n" for chain in entrances))
    wait_for_packets()
    nft.run("".join(f"delete table {w.own}\n" for w in mine))


class Loader:
    """One load. `books` start empty; they match the kernel once a method has returned."""

    def __init__(self, nft: Nft, store: ElementStore, layouts: Layouts, plan: Plan, text_limit: int) -> None:
        self._nft = nft
        self._store = store
        self._layouts = layouts
        self._plan = plan
        self._text_limit = text_limit

    def _skeleton(self, syntax: Mapping[Family, Syntax], *, active: bool) -> str:
        """Return commands for the constant part of every table, with an empty check of source ranges."""
        node = self._plan.node
        return "".join(
            skeleton_objects(w, family, node)
            + skeleton_rules(w, family, node, active=active)
            + rewrite_restricted(w, ())
            + set_service_cidrs(w, family, self._plan.service_cidrs)
            for family, w in syntax.items()
        )

    def _entries(self, books: Books) -> list[PlanEntry]:
        """Return the plan's entries of the families of the books."""
        return [entry for entry in self._plan.entries.values() if entry.key.family in books.syntax]

    def fill(self, books: Books) -> tuple[EntryChange, ...]:
        """Load into a kernel without hotplane's tables; returns what changed: every entry.

        A small plan is one transaction. A large one is a table whose base chains have no rules, then many transactions
        of elements, then the rules, so that packets see nothing before the load is complete. After a PlaneError there
        is no table, or, if the error says so, one that no packet enters.
        """
        entries = self._entries(books)
        if _weight(entries, self._text_limit) <= self._text_limit:
            transaction = books.transaction()
            for entry in entries:
                transaction.add(books.compile(entry, fresh(entry)))
            parts = transaction.parts()
            self._store.change((), parts.added, ahead=self._skeleton(books.syntax, active=True) + parts.ahead)
            transaction.commit()
        else:
            try:
                with no_garbage_collection(), short_turns():  # or each batch would wait until the next is compiled
                    self._fill_in_batches(books, entries)
            except EntryRefused as error:
                raise EntryRefused(error.key, f"{error.reason}; {self._remove(books.syntax)}") from error
            except PlaneError as error:
                raise PlaneError(f"{error}; {self._remove(books.syntax)}") from error
        return tuple(EntryChange(None, entry) for entry in entries)

    def _fill_in_batches(self, books: Books, entries: Sequence[PlanEntry]) -> None:
        self._nft.prepare(self._skeleton(books.syntax, active=True))
        self._nft.run(self._skeleton(books.syntax, active=False))
        plain = {family: PlainEntries(compiler) for family, compiler in books.compilers.items()}
        with _Pipeline() as pipeline:
            transaction, elements = books.transaction(), 0
            for entry in entries:
                added = plain[entry.key.family].add(entry)
                if not added:
                    compiled = books.compile(entry, fresh(entry))
                    transaction.add(compiled)
                    added = len(compiled.elements)
                elements += added
                if elements >= ELEMENTS_A_TRANSACTION:
                    self._send_batch(books, transaction, plain.values(), pipeline)
                    transaction, elements = books.transaction(), 0
            self._send_batch(books, transaction, plain.values(), pipeline)
        self._nft.run("".join(activation(w, family, self._plan.node) for family, w in books.syntax.items()))

    def _send_batch(
        self, books: Books, transaction: Transaction, plain: Iterable[PlainEntries], pipeline: "_Pipeline"
    ) -> None:
        """Send the structure that a batch needs, then its elements."""
        columns = [each.take() for each in plain]
        for each in columns:
            transaction.refer_many(each.references)
        parts = transaction.parts()
        transaction.commit()
        messages = self._store.messages((), parts.added)
        for each in columns:
            for frontends, endpoints in each.own:
                messages += self._store.column_messages(*frontends)
                messages += self._store.laid_messages(endpoints.target, *endpoints.parts())
            for target, keys in each.shared.items():
                new = books.references.use(target, keys)
                messages += self._store.column_messages(target, new, [b""] * len(new))
        pipeline.put(lambda: self._send(parts.ahead, messages))

    def _send(self, text: str, messages: list[Message]) -> None:
        if text:
            self._nft.run(text)
        self._store.send(messages)

    def _remove(self, syntax: Mapping[Family, Syntax]) -> str:
        """Delete the tables of a failed load; return a text on what is left."""
        try:
            remove_tables(self._nft, self._store, syntax.values())
        except PlaneError as error:
            return f"a part of the table stands, which no packet enters; load again or clean up ({error})"
        return "what had been loaded was removed again: there is no table, as before"

    def adopt(self, books: Books, states: Mapping[Family, TableState]) -> tuple[EntryChange, ...]:
        """Load over tables of an earlier run; returns the entries that changed.

        It takes several transactions, in the order that packets in flight need (see `Parts`); after the first one, a
        PlaneError says that the table stands between the two plans.
        """
        held = Held(books.syntax, states)
        wanted = books.transaction()
        differing = self._account(books, held, wanted)
        # From here on, only elements that have no equal in the plan are read.
        readers = {family: TableReader(books.syntax[family], family, state) for family, state in states.items()}
        for entry in differing:
            family = entry.key.family
            placement = place(entry, previous_placement(readers[family], entry) if family in readers else None)
            if placement != place(entry):
                books.placements[entry.key] = placement
            wanted.add(books.compile(entry, placement))
        removed, added = held.difference(wanted.elements())
        before: dict[FrontendKey, Row] = {}
        if removed or added:
            for family, reader in readers.items():
                before |= reader.rows(broken_chains(books.syntax[family], family, states[family], None) or set())
        difference = _Difference(books.syntax, self._layouts, wanted, states, removed, added)
        left = "" if self._plan.node.flowtable else _flowtables(books.syntax, states)
        self._send_difference(left + self._skeleton(books.syntax, active=True), difference)
        wanted.commit()
        return changed_entries(before, differing, self._plan) if removed or added else ()

    def _account(self, books: Books, held: Held, wanted: Transaction) -> list[PlanEntry]:
        """Account for the entries that the kernel holds as planned; returns the others."""
        plain = {family: PlainEntries(compiler) for family, compiler in books.compilers.items()}
        differing: list[PlanEntry] = []
        piece: list[PlanEntry] = []

        def one(entry: PlanEntry) -> None:
            compiled = books.compile(entry, fresh(entry))
            if held.account(compiled.elements):
                wanted.refer(compiled.references)
            else:
                differing.append(entry)

        def many() -> None:
            columns = [each.take() for each in plain.values()]
            own = [pair for each in columns for pair in each.own]
            if not held.account_columns([one for pair in own for one in (pair[0], pair[1].column())]):
                for entry in piece:
                    one(entry)
            else:
                for each in columns:
                    wanted.refer_many(each.references)
                    wanted.refer(ElementRef(target, key) for target, keys in each.shared.items() for key in keys)
            piece.clear()

        for entry in self._entries(books):
            if not plain[entry.key.family].add(entry):
                one(entry)
                continue
            piece.append(entry)
            if len(piece) >= ENTRIES_COMPARED:
                many()
        many()
        return differing

    def _send_difference(self, skeleton: str, difference: "_Difference") -> None:
        self._nft.run(skeleton + difference.first_text())
        try:
            with no_garbage_collection():
                for removed, added in difference.additions():
                    self._store.change(removed, added)
                removals, last = list(difference.removals()), difference.last_text()
                if removals or last:
                    wait_for_packets()
                for gone in removals:
                    self._store.change(gone, ())
                if last:
                    self._nft.run(last)
        except PlaneError as error:
            raise PlaneError(f"{error}; the table stands between the earlier plan and this one: load again") from error


class _Difference:
    """The commands and elements that turn present tables into wanted ones, after the commands of the skeleton."""

    def __init__(
        self,
        syntax: Mapping[Family, Syntax],
        layouts: Layouts,
        wanted: Transaction,
        present: Mapping[Family, TableState],
        removed: list[Element],
        added: list[tuple[Element, bytes]],
    ) -> None:
        self._syntax = syntax
        self._layouts = layouts
        self._wanted = wanted
        self._present = present
        self._removed = removed
        self._added = added
        self._ranks = _ranks(syntax.values())
        self._replaced = {element for element, _ in added}.intersection(removed)

    def _restricted(self, *, and_present: bool) -> str:
        """Return commands for the rules that check source ranges."""
        text = ""
        for family, w in self._syntax.items():
            prefixes = self._wanted.prefixes(family)
            if and_present and family in self._present:
                sets = self._present[family].sets
                prefixes |= {int(name.removeprefix("ranges-")) for name in sets if name.startswith("ranges-")}
            text += rewrite_restricted(w, prefixes)
        return text

    def _leftovers(self) -> str:
        wanted = self._wanted
        return "".join(
            leftovers(self._syntax[family], state, wanted.chain_names(family), wanted.set_names(family))
            for family, state in self._present.items()
        )

    def _is_verdict(self, target: str) -> bool:
        return self._layouts.of(target).verdict

    def first_text(self) -> str:
        """Return commands for the structure that comes before the elements."""
        verdicts = [(element, value) for element, value in self._added if self._is_verdict(element[0])]
        replaced = [element for element, _ in verdicts if element in self._replaced]
        return (
            self._wanted.structures_text()
            + delete_commands(self._layouts, replaced)
            + add_commands(self._layouts, verdicts)
            + self._restricted(and_present=True)
        )

    def additions(self) -> Iterator[tuple[list[Element], list[tuple[Element, bytes]]]]:
        """Yield (removed, added) of each transaction that adds elements, ordered so that an element comes after those
        it leads to; removed are elements that get another value."""
        added = [item for item in self._added if not self._is_verdict(item[0][0])]
        added.sort(key=lambda item: self._ranks.get(item[0][0], 0))
        for first in range(0, len(added), ELEMENTS_A_TRANSACTION):
            batch = added[first : first + ELEMENTS_A_TRANSACTION]
            yield [element for element, _ in batch if element in self._replaced], batch

    def removals(self) -> Iterator[list[Element]]:
        """Yield the elements to remove after all `additions`, by transaction: an element goes before those it leads
        to."""
        gone = [e for e in self._removed if e not in self._replaced and not self._is_verdict(e[0])]
        gone.sort(key=lambda element: -self._ranks.get(element[0], 0))
        for first in range(0, len(gone), ELEMENTS_A_TRANSACTION):
            yield gone[first : first + ELEMENTS_A_TRANSACTION]

    def last_text(self) -> str:
        """Return commands that delete what the removed elements leave unused, or ""."""
        verdicts = [e for e in self._removed if self._is_verdict(e[0]) and e not in self._replaced]
        leftovers = self._leftovers()
        if not verdicts and not leftovers:
            return ""
        return delete_commands(self._layouts, verdicts) + self._restricted(and_present=False) + leftovers


def _ranks(syntax: Iterable[Syntax]) -> dict[str, int]:
    """Return the rank of targets whose elements lead to others: a higher rank is added later."""
    ranks = {}
    for w in syntax:
        ranks[w.target("restricted")] = 3
        for kind in (w.services, w.nodeports):
            ranks[w.target(kind.slots)] = 1
            ranks |= {w.target(name): 2 for name in (kind.pod, kind.node, kind.outside)}
            ranks[w.target(kind.first)] = 4
    return ranks


def _flowtables(syntax: Mapping[Family, Syntax], states: Mapping[Family, TableState]) -> str:
    """Return commands that remove the flowtables of the tables that have one."""
    return "".join(without_flowtable(syntax[family]) for family, state in states.items() if FAST_PATH in state.rules)


class _Pipeline:
    """Runs one task at a time in another thread, so that the kernel processes a batch while the next is compiled."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def __enter__(self) -> "_Pipeline":
        return self

    def put(self, work: Callable[[], None]) -> None:
        """Wait for the previous task, raise its exception if any, and start this one."""
        self._wait()
        self._running = self._executor.submit(work)

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._executor.shutdown()


def _weight(entries: Iterable[PlanEntry], limit: int) -> int:
    """Estimate the number of elements of entries; more than the limit where it is above that."""
    weight = 0
    for entry in entries:
        members = len(entry.drawn(Scope.CLUSTER)) + len(entry.drawn(Scope.LOCAL))
        weight += len(entry.frontends) * (members + 1)
        if weight > limit:
            break
    return weight
