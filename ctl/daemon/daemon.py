"""The daemon: connects source, reconcile loop and servers, and runs until it is stopped."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ctl.daemon import heap
from ctl.daemon.announce import announce
from ctl.daemon.events import EventRecorder
from ctl.daemon.forwarding import ForwardingKeeper
from ctl.daemon.host_routing.router import GAVE_WAY, HostRouter
from ctl.daemon.http.connection_table import ConnectionTableCollector
from ctl.daemon.http.guard import SWEEP_SECONDS as SLOW_SECONDS
from ctl.daemon.http.guard import Guard
from ctl.daemon.http.health import Health, eligible
from ctl.daemon.http.health_watch import SECONDS as HEALTH_SECONDS
from ctl.daemon.http.health_watch import HealthWatch
from ctl.daemon.http.healthports import HealthPorts
from ctl.daemon.http.metrics import Metrics, ip_family
from ctl.daemon.http.traffic import TrafficCollector
from ctl.daemon.http.web import Listener, Site, health_answer, metrics_answer, split_bind
from ctl.daemon.http.zpages import pages
from ctl.daemon.jobs import Jobs, attempt
from ctl.daemon.log import Log, forward_logging
from ctl.daemon.node.addresses import AddressWatch
from ctl.daemon.node.descriptors import raise_limit
from ctl.daemon.node.kube_proxy import SECONDS as KUBE_PROXY_SECONDS
from ctl.daemon.node.kube_proxy import KubeProxyWatch
from ctl.daemon.node.nodes import describe
from ctl.daemon.node.rights import check_rights, held_capabilities
from ctl.daemon.node.sysctls import apply_sysctls
from ctl.daemon.node.watches import watch_node
from ctl.daemon.object_reports import ObjectReports
from ctl.daemon.settings import Settings, waits_for_restart
from ctl.daemon.sync.child import Child, ChildError
from ctl.daemon.sync.drift import POLL_SECONDS, DriftCheck
from ctl.daemon.sync.inbox import Inbox
from ctl.daemon.sync.kernel import Kernel
from ctl.daemon.sync.pace import Pace
from ctl.daemon.sync.parts import PartsWatch
from ctl.daemon.sync.planes import CleanUp, daemon_plane, untouched, wait_for_background_work
from ctl.daemon.sync.reconcile import Reconciler
from ctl.daemon.takeover import remove_kube_proxy
from ctl.daemon.takeover_socket import TakeoverListener, listen
from ctl.loaded import left_out
from ctl.sources.api import Api
from ctl.sources.directory import DirectorySource
from ctl.sources.kubeconfig import find_cluster
from ctl.sources.watch import Reflector, Resource, pod_resources, resources
from ctl.store import state, unfinished_loads
from ctl.store.files import make_folder
from ctl.store.journal import Journal, next_number
from ctl.store.lock import TAKEN_OVER_STATUS, Holder, Lock, takeover_socket_path
from ctl.store.stale import try_sweep
from dataplane.errors import HotplaneError
from dataplane.model.net import Family
from dataplane.model.objects import Node, ObjectRef
from dataplane.plan.change import PlanChange
from dataplane.plan.types import HealthCheck
from dataplane.planes.base import Plane
from dataplane.planes.registry import mode_of
from dataplane.policy.node import NodeConfig

if TYPE_CHECKING:
    from ctl.ui.counters import Reading
    from ctl.ui.node_view import NodePage

KINDS = ("Service", "EndpointSlice", "Node", "ServiceCIDR")
TICK_SECONDS = 30.0
SAVE_PATIENCE = 60.0
SWEEP_SECONDS = 3600.0
SAVE_SECONDS = 60.0
"""How long after a change the plan is saved for other commands (check, show, explain)."""


class Daemon:
    """One run of the daemon. reload: reads the settings again (SIGHUP); raises HotplaneError if they are wrong.
    lock: the held lock of this network namespace."""

    def __init__(self, settings: Settings, log: Log, reload: Callable[[], Settings], lock: Lock) -> None:
        self.settings, self._log, self._reload = settings, log, reload
        forward_logging(log)
        self.metrics = Metrics()
        self.health = Health(2 * settings.sync_period)
        self._reports = ObjectReports(log, lambda *event: self._events.warn(*event))
        self._pages = pages(lambda: self.settings)
        self._jobs = Jobs(log, self.metrics.job_failed)
        self._stop = asyncio.Event()
        self._saved = 0
        self._saving = asyncio.Lock()
        self._save_now = asyncio.Event()
        self._changing = True
        self._mode_changes = 0
        self._unfinished: frozenset[str] = frozenset()
        self._leaving: list[Plane] = []
        self._failure: BaseException | None = None
        self._save_server: asyncio.Server | None = None
        self._lock, self._status = lock, 0
        self._takeover = TakeoverListener(takeover_socket_path(), log, self._end_for_takeover)
        self._addresses: AddressWatch | None = None
        self._sites: dict[str, tuple[Site, Listener]] = {}
        self._taken: set[str] = set()
        self._reflectors: list[tuple[str, Reflector]] = []
        self._of_pods = pod_resources(
            settings.node.name, host_ports=settings.node.host_ports, connect_time=settings.balances_at_connect_time
        )
        self._api: Api | None = None
        self._events = EventRecorder(None, settings.node.name, log)
        self._traffic = TrafficCollector()
        self.metrics.registry.register(self._traffic)
        self.metrics.registry.register(ConnectionTableCollector())
        self._clean_up = CleanUp(self.metrics.cleaned)
        self._kernel = Kernel(self._clean_up, self._clean_up.is_brief)
        self._router = HostRouter(settings, self._kernel.exclude, self._jobs, log)
        kinds = (*KINDS, *(resource_.kind for resource_ in self._of_pods))
        self.inbox = Inbox(kinds, self._router.kinds.difference(kinds), self._router.listener)
        self._guard = Guard(self.metrics.connection_closed)
        self._forwarding = ForwardingKeeper(
            settings, self._kernel, self.inbox, lambda: self.reconciler.node, self._jobs, log
        )
        self._ports = HealthPorts(self.health, log, self._port_refused, self._guard)
        self.reconciler = Reconciler(
            settings.node.name,
            self.inbox, self._kernel, self._describe, self.health, self.metrics, log,
            Pace(settings.min_sync_period), self._after, self._jobs, self._unwritten, self._forwarding.before_load,
            vouched=not settings.paths,
        )  # fmt: skip
        self._page = self._make_page() if settings.ui else None

    async def run(self, hangups: Collection[int] = ()) -> int:
        """Run until SIGTERM, SIGINT or a takeover by another process; the rules stay in the kernel. Returns the exit
        status; raises the error that ended the run. hangups: SIGHUPs that have come already."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        if hangups:
            self._hangup()
        announce(self.settings, self._log)
        self._check_rights(self.settings.mode)
        await self._takeover.open()
        raise_limit()
        heap.pause_garbage_collection()
        self._score()
        apply_sysctls(self.settings.config.conntrack, self._log)
        try:
            await self._serve()
            self._jobs.every("connections", SLOW_SECONDS, self._guard.sweep)
            watch_node(self._jobs, lambda: self.settings.config.conntrack, self._log)
            self._jobs.every("health", HEALTH_SECONDS, HealthWatch(self.health, self._log).look)
            self._open_source()
            self._jobs.start("reconcile", self._work_once if self.settings.once else self._work)
            await self._stop.wait()
        finally:
            await self._close()
        return self._status

    def _end_for_takeover(self, sender: Holder) -> None:
        self._log.warning("gives way, as it was asked to", to=sender)
        self._status = TAKEN_OVER_STATUS
        self._stop.set()

    def _check_rights(self, mode: str) -> None:
        """Check the process's capabilities. Raises HotplaneError for a mode that cannot work with them."""
        warning = check_mode(mode)
        if warning:
            self._log.warning("capabilities", reason=warning)

    def _score(self) -> None:
        """Apply oomScoreAdj: the kernel should end other processes first when memory runs out."""
        try:
            Path("/proc/self/oom_score_adj").write_text(f"{self.settings.config.oom_score_adj}\n", encoding="ascii")
        except OSError as error:
            self._log.info("oomScoreAdj not set", reason=error.strerror)

    async def _work_once(self) -> None:
        """Load once and end (--once); an error fails the command."""
        self._failure = await attempt(self._load_once)
        self._stop.set()

    async def _load_once(self) -> None:
        await self._begin()
        await self._finish_mode_change()
        if self.settings.adopt:
            await self._remove_kube_proxy()
        await self._kernel.call(wait_for_background_work, self._kernel.plane)

    async def _remove_kube_proxy(self) -> None:
        await self._kernel.call(remove_kube_proxy, self.settings.mode, self._log)

    async def _work(self) -> None:
        """Load, then follow changes for ever. An error before the first load is complete starts it again."""
        await self._begin()
        self._forwarding.begin(self.reconciler.planner)
        self.reconciler.request("removal of another mode's rules", self._finish_mode_change)
        if self.settings.adopt:
            self.reconciler.request("removal of kube-proxy's rules", self._remove_kube_proxy)
        kube_proxy = KubeProxyWatch(self._kernel, lambda: self.settings.mode, self._log)
        self.reconciler.request("look for kube-proxy's rules", kube_proxy.look)  # behind their removal
        self._jobs.every("kube-proxy", KUBE_PROXY_SECONDS, kube_proxy.look)
        await self._listen()
        drift = DriftCheck(self.reconciler, self.metrics, self._log, self.settings.sync_period)
        self._jobs.every("drift", POLL_SECONDS, drift.poll)
        self._jobs.start("parts", PartsWatch(self._kernel, self.metrics, self._log).run)
        self._jobs.every("tick", TICK_SECONDS, self._tick)
        self._jobs.start("save", self._keep_saved)
        self._jobs.start("sweep", self._keep_swept)
        self._jobs.start("events", self._events.run)
        await self.reconciler.run()

    async def _begin(self) -> None:
        """Load the plan, whatever the kernel holds. May be called again after a failure."""
        if self._addresses is None:
            self._addresses = AddressWatch(self._look_at_node)  # before the addresses are read for the first time
        if not self._kernel.has(self.settings.mode):  # else it has threads and maps, which another one would double
            await self._use_plane()
        self._begin_mode(self.settings.mode)
        await self._kernel.call(self._clean_up.look, self.settings.mode)
        await self.reconciler.start()
        self._router.begin(self.settings)
        heap.resume_garbage_collection()

    def _open_source(self) -> None:
        settings = self.settings
        if settings.paths:
            source = DirectorySource(settings.paths, self.inbox, self._log, settings.node_ports)
            source.read()
            self._jobs.start("manifests", source.run)
            return
        cluster = find_cluster(settings.kubeconfig, settings.master, token_over_http=settings.token_over_http)
        self._log.info("watching", server=cluster.url, node=settings.node.name, mode=settings.mode)
        self._api = Api(cluster)
        self._events = EventRecorder(self._api, settings.node.name, self._log)
        for resource_ in (*resources(settings.node.name), *self._of_pods):
            self._watch(self._api, resource_)
        self._forwarding.connect(self._api, self._watch)
        self._router.connect(self._api, self._watch, frozenset(resource_.kind for resource_ in self._of_pods))

    def _watch(self, api: Api, resource: Resource) -> Reflector:
        own = resource.kind == "Node" and resource.covers(self.settings.node.name)
        reflector = Reflector(api, resource, self.inbox, self._log, observe=self._see_node if own else None)
        name = "Node (others)" if resource.kind == "Node" and not own else resource.kind
        self._reflectors.append((name, reflector))
        self._jobs.start(f"watch {name}", reflector.run)
        return reflector

    def _see_node(self, raw: msgspec.Raw | None) -> None:
        if raw is None:  # a Node object that goes leaves everything as it was last
            return
        before, self.health.node_eligible = self.health.node_eligible, eligible(raw)
        if before != self.health.node_eligible:
            self._log.info("node eligibility changed", eligible=self.health.node_eligible)

    async def _use_plane(self) -> None:
        settings = self.settings
        await self._kernel.use(lambda: daemon_plane(settings, self._log), untouched)
        await self._kernel.call(self._kernel.plane.prepare_load)

    async def _describe(self, node: Node | None) -> NodeConfig:
        settings = self.settings
        mode, options, lb = mode_of(settings.mode), settings.options, settings.lb
        return await self._kernel.call(describe, mode, settings.config, settings.node, node, options, lb)

    async def _after(self, change: PlanChange) -> None:
        """Update ports and report refused objects after a change, outside the measured sync time."""
        if self._page is not None:
            self._page.changed(change)
        if change.health_checks or change.node is not None:
            await self._update_ports()
        self._forwarding.look()
        planned, name = self.reconciler.planner.problems, self.settings.node.name
        self._reports.node_name(name, self.reconciler.planner.places.doubt())
        self._reports.noted(self.inbox.notes)
        self._reports.refused({**self.inbox.problems, **planned}, planned)

    async def _update_ports(self) -> None:
        plan = self.reconciler.planner.plan
        self._ports.update(plan.health_checks, plan.node.nodeports)

    def _port_refused(self, check: HealthCheck, why: str) -> None:
        ref = ObjectRef("Service", check.namespace, check.name)
        self._log.warning("health-check port", object=ref, reason=why)
        self._events.warn(ref, "FailedToStartServiceHealthcheck", f"health-check node port: {why}")

    async def _tick(self) -> None:
        """Periodic maintenance."""
        heap.trim()
        self._look_at_node()
        self._forwarding.look()
        await self._serve()

    def _look_at_node(self) -> None:
        """Have this node described again: its addresses may have changed."""
        self.reconciler.request("node", self.reconciler.change_node)
        self.reconciler.request("health-check ports", self._update_ports)

    async def _keep_saved(self) -> None:
        while True:
            await self._save()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAVE_SECONDS):  # wait_for may lose the word that it is time to end
                    await self._save_now.wait()
            self._save_now.clear()

    async def _keep_swept(self) -> None:
        """Remove leftovers of network namespaces that no longer exist, periodically and in a child process, which may
        enter other namespaces and has no time limit."""
        folder = self.settings.state_dir

        async def begin() -> Child:
            return Child(lambda: msgspec.json.encode(try_sweep(folder)))

        while True:
            child = await self.reconciler.between("sweep", begin)
            for record in msgspec.json.decode(await child.answer(SAVE_PATIENCE), type=list[dict[str, str]]):
                kind, name = record["kind"], record["name"]
                self._log.info("removed what a network namespace that is gone had left", kind=kind, name=name)
            await asyncio.sleep(SWEEP_SECONDS)

    async def _save(self) -> None:
        """Save the plan if it has changed since the last time; not during a change of modes."""
        async with self._saving:
            syncs, changes = self.reconciler.syncs + 1, self._mode_changes
            if syncs == self._saved or self._changing:
                return
            folder, saved = self.settings.state_dir, self._saved_plan

            def write() -> bytes:
                state.save(folder, saved())
                return b""

            async def begin() -> Child | None:
                if self._changing:
                    return None
                self._begin_journal()
                return Child(write)

            child = await self.reconciler.between("save", begin)
            if child is None:
                return
            try:
                await child.answer(SAVE_PATIENCE)
            except ChildError as error:
                raise ChildError(f"the plan could not be written down: {error}") from error
            self._saved = syncs
            if changes == self._mode_changes:
                unfinished_loads.clear(folder)
            else:  # in between the mode changed, of which this plan knows nothing
                self._saved = 0

    def _unwritten(self) -> None:
        """Mark the saved plan as stale, until the next one is saved: a change could not be written to the journal."""
        self._saved = 0
        try:
            state.mark_stale(self.settings.state_dir)
        except state.StateError as error:
            self._log.warning("the saved plan is older than the one that is served", reason=error)

    def _begin_journal(self) -> None:
        """Start a journal of the changes that follow the plan that is about to be saved."""
        if self.reconciler.journal is not None:
            self.reconciler.journal.close()
        try:
            base = state.plan_path(self.settings.state_dir)
            self.reconciler.journal = Journal(base, next_number(base))
        except OSError as error:
            self.reconciler.journal, self.reconciler.journal_failed = None, True
            self._log.warning("changes cannot be written down for other commands", reason=error.strerror)
            return
        if self.reconciler.journal_failed:
            self._log.info("changes are written down for other commands again")
            self.reconciler.journal_failed = False

    async def _listen(self) -> None:
        """Listen for commands that ask the daemon to save its plan (see state.ask_daemon)."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self._save()
                self._forwarding.save(self.settings.state_dir)
                await self._router.save(self._kernel, self.settings.state_dir)
            except (HotplaneError, OSError) as error:
                self._log.warning("the plan could not be written down", reason=error)
            finally:
                writer.close()

        path = state.socket_path(self.settings.state_dir)
        try:
            make_folder(path.parent)
            path.unlink(missing_ok=True)
            self._save_server = await listen(answer, path)
        except OSError as error:
            self._log.warning("other commands cannot ask for the plan", path=path, reason=error.strerror)

    def _saved_plan(self) -> state.Saved:
        settings, plan = self.settings, self.reconciler.planner.plan
        journal = self.reconciler.journal.number if self.reconciler.journal is not None else 0
        return state.Saved.of(settings.mode, plan, settings.options, left_out(self._kernel.plane), journal)

    def _begin_mode(self, mode: str) -> None:
        """Record that a mode is about to be loaded, in case the daemon is killed meanwhile (see unfinished_loads)."""
        self._lock.describe(mode)
        self._changing = True
        self._mode_changes += 1
        try:
            self._unfinished |= unfinished_loads.record(self.settings.state_dir, mode)
        except state.StateError as error:
            self._log.warning("a kill from here on may leave rules that nobody knows of", reason=error)

    async def _finish_mode_change(self) -> None:
        """Remove the rules of other modes, now that this mode handles the traffic; the plan may be saved as its."""
        old = await self._kernel.call(self._replace_others)
        if old:
            self._log.info("replaced mode", old=old, new=self.settings.mode)
        self._leaving.clear()
        self._unfinished, self._changing, self._saved = frozenset(), False, 0
        self._save_now.set()

    def _replace_others(self) -> str:
        mode, folder = self.settings.mode, self.settings.state_dir
        others = unfinished_loads.other_modes(mode, state.load(folder, current=False), self._unfinished)
        return unfinished_loads.replace_others(others, lambda old: self._clean_up.replace(old, mode), self._leaving)

    def _hangup(self) -> None:
        self.reconciler.request("reload of the configuration", self._change_settings)

    async def _change_settings(self) -> None:
        """SIGHUP: read the configuration again and use what can change while running."""
        try:
            fresh = self._reload()
            self._check_rights(fresh.mode)
        except HotplaneError as error:
            self._log.error("configuration not reloaded, the old one stays", reason=error)
            return
        if mode_of(fresh.mode).why_only_snat(fresh.options):
            await self._forwarding.retract()  # while the programs are still there
        old, self.settings = self.settings, self._what_can_change(fresh)
        fresh = self.settings
        self._router.use(fresh)
        self._forwarding.use(fresh)
        self.reconciler.pace.interval = fresh.min_sync_period
        self.health.patience = 2 * fresh.sync_period
        apply_sysctls(fresh.config.conntrack, self._log)
        self._score()
        self.reconciler.request("node", self.reconciler.change_node)
        if fresh.mode != old.mode:
            self._change_mode(old.mode)
        elif mode_of(fresh.mode).tcp_be_liberal and _tcp_be_liberal(fresh) != _tcp_be_liberal(old):
            self.reconciler.request("tcpBeLiberal", self._be_liberal)
        if fresh.binds != old.binds:
            await self._close_sites()
            await self._serve()
        self.reconciler.request("reload", lambda: self._reloaded(fresh.mode))  # behind what it asked for

    async def _reloaded(self, mode: str) -> None:
        self._log.info("configuration reloaded", mode=mode)

    def _what_can_change(self, fresh: Settings) -> Settings:
        """Return the new settings, with the old values of those that need a restart; logs these, each time."""
        old = self.settings
        pending = waits_for_restart(old, fresh)
        if pending:
            self._log.warning("changed settings that wait for a restart of hotplane", fields=",".join(pending))
        return msgspec.structs.replace(fresh, node=old.node, kubeconfig=old.kubeconfig)

    async def _be_liberal(self) -> None:
        await self._use_plane()
        await self.reconciler.reload("conntrack.tcpBeLiberal changed")

    def _change_mode(self, old_mode: str) -> None:
        """Load the new mode's rules, then remove the old one's."""
        self._begin_mode(self.settings.mode)
        why = f"mode {old_mode} becomes {self.settings.mode}"
        self.reconciler.request("change of modes", lambda: self._load_mode(why))

    async def _load_mode(self, why: str) -> None:
        """Raises HotplaneError where the old mode still answers."""
        if not self._changing:
            return
        if self._kernel.plane.name != self.settings.mode:
            old = self._kernel.plane
            self._router.end(GAVE_WAY)
            await self._use_plane()
            self._leaving.append(old)
        if not await self.reconciler.reload(why):
            raise HotplaneError(f"{why}: the rules could not be loaded, and the old ones still serve")
        await self._finish_mode_change()
        self._router.begin(self.settings)

    async def _serve(self) -> None:
        """Open the health and metrics servers that are not open yet. A port that is taken is fatal only with
        bindAddressHardFail; otherwise it is tried again now and then."""
        healthz, metrics = self.settings.binds
        look = metrics_answer(self.health, self.metrics, lambda: self.settings.mode, self._collect, self._pages)
        health = health_answer(self.health, self.metrics)
        ui = [(self.settings.ui, self._page.answer)] if self._page is not None else []
        for bind, answer in ((healthz, health), (metrics, look), *ui):
            host, port = split_bind(bind)
            if not port or bind in self._sites:
                continue
            site = Site(answer, self._guard)
            try:
                self._sites[bind] = (site, site.open(host, port))
            except OSError as error:
                text = f"{bind}: cannot be listened on: {error.strerror}"
                if self.settings.config.bind_address_hard_fail:
                    raise HotplaneError(f"{text}; free the port or choose another address") from error
                self._log.error("server not started", address=bind, reason=text)
                self._taken.add(bind)
                continue
            if bind in self._taken:
                self._log.info("server started", address=bind)
                self._taken.discard(bind)

    def _make_page(self) -> "NodePage":
        from ctl.ui.node_view import NodePage  # most daemons serve none

        return NodePage(lambda: self.settings, lambda: self.reconciler.planner, self._read_counters)

    async def _read_counters(self) -> "Reading | None":
        from ctl.ui.counters import read

        return await self._kernel.call(read, self._kernel.plane) if self.health.started else None

    async def _collect(self) -> None:
        """Update the gauges, once per scrape."""
        metrics, tally = self.metrics, self.reconciler.tally
        metrics.frontends.set(tally.frontends)
        metrics.entries.set(tally.entries)
        metrics.connections.set(self._guard.count)
        metrics.limited.set(tally.limited)
        for family in Family:
            metrics.no_local.labels("internal", ip_family(family)).set(tally.internal[family])
            metrics.no_local.labels("external", ip_family(family)).set(tally.external[family])
            metrics.service_pending.labels(ip_family(family)).set(self.inbox.pending_of("Service", family))
            metrics.endpoint_pending.labels(ip_family(family)).set(self.inbox.pending_of("EndpointSlice", family))
        metrics.behind.set(len(self._kernel.ledger))
        metrics.problems.set(len({**self.inbox.problems, **self.reconciler.planner.problems}))
        metrics.announced.set(self._forwarding.announced)
        metrics.peers.set(len(self.reconciler.planner.tunnels))
        metrics.invalid_events.set(self.inbox.invalid_events)
        now = time.monotonic()
        for kind, reflector in self._reflectors:
            metrics.watch_failing.labels(kind).set(now - reflector.failing_since if reflector.failing_since else 0)
            metrics.lists.labels(kind).set(reflector.lists)
        if self.health.started:
            await self._kernel.call(self._traffic.read, self._kernel.plane)

    async def _close_sites(self) -> None:
        for site, server in self._sites.values():
            server.close()
            await site.close()
        self._sites.clear()

    async def _close(self) -> None:
        """Stop all jobs and servers; the rules stay in the kernel."""
        await self._jobs.close()
        self._router.close()
        if self._addresses is not None:
            self._addresses.close()
        if self._save_server is not None:
            self._save_server.close()
            state.socket_path(self.settings.state_dir).unlink(missing_ok=True)
        await self._ports.close()
        await self._close_sites()
        if self._api is not None:
            await self._api.close()
        self._kernel.close()
        await self._takeover.close()
        if self._failure is not None:
            raise self._failure
        self._save_last()
        self._log.info("stopped; the data plane stays as it is")

    def _save_last(self) -> None:
        """Save the plan at the end. If that fails, the last saved plan and its journal are still valid."""
        journal, self.reconciler.journal = self.reconciler.journal, None
        if journal is not None:
            journal.close()
        if not self.health.started or self._changing:
            return
        try:
            state.save(self.settings.state_dir, self._saved_plan())
            unfinished_loads.clear(self.settings.state_dir)
        except state.StateError as error:
            self._log.warning("the plan could not be written down at the end", reason=error)


def check_mode(mode: str) -> str:
    """Return a warning about missing capabilities that a mode can do without, or "". Raises HotplaneError for a mode
    that cannot work without them."""
    return check_rights(mode, held_capabilities(), prepared=mode_of(mode).is_prepared())


def _tcp_be_liberal(settings: Settings) -> bool:
    return settings.config.conntrack.tcp_be_liberal
