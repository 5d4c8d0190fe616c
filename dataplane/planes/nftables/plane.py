"""The nftables plane: Services as elements of a constant set of maps.

One table per family, owned by hotplane alone. A change becomes one transaction whose size is that of the change;
nothing is listed for it, because the plane knows from the change what the kernel holds. A shape chain that comes into
use or goes out of use takes a transaction of its own, before or after (see `transaction.Parts`).

All of it is sent as hotplane's own netlink messages. Structure (tables, sets, maps, chains, rules, verdicts) is written
as nftables text, whose rules libnftables has compiled ahead of time in another process (see kernel.nft). Elements are
written as bytes (see `store`), because text would cost seconds and hundreds of megabytes.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from dataplane.faults import ignore
from dataplane.garbage import no_garbage_collection
from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.kernel.nft.generation import Generation
from dataplane.kernel.nft.rules_kept import lost_tables
from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Family
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import FrontendKey, Plan, Row, Table
from dataplane.planes.answers import Refused
from dataplane.planes.base import EntryRefused, Plane, PlaneError
from dataplane.planes.captures import CaptureStream
from dataplane.planes.clients import Client
from dataplane.planes.nftables.adopt import broken_chains
from dataplane.planes.nftables.clients import remembered_clients
from dataplane.planes.nftables.elements.books import Books
from dataplane.planes.nftables.elements.commits import Commits
from dataplane.planes.nftables.elements.transaction import Transaction
from dataplane.planes.nftables.flowtable import Offload
from dataplane.planes.nftables.load import TEXT_LIMIT, Loader, remove_tables
from dataplane.planes.nftables.localnet import Localnet
from dataplane.planes.nftables.netlink.fields import Layouts
from dataplane.planes.nftables.netlink.state import TableReader, TableState, shape_ids, table_state
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.ping import Pings, answered_pings
from dataplane.planes.nftables.refused import refused_packets
from dataplane.planes.nftables.rules.library import library
from dataplane.planes.nftables.rules.shapes import ShapeIds
from dataplane.planes.nftables.rules.skeleton import set_service_cidrs, skeleton_rules
from dataplane.planes.nftables.rules.syntax import syntax_for
from dataplane.planes.nftables.standby import StandbyTables
from dataplane.policy.node import NodeConfig

_LOG = logging.getLogger(__name__)

MOST_AT_ONCE = 32
"""Limit of entries in a brief change."""

MOST_BACKENDS = 500
"""Limit of backends in a brief change."""


class NftablesPlane(Plane):
    """See planes.base.Plane. Works in the network namespace in which the object was made.

    families: the families to program; entries of others are ignored. table: name of the tables. nft, store: connections
    to the kernel. loaded_for: the node of the plan that an earlier run loaded; lets `read_back` check every chain
    before a load. text_limit: elements up to which filling an empty kernel is one transaction. watch: devices that come
    later get into the flowtable, if there is one; warn, mended: see planes.mode.Making.
    """

    name = "nftables"
    counts_refusals_apart = True

    def __init__(
        self,
        families: Iterable[Family] = (Family.IPV4, Family.IPV6),
        table: str = "hotplane",
        nft: Nft | None = None,
        store: ElementStore | None = None,
        loaded_for: NodeConfig | None = None,
        text_limit: int = TEXT_LIMIT,
        *,
        watch: bool = False,
        warn: Callable[[str], None] | None = None,
        mended: Callable[[str], None] = ignore,
    ) -> None:
        self._syntax = {family: syntax_for(family, table) for family in families}
        self._layouts = Layouts(self._syntax.values())
        self._nft = nft or Nft()
        self._nft.library = library()
        self._store = store or ElementStore(self._layouts)
        self._netlink, self._generation, self._looked = Nfnetlink(), Generation(), -1
        self._loaded_for = loaded_for
        self._text_limit = text_limit
        self._node: NodeConfig | None = None
        self._books = Books(self._syntax, self._layouts)
        self._commits = Commits(self._nft, self._store)
        self._standby = StandbyTables(self._nft, self._store, self._syntax, table)
        self._localnet = Localnet(self._nft, self._store, table)
        self._pings = Pings(self._nft, self._store, self._syntax)
        self._offload = Offload(self._syntax.values(), watch=watch, warn=warn or _LOG.warning, mended=mended)

    @property
    def commits(self) -> int:
        """See planes.base.Plane.commits."""
        return self._commits.count + self._pings.count + self._offload.count

    def check_kernel(self, node: NodeConfig) -> None:
        """Raise PlaneError if the kernel lacks what the node's settings ask for."""
        if node.flowtable:
            self._offload.require()

    def load(self, plan: Plan) -> PlanChange:
        """Bring the kernel to `plan`; see planes.base.Plane.load.

        A table of the same version is adopted: only what differs is sent, in several transactions. Into an empty
        kernel, a small plan is one transaction. If a load fails, its PlaneError says what is left: in an empty kernel
        there is no table again; over a table of an earlier run, the transactions committed so far stay, and the table
        is between the two plans. In both cases the plane accepts no change before a load has succeeded, and a new load
        repairs what it finds. EntryRefused has all entries that cannot be held; over a table of this version it is
        raised before anything is sent, and the plane continues with the previous plan.
        """
        self.check_kernel(plan.node)
        before, self._node = (self._node, self._books), None
        self._offload.stop()
        if self._leads_from_loopback(plan.node):
            self._localnet.open()
        with no_garbage_collection(keep=len(plan.entries) > self._text_limit):
            states = self._states()
            if not all(state.current for state in states.values()):
                self._standby.replace(self._syntax.values(), plan, self._text_limit)
                states = {}
            try:
                changed = self._bring(plan, states)
            except EntryRefused as error:
                if states:
                    self._node, self._books = before
                refused = Books(self._syntax, self._layouts).refusals(plan.entries.values())
                raise EntryRefused(error.key, error.reason, refused) from error
            self._standby.remove()
        if not self._leads_from_loopback(plan.node):
            self._localnet.close()
        self._pings.load(plan)
        if plan.node.flowtable:
            self._offload.follow()
        self._node = plan.node
        return PlanChange(entries=changed)

    def _bring(self, plan: Plan, states: Mapping[Family, TableState]) -> tuple[EntryChange, ...]:
        """Bring tables of this version, or none, to `plan`; returns what changed."""
        loader = Loader(self._nft, self._store, self._layouts, plan, self._text_limit)
        ids = {f: shape_ids(states[f]) if f in states else ShapeIds() for f in self._syntax}
        self._books = Books(self._syntax, self._layouts, ids)
        changed = loader.adopt(self._books, states) if states else loader.fill(self._books)
        self._books.seat(plan.entries.values())
        return changed

    def apply(self, change: PlanChange) -> None:
        """Apply a change; see planes.base.Plane.apply.

        All that is visible to packets is one transaction. If only the deletion of what it leaves unused fails, the
        PlaneError says so, and the plane needs a `load`, which deletes it.
        """
        if self._node is None:
            raise PlaneError("nftables plane: a change came before a plan was loaded; call load first")
        led, leads = (self._leads_from_loopback(node) for node in (self._node, change.node or self._node))
        if leads and not led:
            self._localnet.open()
        books = self._books
        transaction = books.transaction()
        steps = self._replaced(change, transaction)
        parts = transaction.parts()
        self._commits.change(parts, self._settings(change))
        transaction.commit()
        for commit in steps:
            commit()
        node, self._node = change.node or self._node, None
        self._commits.delete_unused(parts)
        books.forget(transaction.unused)
        if led and not leads:
            self._localnet.close()
        if node is not None:
            self._pings.apply(change, node)
        self._node = node

    def _replaced(self, change: PlanChange, transaction: Transaction) -> list[Callable[[], None]]:
        """Add every entry's change to a transaction; return the functions to call after its commit. Raises EntryRefused
        with all entries that cannot be held."""
        steps, refused = [], []
        for entry in change.entries:
            if entry.key.family in self._syntax:
                try:
                    steps.append(self._books.replace(entry, transaction))
                except EntryRefused as error:
                    refused.append(error)
        if refused:
            first, *others = refused
            raise EntryRefused(first.key, first.reason, others)
        return steps

    def read_back(self) -> Table:
        """Every frontend that the kernel holds and that works; see planes.base.Plane.read_back.

        A frontend is left out if one of its chains is missing or has a wrong number of rules.
        """
        table: dict[FrontendKey, Row] = {}
        with no_garbage_collection():
            for family, state in self._states().items():
                syntax = self._syntax[family]
                broken = broken_chains(syntax, family, state, self._node or self._loaded_for)
                if broken is not None:
                    table |= TableReader(syntax, family, state).rows(broken)
        return table

    def is_brief(self, change: PlanChange) -> bool:
        """See planes.base.Plane.is_brief."""
        return (
            len(change.entries) <= MOST_AT_ONCE
            and change.node is None
            and sum([entry.size() for entry in change.entries]) <= MOST_BACKENDS
        )

    def remembered_clients(self) -> Sequence[Client]:
        """See planes.base.Plane.remembered_clients."""
        return remembered_clients()

    def refused(self) -> Sequence[Refused]:
        """See planes.base.Plane.refused."""
        return refused_packets()

    def capture(self, snap: int) -> CaptureStream:
        """See planes.base.Plane.capture."""
        from dataplane.planes.nftables.capture import Capture  # takes some ms, which no other command needs

        return Capture(snap)

    def answered_pings(self) -> int | None:
        """See planes.base.Plane.answered_pings."""
        return answered_pings()

    def lead_from_loopback(self) -> None:
        """Set the sysctl for node ports on 127.0.0.0/8, and its guard, for a later process without the right to: of
        this mode or the iptables mode. Raises PlaneError."""
        self._localnet.open()

    def is_gone(self) -> bool:
        """See planes.base.Plane.is_gone."""
        return self._node is not None and not all(self._store.has_table(each.own) for each in self._syntax.values())

    def mend(self) -> Sequence[str]:
        """See planes.base.Plane.mend: the tables beside the main one, and the sysctl for node ports on 127.0.0.0/8. The
        tables are looked at when rules have changed since the last look."""
        if self._node is None:
            return ()
        loopback, pings = self._leads_from_loopback(self._node), self._pings.rules(self._node)
        texts = [*pings, *([self._localnet.rules] if loopback else [])]
        generation = self._generation.read() if texts else self._looked
        lost = lost_tables(self._netlink, *texts) if generation != self._looked else []
        found = self._localnet.mend(lost=self._localnet.table in lost) if loopback else []
        self._pings.put_back(self._node, lost)
        self._looked = generation
        return [*found, *(f"table {each}" for each in lost if each != self._localnet.table)]

    def give_way(self, stays: Collection[str]) -> int:
        """See planes.base.Plane.give_way. The tables stay if the other mode is based on this plane."""
        if self.name not in stays:
            self.cleanup()
        return 0

    def cleanup(self) -> None:
        """Delete hotplane's tables of the plane's families, with the guard, sysctl and ping tables, and nothing
        else."""
        self._offload.stop()
        self._standby.remove()
        remove_tables(self._nft, self._store, self._syntax.values())
        self._localnet.close()
        self._pings.remove()
        self._node, self._books = None, Books(self._syntax, self._layouts)

    def _leads_from_loopback(self, node: NodeConfig) -> bool:
        """True if node ports answer on 127.0.0.0/8."""
        return node.nodeports.loopback and Family.IPV4 in self._syntax

    def _states(self) -> dict[Family, TableState]:
        """Read the kernel's tables of the families that have one."""
        return {
            family: table_state(syntax, self._store)
            for family, syntax in self._syntax.items()
            if self._store.has_table(syntax.own)
        }

    def _settings(self, change: PlanChange) -> str:
        """Return commands for the changed settings, apart from the entries."""
        parts = []
        for family, syntax in self._syntax.items():
            if change.node is not None:
                parts.append(skeleton_rules(syntax, family, change.node))
            if change.service_cidrs is not None:
                parts.append(set_service_cidrs(syntax, family, change.service_cidrs))
        return "".join(parts)
