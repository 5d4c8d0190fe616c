"""The eBPF plane: the plan in maps that programs at several hooks balance by, over a complete slow path."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from operator import attrgetter
from pathlib import Path

from msgspec.structs import replace

from dataplane.faults import ignore
from dataplane.garbage import no_garbage_collection, short_turns
from dataplane.kernel.namespaces.netns_cookie import netns_cookie
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import EntryKey, Plan, PlanEntry, Table
from dataplane.planes.answers import Flow, Refused, Traffic, Usage
from dataplane.planes.base import Plane, PlaneError
from dataplane.planes.captures import CaptureStream
from dataplane.planes.clients import Client
from dataplane.planes.decisions import Asked, DecisionStream
from dataplane.planes.ebpf.ahead import Ahead
from dataplane.planes.ebpf.attach.devices import raw_devices, read_network
from dataplane.planes.ebpf.attach.optional import OptionalHook
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.programs import ConnectHook, Hook, remove_link
from dataplane.planes.ebpf.connect_time.off import ConnectOff
from dataplane.planes.ebpf.flows import drain
from dataplane.planes.ebpf.flows.collect import Collector
from dataplane.planes.ebpf.flows.collect import sweep as collect
from dataplane.planes.ebpf.flows.reserve import leave_connections
from dataplane.planes.ebpf.flows.sockets import SocketCleaner
from dataplane.planes.ebpf.host_routing.table import HostRouting
from dataplane.planes.ebpf.maps.adopt import Adopted, adopt, read_rows, sweep
from dataplane.planes.ebpf.maps.encode import stored_service
from dataplane.planes.ebpf.maps.fill import filled
from dataplane.planes.ebpf.maps.full import Full, full_sentences
from dataplane.planes.ebpf.maps.layout import Sizes, layout_version
from dataplane.planes.ebpf.maps.mapset import MapSet, pin_maps
from dataplane.planes.ebpf.maps.node_settings import (
    takes_over,
    write_node,
    write_notes_answers,
    write_ready,
    write_takes_over,
)
from dataplane.planes.ebpf.maps.opened import bring_flows, held_maps, open_or_make
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
from dataplane.planes.ebpf.maps.restore import restore_pins
from dataplane.planes.ebpf.maps.tables import Removed, Tables
from dataplane.planes.ebpf.views import answers
from dataplane.planes.ebpf.views import records as views
from dataplane.planes.exclusions import Exclusions
from dataplane.planes.host_routes import HostRoutes
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.maglev import Hashing, seed_of
from dataplane.policy.node import NodeConfig

CLEANER_SECONDS = 30.0
"""How long a process that ends waits for UDP sockets to be disconnected."""

_TUNNELS = attrgetter("tunnels")


def _sticky(change: PlanChange) -> bool:
    """Whether a change brings or keeps clients that stay with their endpoint."""
    return any(entry.new is not None and entry.new.affinity_seconds for entry in change.entries)


def _forwards(entries: Iterable[PlanEntry | None]) -> bool:
    """Whether packets of any entry are forwarded to other nodes."""
    return any(entry is not None and entry.tunnels for entry in entries)


def _carries(entries: Iterable[PlanEntry | None]) -> bool:
    """Whether connections to any entry may go on at another node than the one that took them: all choose alike, and
    forward."""
    return any(entry is not None and bool(entry.tunnels) and entry.algorithm is Algorithm.MAGLEV for entry in entries)


def _hashing(node: NodeConfig) -> Hashing:
    return Hashing(node.maglev_table_size, seed_of(node.hash_seed))


def slow_node(node: NodeConfig, *, at_connect: bool) -> NodeConfig:
    """A node as the slow path is to see it. at_connect: node ports at loopback addresses are connect time's alone, and
    the slow path need not lead packets away from there, for which it opens routing."""
    if not at_connect:
        return node
    return replace(node, nodeports=replace(node.nodeports, loopback=False, loopback_ipv6=False))


class EbpfPlane(Plane):
    """See planes.base.Plane. Works in the network namespace in which the object was made.

    slow: the plane underneath, always complete, that gets whatever the programs pass on.
    hooks: what to attach, in this order. sizes: of the maps. instance: name of the pin directory (default: made of the
    network namespace's cookie). kube_proxy_masquerade: masquerade exactly where kube-proxy does (`--masquerade
    kube-proxy`), also where a client could keep its address. cleaner: who disconnects UDP sockets from endpoints that
    went; None leaves them. loopback_at_connect: see slow_node. report: hears of full maps, where this process lives on
    and is to collect what is over in them; None = nobody collects. mended: hears when they have room again. off: who
    looks after those for whom connect time is off, where there is that hook. host_routing: who goes past the node's
    stack, kept by the packet hook. fill_seconds: processor time in which a load into an empty kernel made and filled
    the maps.
    """

    name = "ebpf"
    slow: Plane
    counts_refusals_apart = True

    def __init__(
        self,
        slow: Plane,
        hooks: Sequence[Hook] = (),
        sizes: Sizes | None = None,
        instance: str = "",
        kube_proxy_masquerade: bool = False,
        cleaner: SocketCleaner | None = None,
        report: Callable[[str], None] | None = None,
        off: ConnectOff | None = None,
        *,
        loopback_at_connect: bool = False,
        host_routing: HostRouting | None = None,
        mended: Callable[[str], None] = ignore,
    ) -> None:
        self.host_routing = host_routing
        self.slow, self.hooks, self.sizes = slow, tuple(hooks), sizes or Sizes()
        self._connect_hooks = [hook for hook in hooks if hook.name == ConnectHook.name]
        self._packet_hooks = [hook for hook in hooks if hook.name != ConnectHook.name]
        self.pins = PinDirectory(instance or default_instance())
        self.cleaner = cleaner
        self._off = off
        self._cookie = netns_cookie()
        self._kube_proxy_masquerade = kube_proxy_masquerade
        self._tables: Tables | None = None
        self._node = NodeConfig()
        self._ahead: Ahead | None = None
        self._report, self._mended = report, mended
        self._loopback_at_connect = loopback_at_connect
        self.fill_seconds = 0.0
        self._told: frozenset[str] = frozenset()
        self._full = Full(report, mended)
        self._told_changes = 0
        self.collector: Collector | None = None

    @property
    def tables(self) -> Tables:
        """The content of the maps. Raises PlaneError before `load`."""
        if self._tables is None:
            raise PlaneError("ebpf plane: no plan has been loaded yet; call load first")
        return self._tables

    @property
    def loaded(self) -> bool:
        """True if this object has loaded a plan."""
        return self._tables is not None

    @property
    def left_out(self) -> frozenset[EntryKey]:
        """Entries that did not fit in the maps, served by the slow path alone; none before `load`."""
        return frozenset(self._tables.overflow) if self._tables is not None else frozenset()

    @property
    def overflow(self) -> dict[str, int]:
        """Full maps by name, with the number of entries that the slow path serves because of them."""
        found: dict[str, int] = {}
        for name in self._tables.overflow.values() if self._tables is not None else ():
            found[name] = found.get(name, 0) + 1
        return found

    @property
    def commits(self) -> int | None:
        """See planes.base.Plane.commits; of the slow path."""
        return self.slow.commits

    @property
    def commits_tell_all(self) -> bool:
        """See planes.base.Plane.commits_tell_all: maps have no such number."""
        return False

    def mend(self) -> Sequence[str]:
        """See planes.base.Plane.mend. Maps first, which are this process's as long as it lives: where all pins went,
        the next process still finds the flows."""
        if self._tables is None:
            return ()
        found = restore_pins(self._tables.maps, self.pins)
        for hook in (*self._packet_hooks, *self._connect_hooks):
            found += hook.mend()
        return [*found, *self.slow.mend()]

    def directories(self) -> Collection[Path]:
        """See planes.base.Plane.directories."""
        return self.pins.directories(layout_version(self.sizes)) if self.loaded else ()

    def prepare_load(self) -> None:
        """See planes.base.Plane.prepare_load. Over an earlier process's maps there is nothing to do."""
        with suppress(PlaneError):  # the pins cannot be looked at; `load` says so
            if self._tables is None and self._ahead is None and not self.pins.map_versions():
                self._ahead = Ahead(self.hooks, self.sizes)

    def load(self, plan: Plan) -> PlanChange:
        """See planes.base.Plane.load. Returns the change of the slow path, which holds the whole plan.

        Pinned maps of this layout and these sizes are adopted, those of other sizes copied; otherwise new maps are
        filled from the plan. Programs switch to the new maps in one step, and old maps are removed afterwards.

        Where there are no maps, new ones are filled and the programs loaded while the slow path is. Nothing of that is
        pinned, attached or seen by a packet before the slow path is complete. Maps of an earlier process are read while
        the slow path is loaded, and changed afterwards.
        """
        slow, version = replace(plan, node=self._slow_node(plan.node)), layout_version(self.sizes)
        with no_garbage_collection():  # or half of the time goes into looking for cycles among values that stay
            if self._tables is None and not self.pins.map_versions():
                changed, tables = self._load_anew(slow, plan)
                pin_maps(tables.maps, self.pins.maps(version))
                self._go_live(plan, tables, [], adopted=False)
                return changed
            self._drop_ahead()
            maps = held_maps(self.pins, self.sizes, self._cookie) if self._tables is None else None
            if maps is not None:
                changed, found = self._load_over(slow, maps, plan)
                self._bring(plan, found)
                return changed
            changed = self.slow.load(slow)
            self.close()
            maps, adopted, copied_ns = open_or_make(self.pins, self.sizes, self._cookie)
            if adopted:
                self._bring(plan, adopt(maps, plan.entries, _hashing(plan.node)), copied_ns)
            else:
                self._go_live(plan, filled(maps, plan.entries.values(), _hashing(plan.node)), [], adopted=False)
        return changed

    def _load_over(self, slow: Plan, maps: MapSet, plan: Plan) -> tuple[PlanChange, Adopted]:
        """Load the slow path and read the maps of an earlier process at the same time. Closes them after an error."""
        with ExitStack() as undo, short_turns(), ThreadPoolExecutor(1) as threads:
            undo.enter_context(maps)
            loading = threads.submit(self.slow.load, slow)
            found, changed = adopt(maps, plan.entries, _hashing(plan.node)), loading.result()
            undo.pop_all()
        return changed, found

    def _load_anew(self, slow: Plan, plan: Plan) -> tuple[PlanChange, Tables]:
        """Load the slow path, new maps and the programs at the same time; returns the slow path's change and the maps,
        filled. After an error nothing is left of maps and programs."""
        addresses = [address for family in Family if (address := plan.node.primary(family))]
        ahead, self._ahead = self._ahead or Ahead(self.hooks, self.sizes, addresses), None
        with ExitStack() as undo, short_turns(), ThreadPoolExecutor(1) as threads:
            undo.callback(ahead.close)
            loading = threads.submit(self.slow.load, slow)
            started = time.thread_time()
            tables = filled(ahead.maps(), plan.entries.values(), _hashing(plan.node))
            self.fill_seconds = time.thread_time() - started + ahead.seconds
            changed = loading.result()
            ahead.wait()
            undo.pop_all()
        return changed, tables

    def _bring(self, plan: Plan, found: Adopted, copied_ns: int = 0) -> None:
        """Bring adopted maps to the plan, over the slow path that has it already. copied_ns: see maps.opened."""
        tables, broken = found
        tables.tunnels.move(plan.tunnel_moves)
        tables.tunnels.closed = not tables.tunnels.known
        removed = tables.apply(
            [
                *(EntryChange(i.entry, None) for key, i in tables.installed.items() if key not in plan.entries),
                *(
                    EntryChange(None, entry)
                    for key, entry in plan.entries.items()
                    if key in broken or key not in tables.installed or tables.installed[key].entry != entry
                ),
            ]
        )
        sweep(tables)
        self._go_live(plan, tables, removed, adopted=True, copied_ns=copied_ns)
        if tables.tunnels.closed:  # no longer, now that the programs are there
            tables.tunnels.closed = False
            tables.apply([EntryChange(entry, entry) for entry in plan.entries.values() if entry.tunnels])

    def _go_live(
        self, plan: Plan, tables: Tables, removed: list[Removed], *, adopted: bool, copied_ns: int = 0
    ) -> None:
        """Have packets served by maps that hold the plan, and remove what was there before. removed: backends that the
        maps had and the plan has not. adopted: an earlier run filled the maps; into new ones no flow is put before all
        programs are attached that its packets may meet. copied_ns: see maps.opened."""
        maps, version = tables.maps, layout_version(self.sizes)
        if self._off is not None:
            self._off.begin(maps, plan.connect_off)
        if tables.tunnels.use(plan.tunnel_formats) and not tables.tunnels.closed:
            tables.apply([EntryChange(entry, entry) for entry in plan.entries.values() if entry.tunnels])
        tables.accept(plan.tunnel_peers)
        self._write_node(tables, plan.node, ready=adopted)
        tables.end_load()
        if adopted:
            collect(maps)  # flows that expired since the last run, when perhaps no collector ran
        self._tables = tables
        self.pins.wanted_links.clear()
        self.pins.wanted_programs.clear()
        copied_ns = bring_flows(self.pins, maps, copied_ns)
        for hook in self._packet_hooks:
            hook.attach(maps, self.pins)
        if not adopted:
            write_ready(maps, True)
        for hook in self._connect_hooks:  # sockets ask one program alone, which must not pass one on for a moment
            hook.attach(maps, self.pins)
        if any(map(_TUNNELS, plan.entries.values())) and _carries(plan.entries.values()):
            self._take_over(maps)
        bring_flows(self.pins, maps, copied_ns)
        self.pins.remove_unwanted_programs(version)
        for name, path in self.pins.links().items():
            if name not in self.pins.wanted_links:  # of a hook, device or control group of an earlier run
                remove_link(path)
        for old in self.pins.map_versions():
            if old != version:
                self.pins.remove_maps(old)
        drain.resume(self.pins)
        self._disconnect(removed)
        self._told = frozenset(self.without_tables())  # which finish_load says
        self._full.tell(self.tables.overflow, self.tables.installed)
        self._told_changes = tables.steady.changes
        if self._report is not None:
            self.collector = Collector(maps, self._report, mended=self._mended)

    def _write_node(self, tables: Tables, node: NodeConfig, *, ready: bool = True) -> None:
        self._node, tunnel = node, tables.tunnels.known
        write_node(tables.maps, node, self._cookie, self._kube_proxy_masquerade, tunnel=tunnel, ready=ready)

    def _take_over(self, maps: MapSet) -> None:
        """Have the programs go on with connections that other nodes took. Raises ConntrackError, PlaneError."""
        if self._packet_hooks and not takes_over(maps):
            write_notes_answers(maps)
            leave_connections(maps)
            write_takes_over(maps, True)

    def apply(self, change: PlanChange) -> None:
        """See planes.base.Plane.apply. The slow path changes first, so that it serves entries that do not fit in the
        maps. With session affinity the maps change first, since clients that connect in between would change their
        endpoint; until its own change the slow path serves what the maps pass to it as before."""
        tables, maps_first = self.tables, _sticky(change)
        forwarded = tables.tunnels.known
        if change.tunnel_moves is not None:
            tables.tunnels.move(change.tunnel_moves)
        if not forwarded and (change.tunnel_peers or _forwards(entry.new for entry in change.entries)):
            for hook in self._packet_hooks:
                hook.forward()
        if _carries(entry.new for entry in change.entries):
            self._take_over(tables.maps)
        renamed = change.tunnel_formats is not None and tables.tunnels.use(change.tunnel_formats)
        removed = tables.apply(change.entries) if maps_first else []
        try:
            self.slow.apply(replace(change, node=change.node and self._slow_node(change.node)))
        except BaseException:
            if maps_first:
                tables.apply(change.inverse_of_entries())
            raise
        if not maps_first:
            removed = tables.apply(change.entries)
        if change.tunnel_peers is not None:
            tables.accept(change.tunnel_peers)
        if renamed:
            held = [installed.entry for installed in tables.installed.values() if installed.entry.tunnels]
            tables.apply([EntryChange(entry, entry) for entry in held])
        if change.node is not None:
            tables.rehash(_hashing(change.node))
        if change.node is not None or forwarded != tables.tunnels.known:
            self._write_node(tables, change.node or self._node)
        if change.connect_off is not None and self._off is not None:
            self._off.use(change.connect_off)
        self._disconnect(removed)
        self._full.tell(self.tables.overflow, self.tables.installed)
        self._tell_without_tables()

    def _tell_without_tables(self) -> None:
        """Report Service ports that have no Maglev table, once each."""
        if self.tables.steady.changes == self._told_changes:
            return
        self._told_changes = self.tables.steady.changes
        told, self._told = self._told, frozenset(self.without_tables())
        if self._report is not None:
            for sentence in sorted(self._told - told):
                self._report(sentence)

    def _slow_node(self, node: NodeConfig) -> NodeConfig:
        return slow_node(node, at_connect=self._loopback_at_connect)

    def _disconnect(self, removed: list[Removed]) -> None:
        gone = [r for r in removed if r.entry.protocol is Protocol.UDP]
        if gone and self.cleaner is not None:
            self.cleaner.disconnect(self.tables.maps, gone)

    def read_back(self) -> Table:
        """See planes.base.Plane.read_back. Frontends of entries that did not fit are read from the slow path. What is
        drawn at random because there was no room for its Maglev table counts as planned; `without_tables` names it.

        Before `load`, reads the maps of an earlier run; returns nothing if there are none or they only drain.
        """
        if self._tables is None:
            maps = None if self.pins.draining else views.open_instance(self.pins.instance)
            if maps is None:
                return {}
            with maps:
                return read_rows(maps)
        tables = self.tables
        rows = read_rows(tables.maps, tables.installed)
        if tables.overflow:
            left_out = {key.service for key in tables.overflow}
            rows |= {
                key: row for key, row in self.slow.read_back().items() if row.service in left_out and key not in rows
            }
        for key in tables.steady.refused:
            entry = tables.installed[key].entry if key in tables.installed else None
            for frontend in entry.frontends if entry is not None else ():
                if entry is not None and entry.steady(frontend) and frontend.key in rows:
                    rows[frontend.key] = replace(rows[frontend.key], algorithm=Algorithm.MAGLEV)
        return rows

    def without_tables(self) -> list[str]:
        """Return a sentence for each Service port that is drawn at random because it has no Maglev table."""
        refused = self._tables.steady.refused if self._tables is not None else {}
        return [f"Service {key.service} is balanced at random, not by maglev: {why}" for key, why in refused.items()]

    def stand_aside(self, aside: bool) -> None:
        """See planes.base.Plane.stand_aside. Flows that the packet programs translate are interrupted meanwhile."""
        tables = self.tables
        if aside:  # the slow path's connections are not noted meanwhile
            write_takes_over(tables.maps, False)
        write_ready(tables.maps, not aside)
        if not aside and _carries(held.entry for held in tables.installed.values()):
            self._take_over(tables.maps)

    def finish_load(self) -> Sequence[str]:
        """See planes.base.Plane.finish_load."""
        if self.cleaner is not None:
            self.cleaner.flush(CLEANER_SECONDS)
        return [*full_sentences(self.tables.overflow if self.loaded else {}), *self.without_tables()]

    def exclude(self, exclusions: Exclusions) -> None:
        """See planes.base.Plane.exclude. Before `load` and during one nobody goes past the stack."""
        if self.host_routing is not None:
            self.host_routing.exclude(exclusions)

    def host_routes(self) -> HostRoutes | None:
        """See planes.base.Plane.host_routes. A plane that did not load the plan knows no reasons."""
        if self.host_routing is not None and self._tables is not None:
            if self.host_routing.refused:
                return HostRoutes(refused=self.host_routing.refused)
            return answers.host_routes(self.host_routing) if self.host_routing.begun else None
        with self._maps() as maps:
            return answers.permitted_routes(maps) if maps is not None else None

    def why_not_forwarding(self) -> str:
        """See planes.base.Plane.why_not_forwarding: they come in by an uplink."""
        if self._tables is None:
            return "no plan is loaded"
        used = [hook.used if isinstance(hook, OptionalHook) else hook for hook in self._packet_hooks]
        packets = [hook for hook in used if isinstance(hook, PacketHook)]
        if not packets:
            return "neither the tc nor the XDP hook is at work (doctor tells why)"
        uplinks = [each for hook in packets for each in hook.status() if "uplink" in each.roles]
        return "" if uplinks else "no uplink has packet programs"

    def stored_name(self, service: str) -> str:
        """See planes.base.Plane.stored_name."""
        return stored_service(service)

    @contextmanager
    def _maps(self) -> Iterator[MapSet | None]:
        """Open the maps of this object, else those pinned for this network namespace; None if there are none."""
        maps = None if self._tables is not None else views.open_instance(self.pins.instance)
        if maps is None:
            yield self._tables.maps if self._tables is not None else None
        else:
            with maps:
                yield maps

    def remembered_clients(self) -> Sequence[Client]:
        """See planes.base.Plane.remembered_clients."""
        with self._maps() as maps:
            mine = list(answers.clients(maps, self.read_back())) if maps is not None else []
        return [*mine, *self.slow.remembered_clients()]

    def flows(self) -> Sequence[Flow]:
        """See planes.base.Plane.flows."""
        with self._maps() as maps:
            return list(views.flows(maps)) if maps is not None else []

    def traffic(self) -> Traffic:
        """See planes.base.Plane.traffic."""
        with self._maps() as maps:
            return answers.traffic(maps) if maps is not None else Traffic({}, (), loaded=False)

    def refused(self) -> Sequence[Refused]:
        """See planes.base.Plane.refused. What the programs leave to the slow path to refuse is among both."""
        return [*answers.refused_by_programs(self.traffic()), *(self.slow.refused() or ())]

    def answered_pings(self) -> int | None:
        """See planes.base.Plane.answered_pings."""
        return self.slow.answered_pings()

    def usage(self) -> Usage | None:
        """See planes.base.Plane.usage."""
        if self._tables is None:
            return None
        return answers.usage(self._tables.maps, self.overflow, self.collector)

    def decisions(self, asked: Asked) -> DecisionStream:
        """See planes.base.Plane.decisions."""
        maps = views.open_instance(self.pins.instance)
        if maps is None:
            raise PlaneError("no ebpf plane is loaded in this network namespace: hotplane --mode ebpf apply -f ...")
        try:
            return answers.EbpfDecisions(maps, asked)
        except BaseException:
            maps.close()
            raise

    def capture(self, snap: int) -> CaptureStream:
        """See planes.base.Plane.capture."""
        from dataplane.planes.ebpf.views.captures import ProgramCapture  # takes 7 ms, which no other command needs

        maps = views.open_instance(self.pins.instance)
        if maps is None:
            raise PlaneError("no ebpf plane is loaded in this network namespace: hotplane --mode ebpf apply -f ...")
        with ExitStack() as undo:
            undo.enter_context(maps)
            slow = self.slow.capture(snap)
            if slow is not None:
                undo.enter_context(slow)
            capture = ProgramCapture(maps, slow, snap, raw_devices(read_network()))
            undo.pop_all()
        return capture

    def _drop_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.close()

    def close(self) -> None:
        """Close the maps. Everything in the kernel stays and works, except that new devices get no programs."""
        self._drop_ahead()
        for hook in self.hooks:
            hook.close()
        if self.collector is not None:
            self.collector.close()
            self.collector = None
        if self._off is not None:
            self._off.close()
        if self._tables is not None:
            self._tables.maps.close()
            self._tables = None

    def give_way(self, stays: Collection[str]) -> int:
        """See planes.base.Plane.give_way: new flows are not balanced, existing ones are translated until they end (see
        planes.ebpf.flows.drain)."""
        self.close()
        left = drain.drain(self.pins)
        self.slow.give_way(stays)
        return left

    def cleanup(self) -> None:
        """See planes.base.Plane.cleanup."""
        self.close()
        if self.pins.path is not None:
            for hook in self.hooks:
                hook.detach(self.pins)
            drain.remove(self.pins)
        self.slow.cleanup()
