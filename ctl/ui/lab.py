"""What the page shows of a lab: its places, what is loaded on its nodes, and real packets between them."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from ctl.lab.call import SECONDS, counted
from ctl.loaded import plane_of
from ctl.picture.names import names_of_lab
from ctl.store import state
from ctl.ui.changes import told
from ctl.ui.counters import connections_now, news, read, shown
from ctl.ui.listing import services_of
from ctl.ui.modes import Known, bracketed, explanations
from ctl.ui.refusals import Refusals
from ctl.ui.view import (
    Counters,
    Event,
    Explanation,
    Look,
    NodeShown,
    Overview,
    PodShown,
    Sent,
    ServicesShown,
    SourceShown,
    View,
)
from dataplane.errors import HotplaneError, UsageError
from dataplane.kernel.namespaces import netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, Node
from dataplane.lab.traffic.probe import Probe
from dataplane.model.net import Protocol
from dataplane.oracle.flow import parse_flow
from dataplane.plan.change import diff
from dataplane.plan.types import FrontendKey, Plan
from dataplane.planes.base import Plane
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from dataplane.policy.settings import ProxySettings

_T = TypeVar("_T")


class _Loaded(NamedTuple):
    """What is loaded on a node, when its file was written, and a plane to read it with."""

    written: int
    saved: state.Saved
    plan: Plan
    plane: Plane
    services: dict[FrontendKey, str]


class LabView(View):
    """A view of a lab that is up. All that enters other network namespaces is done in one thread of its own."""

    def __init__(self, lab: Lab, state_dir: Path) -> None:
        self._lab, self._state_dir = lab, state_dir
        self._names = names_of_lab(lab.topology)
        self._settings = ProxySettings(cluster_cidrs=tuple(CLUSTER_CIDR[family] for family in lab.spec.families))
        self._loaded: dict[str, _Loaded] = {}
        self._empty: set[str] = set()
        self._refusals: dict[str, Refusals] = {}
        self._before: dict[str, Counters] = {}
        self._worker = ThreadPoolExecutor(1, "lab-ui")
        self._prober = ThreadPoolExecutor(1, "lab-ui-calls")

    async def rest(self) -> None:
        await self._do(self._close_refusals)

    def _close_refusals(self) -> None:
        for refusals in self._refusals.values():
            refusals.close()
        self._refusals.clear()

    def close(self) -> None:
        """End its threads."""
        self._worker.submit(self._close_refusals)
        self._worker.shutdown()
        self._prober.shutdown()

    async def _do(self, function: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, function)
        except FileNotFoundError as error:
            name = self._lab.spec.name
            raise HotplaneError(
                f"lab {name}: {error.filename} is not there: is it down? hotplane lab status"
            ) from error

    async def overview(self) -> Overview:
        return await self._do(self._overview)

    async def services(self, search: str) -> ServicesShown:
        return await self._do(lambda: self._services(search))

    async def explain(self, source: str, destination: str) -> Sequence[Explanation]:
        return await self._do(lambda: self._explain(source, destination))

    async def look(self) -> Look:
        return await self._do(self._look)

    async def call(self, source: str, destination: str, count: int) -> Sequence[Sent]:
        """See View.call."""
        packet = parse_flow(f"{bracketed(source)} -> {destination}")
        if packet.protocol is Protocol.SCTP:
            raise UsageError("SCTP cannot be sent from here, TCP and UDP can")
        place = self._place_of(packet.source)
        probe = Probe(
            packet.destination, packet.port, packet.protocol, count=count, timeout=SECONDS, source=packet.source
        )
        probed = await asyncio.get_running_loop().run_in_executor(self._prober, lambda: self._lab.probe(place, probe))
        return counted(probed[0])

    def _place_of(self, address: str) -> str:
        """The place that has an address. Raises UsageError."""
        for place in self._lab.topology.places():
            if address in self._addresses_of(place.name):
                return place.name
        raise UsageError(f"nobody in lab {self._lab.spec.name} has the address {address}")

    def _addresses_of(self, name: str) -> set[str]:
        place = self._lab.place(name)
        more = place.second.values() if isinstance(place, Node) else ()
        via = [a for each in self._lab.client.via.values() for a in each.values()] if place is self._lab.client else ()
        return {*place.addresses.values(), *more, *via}

    def _overview(self) -> Overview:
        nodes = tuple(self._node(node) for node in self._lab.nodes)
        modes = sorted({node.mode for node in nodes if node.mode})
        client = self._lab.client
        sources = [SourceShown(client.name, "client", tuple(client.addresses.values()))]
        sources += [SourceShown(pod.name, "pod", tuple(pod.addresses.values())) for pod in self._lab.pods]
        sources += [SourceShown(node.name, "node", tuple(node.addresses.values())) for node in self._lab.nodes]
        return Overview(f"lab {self._lab.spec.name}", ", ".join(modes), nodes, tuple(sources), sends=True)

    def _node(self, node: Node) -> NodeShown:
        loaded, _ = self._load(node)
        pods = tuple(PodShown(pod.name, tuple(pod.addresses.values())) for pod in node.pods)
        return NodeShown(node.name, tuple(node.addresses.values()), pods, loaded.saved.mode if loaded else "")

    def _services(self, search: str) -> ServicesShown:
        """Services as the first node that has any knows them; all nodes of a lab are loaded alike."""
        addresses = [(node.name, address) for node in self._lab.nodes for address in node.addresses.values()]
        for node in self._lab.nodes:
            loaded, _ = self._load(node)
            if loaded is not None:
                return services_of(loaded.plan, search, addresses)
        return ServicesShown((), 0)

    def _explain(self, source: str, destination: str) -> list[Explanation]:
        packet = parse_flow(f"{bracketed(source)} -> {destination}")
        node = self._decides(packet.source, packet.destination)
        loaded, _ = self._load(node)
        if loaded is None:
            raise HotplaneError(f"nothing is loaded on {node.name}: hotplane lab apply -f examples/ loads something")
        with netns.netns(node.netns):
            options = mode_of(loaded.saved.mode).in_effect(loaded.saved.options or PlaneOptions())
        return explanations(Known(loaded.plan, loaded.saved.mode, options, self._settings, self._names), packet)

    def _decides(self, source: str, destination: str) -> Node:
        """The node that takes a packet: the one whose address it goes to, else the sender's own, else the entry."""
        nodes = {node.name: node for node in self._lab.nodes}
        for node in self._lab.nodes:
            if destination in self._addresses_of(node.name):
                return node
        for node in self._lab.nodes:
            if source in self._addresses_of(node.name) or self._names.node(source) == node.name:
                return node
        via = self._lab.client.via
        entry = next((name for name, addresses in via.items() if source in addresses.values()), self._lab.nodes[0].name)
        return nodes[entry]

    def _load(self, node: Node) -> tuple[_Loaded | None, list[Event]]:
        """What is loaded on a node now, and what changed since it was asked for last. Raises StateError."""
        with netns.netns(node.netns):
            state.ask_daemon(self._state_dir)  # where one runs, it writes its plan down now
            path = state.plan_path(self._state_dir)
            written = path.stat().st_mtime_ns if path.exists() else 0
            before = self._loaded.get(node.name)
            if before is not None and before.written == written:
                return before, []
            saved = state.load(self._state_dir, current=False)
            if saved is None:
                gone = self._loaded.pop(node.name, None)
                self._empty.add(node.name)
                return None, [Event("mode", node.name, "nothing is loaded any more")] if gone else []
            plan = saved.plan()
            services = {frontend.key: entry.key.service for frontend, entry in plan.frontends()}
            found = _Loaded(written, saved, plan, plane_of(None, saved), services)
        self._loaded[node.name] = found
        if node.name in self._empty:
            self._empty.discard(node.name)
            return found, [Event("mode", node.name, f"{saved.mode} mode is loaded, {len(plan.entries)} Service ports")]
        return found, _changes(node.name, before, found)

    def _look(self) -> Look:
        counters, events = [], []
        for node in self._lab.nodes:
            loaded, changed = self._load(node)
            events += changed
            if loaded is None:
                counters.append(Counters(node.name, note="nothing is loaded"))
                continue
            with netns.netns(node.netns):
                reading = read(loaded.plane)
                known = connections_now(loaded.services) if reading.traffic is None else None
                now = shown(reading, node.name, partial(dict, loaded.services), known)
                refused = self._refusals.setdefault(node.name, Refusals(node.name)).since(loaded.plane)
            events += news(self._before.get(node.name), now) if refused is None else refused
            self._before[node.name] = now
            counters.append(now)
        return Look(tuple(counters), tuple(events))


def _changes(node: str, before: _Loaded | None, now: _Loaded) -> list[Event]:
    if before is None:
        return []
    events = told(node, diff(before.plan, now.plan))
    if before.saved.mode != now.saved.mode:
        events.insert(0, Event("mode", node, f"mode {before.saved.mode} became {now.saved.mode}"))
    return events
