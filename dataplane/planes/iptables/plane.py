"""The iptables plane: kube-proxy's iptables mode, as a baseline."""

import time
from collections.abc import Callable, Mapping, Sequence

from dataplane.kernel import sysctl
from dataplane.kernel.iptables import IptablesError, KernelTables, Tables, Variant, default_variant, installed
from dataplane.kernel.sysctl import ROUTE_LOCALNET
from dataplane.model.net import Family
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import FrontendKey, Plan, Row, Table
from dataplane.planes.answers import Counted, Refused
from dataplane.planes.base import Plane, PlaneError
from dataplane.planes.captures import CaptureStream
from dataplane.planes.clients import Client
from dataplane.planes.iptables.adopt import load_change
from dataplane.planes.iptables.cleanup import clean_family
from dataplane.planes.iptables.clients import remembered_clients
from dataplane.planes.iptables.counts import packet_counts, refused_packets, saved_tables
from dataplane.planes.iptables.readback import FamilyReader
from dataplane.planes.iptables.rules.family import FamilyState, Saved, undo_input
from dataplane.planes.iptables.settings import family_settings, node_port_destinations
from dataplane.policy.node import NodeConfig

# kube-proxy's defaults: stale chains of a large cluster are deleted at a sync this long after the last deletion
# (syncPeriod), and a sync this long after the last full one is full again.
_CLEANUP_SECONDS = 30
_FULL_SYNC_SECONDS = 3600


class _FamilySync:
    """One family: its tables, their wanted state, and the times of the last syncs."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.state: FamilyState | None = None
        self.cleaned = float("-inf")
        self.full = float("-inf")

    def saved(self) -> Saved:
        return Saved(self.tables.save("filter"), self.tables.save("nat"))

    def sync_all(self, state: FamilyState, saved: Saved, now: float) -> None:
        """Full sync: write every chain, restore missing jumps, delete stale chains."""
        self.tables.restore(state.restore_input(state.keys, state.stale_chains(saved.nat), saved))
        self.state, self.cleaned, self.full = state, now, now

    def sync_changed(self, state: FamilyState, change: PlanChange, now: float) -> None:
        """Partial sync: write the complete dispatch chains, and the chains of changed Services."""
        stale: list[str] = []
        if not state.large or now - self.cleaned > _CLEANUP_SECONDS:
            stale = state.stale_chains(self.tables.save("nat"))
            self.cleaned = now
        written = [entry.key for entry in _of_family(change, state.family)]
        self.tables.restore(state.restore_input(written, stale))
        self.state = state


class IptablesPlane(Plane):
    """`planes.base.Plane` in kube-proxy's chains, for IPv4 and IPv6.

    variant: which iptables holds the rules; None = `default_variant()` of the network namespace of the first use.
    tcp_be_liberal: conntrack.tcpBeLiberal; no rule drops packets in the state INVALID then.
    loaded_for: the node of the plan that an earlier run loaded; lets `read_back` parse its rules before a load.
    tables, clock (seconds), ensure_sysctl: access to the kernel, replaceable in tests.

    Each family is one restore with both tables; if one is refused, the previous ones are undone.
    nfacct counters and canary chains are left out: the first only count, and kube-proxy detects flushes by the
    second, for which `read_back` is used here (it is empty without the jumps from the built-in chains).
    """

    name = "iptables"

    def __init__(
        self,
        *,
        variant: Variant | None = None,
        tcp_be_liberal: bool = False,
        loaded_for: NodeConfig | None = None,
        tables: Sequence[Tables] | None = None,
        clock: Callable[[], float] = time.monotonic,
        ensure_sysctl: Callable[[str, int], object] = sysctl.ensure,
    ) -> None:
        self._variant = variant
        self._tcp_be_liberal = tcp_be_liberal
        self._tables = tables
        self._clock = clock
        self._ensure_sysctl = ensure_sysctl
        self._families: dict[Family, _FamilySync] = {}
        self._node: NodeConfig | None = None
        self._loaded_for = loaded_for

    def load(self, plan: Plan) -> PlanChange:
        """As `Plane.load`. Rewrites all chains at once, as kube-proxy does at its start; raises PlaneError."""
        families = self._open()
        states = {family: self._state(plan, family) for family in families}
        self._set_route_localnet(plan.node)
        before: dict[FrontendKey, Row] = {}
        undo: list[tuple[_FamilySync, Saved]] = []
        try:
            for family, sync in families.items():
                saved = sync.saved()
                before |= FamilyReader(family, saved.filter, saved.nat).rows()
                undo.append((sync, saved))
                sync.sync_all(states[family], saved, self._clock())
        except IptablesError as error:
            raise self._undone(error, undo) from error
        self._node = plan.node
        return load_change(before, plan, frozenset(families))

    def apply(self, change: PlanChange) -> None:
        """As `Plane.apply`. As in kube-proxy, the cost also grows with the number of Services: the dispatch chains
        are written whole, and the legacy tools read and replace whole tables. Raises PlaneError."""
        if self._node is None:
            raise PlaneError("the iptables plane has no plan yet; load one before applying changes")
        node = change.node or self._node
        planned = [
            (sync, old, new)
            for sync in self._families.values()
            if (old := sync.state) is not None and (new := self._changed(old, change, node)) is not None
        ]
        if change.node is not None:
            self._set_route_localnet(node)
        done: list[tuple[_FamilySync, FamilyState]] = []
        try:
            for sync, old, new in planned:
                done.append((sync, old))
                self._sync(sync, old, new, change)
        except IptablesError as error:
            raise self._rolled_back(error, done) from error
        self._node = node

    def read_back(self) -> Table:
        """As `Plane.read_back`; a family whose jumps from the built-in chains are not all there has no rows."""
        found: dict[FrontendKey, Row] = {}
        node = self._node or self._loaded_for
        for family, sync in self._open().items():
            saved = sync.saved()
            answers = node is None or bool(node_port_destinations(node, family))
            found |= FamilyReader(family, saved.filter, saved.nat, answers=answers).rows()
        return found

    def remembered_clients(self) -> Sequence[Client]:
        """As `Plane.remembered_clients`."""
        return remembered_clients()

    def frontend_counts(self) -> Mapping[FrontendKey, Counted]:
        """As `Plane.frontend_counts`."""
        return packet_counts(saved_tables("nat"), saved_tables("filter"))

    def refused(self) -> Sequence[Refused]:
        """As `Plane.refused`."""
        return refused_packets(saved_tables("filter"))

    def counted(self) -> tuple[Mapping[FrontendKey, Counted], Sequence[Refused]]:
        """As `Plane.counted`: with many Services it takes long to save a table."""
        nat, filters = saved_tables("nat"), saved_tables("filter")
        return packet_counts(nat, filters), refused_packets(filters)

    def capture(self, snap: int) -> CaptureStream:
        """As `Plane.capture`."""
        from dataplane.planes.iptables.capture import Capture  # takes some ms, which no other command needs

        return Capture(snap)

    def mend(self) -> Sequence[str]:
        """As `Plane.mend`: the sysctl for node ports on 127.0.0.0/8."""
        lost = self._node is not None and self._set_route_localnet(self._node)
        return [f"sysctl {ROUTE_LOCALNET}"] if lost else ()

    def cleanup(self) -> None:
        """As `Plane.cleanup`: in both variants and both families, not only the plane's own. The built-in chains and
        KUBE-FIREWALL of a running kubelet stay. With the guard of route_localnet, the sysctl is reset. If it fails, a
        plan must be loaded before the next change."""
        self._families, self._node = {}, None
        try:
            guards = [clean_family(tables) for tables in self._every_tables()]
        except IptablesError as error:
            raise PlaneError(f"cleaning up iptables: {error}") from error
        if True in guards:
            self._ensure_sysctl(ROUTE_LOCALNET, 0)
        if self._tables is None:
            from dataplane.planes.iptables.capture import remove_table

            remove_table()

    def _open(self) -> dict[Family, _FamilySync]:
        if not self._families:
            tables = self._tables
            if tables is None:
                self._variant = self._variant or default_variant()
                tables = [KernelTables(family, self._variant) for family in Family]
            self._families = {each.family: _FamilySync(each) for each in tables}
        return self._families

    def _every_tables(self) -> Sequence[Tables]:
        if self._tables is not None:
            return self._tables
        return [KernelTables(f, v) for v in Variant for f in Family if installed(f, v)]

    def _state(self, plan: Plan, family: Family) -> FamilyState:
        return FamilyState.of(plan, family_settings(plan.node, family, tcp_be_liberal=self._tcp_be_liberal))

    def _changed(self, old: FamilyState, change: PlanChange, node: NodeConfig) -> FamilyState | None:
        """Return the family's state after the change, or None if the change does not affect it."""
        entries = _of_family(change, old.family)
        if not entries and change.node is None and not change.health_checks:
            return None
        health = {**old.health_checks, **(change.health_checks or {})}
        settings = family_settings(node, old.family, tcp_be_liberal=self._tcp_be_liberal)
        return old.changed(entries, {k: v for k, v in health.items() if v is not None}, settings)

    def _sync(self, sync: _FamilySync, old: FamilyState, new: FamilyState, change: PlanChange) -> None:
        now = self._clock()
        if new.settings != old.settings or now - sync.full > _FULL_SYNC_SECONDS:
            sync.sync_all(new, sync.saved(), now)
        else:
            sync.sync_changed(new, change, now)

    def _set_route_localnet(self, node: NodeConfig) -> bool:
        """Set the sysctl without which packets from loopback addresses cannot be translated to other hosts; returns
        whether it was another."""
        wanted = node.nodeports.loopback and Family.IPV4 in self._open()
        return wanted and bool(self._ensure_sysctl(ROUTE_LOCALNET, 1))

    def _undone(self, error: IptablesError, undo: list[tuple[_FamilySync, Saved]]) -> PlaneError:
        """Restore what a failed load replaced; return the error to raise."""
        try:
            for sync, saved in undo:
                sync.tables.restore(undo_input(saved, sync.saved()))
        except IptablesError as second:
            return PlaneError(f"loading iptables: {error}; putting the old rules back failed too: {second}")
        self._families = {}
        return PlaneError(f"loading iptables: {error}; the old rules are back in place")

    def _rolled_back(self, error: IptablesError, done: list[tuple[_FamilySync, FamilyState]]) -> PlaneError:
        """Write the state before a failed change again; return the error to raise."""
        try:
            for sync, old in done:
                sync.sync_all(old, sync.saved(), self._clock())
        except IptablesError as second:
            return PlaneError(f"changing iptables: {error}; going back failed too: {second}; load the plan again")
        return PlaneError(f"changing iptables: {error}; the rules are as they were before")


def _of_family(change: PlanChange, family: Family) -> tuple[EntryChange, ...]:
    return tuple(entry for entry in change.entries if entry.key.family is family)
