"""What the page shows of a node: the plan of its daemon, read only."""

import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from ctl.daemon.settings import Settings
from ctl.explain_loaded import OUTSIDE
from ctl.explain_loaded import sources as sources_of
from ctl.picture.names import Names
from ctl.ui.changes import told
from ctl.ui.counters import Reading, Services, news, shown
from ctl.ui.listing import services_of
from ctl.ui.modes import Known, bracketed, explanations, of_packet
from ctl.ui.server import Page
from ctl.ui.view import Counters, Event, Explanation, Look, NodeShown, Overview, ServicesShown, SourceShown, View
from dataplane.errors import PlaneError
from dataplane.model.net import Family, family_of
from dataplane.oracle.flow import parse_flow
from dataplane.plan.change import PlanChange
from dataplane.plan.planner import Planner
from dataplane.plan.types import Plan
from dataplane.planes.registry import mode_of
from dataplane.policy.node import NodeConfig, Source

MOST_EVENTS = 200
_KINDS = {Source.POD: "pod", Source.NODE: "node", Source.OUTSIDE: "client"}


ReadCounters = Callable[[], Awaitable[Reading | None]]
Now = Callable[[], Settings]
SHARE = 20
"""A reading takes at most one part in so many of the time of the plane's thread, for which changes wait, too."""


class Paced:
    """Readings of a plane's counters, the last one again while another one would come too soon: iptables mode's are all
    of its rules. ask: reads; None while nothing is loaded. clock: seconds."""

    def __init__(self, ask: ReadCounters, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = ask, clock
        self._last: Reading | None = None
        self._failed: PlaneError | None = None
        self._not_before = -math.inf

    async def read(self) -> Reading | None:
        """Return what is counted, maybe as of a while ago. Raises PlaneError: while it is too soon to ask again, the
        last one."""
        began = self._clock()
        if began < self._not_before:
            if self._failed is not None:
                raise self._failed.with_traceback(None)
            return self._last
        self._failed = None
        try:
            self._last = await self._ask()
        except PlaneError as error:
            self._failed = error
            raise
        finally:
            ended = self._clock()
            self._not_before = ended + SHARE * (ended - began)
        return self._last


class NodePage:
    """The page of a daemon. settings, planner: those of now. counters: reads the plane's."""

    def __init__(self, settings: Now, planner: Callable[[], Planner], counters: ReadCounters) -> None:
        self._view = NodeView(settings, planner, counters)
        self.answer = Page(self._view, remote=settings().ui_remote).answer

    def changed(self, change: PlanChange) -> None:
        """Note a change of the plan."""
        self._view.changed(change)


class NodeView(View):
    """A view of the daemon's own plan. Everything but `counters` is asked in the daemon's event loop."""

    def __init__(self, settings: Now, planner: Callable[[], Planner], counters: ReadCounters) -> None:
        self._settings, self._planner, self._counters = settings, planner, Paced(counters)
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._before: Counters | None = None
        self._mode = settings().mode

    def _known(self) -> Known:
        settings, plan = self._settings(), self._planner().plan
        options = mode_of(settings.mode).in_effect(settings.options)
        return Known(plan, settings.mode, options, settings.config.proxy_settings(), Names())

    def changed(self, change: PlanChange) -> None:
        """Note a change of the plan, to be told at the next look."""
        self._events.extend(told(self._planner().plan.node.name, change))

    async def overview(self) -> Overview:
        known = self._known()
        node = known.plan.node
        shown = NodeShown(node.name, _primaries(node), (), known.mode)
        return Overview(f"node {node.name}", known.mode, (shown,), tuple(_sources(node)))

    async def services(self, search: str) -> ServicesShown:
        plan = self._known().plan
        return services_of(plan, search, [(plan.node.name, address) for address in _primaries(plan.node)])

    async def explain(self, source: str, destination: str) -> Sequence[Explanation]:
        packet = parse_flow(f"{bracketed(source)} -> {destination}")
        known = self._known()
        plan, names = of_packet(known.plan, packet), Names()
        names.addresses[plan.node.name] = plan.node.addresses
        for key in plan.entries:
            for endpoint, _ in self._planner().candidates(key):
                if endpoint.node:
                    names.node_of[endpoint.address] = endpoint.node
        return explanations(known._replace(plan=plan, names=names), packet)

    async def look(self) -> Look:
        known = self._known()
        where = known.plan.node.name
        if known.mode != self._mode:
            self._events.append(Event("mode", where, f"mode {self._mode} became {known.mode}"))
            self._mode = known.mode
        reading = await self._counters.read()
        if reading is None:
            now = Counters(where, note="nothing is loaded yet")
        else:
            now = shown(reading, where, lambda: _service_names(known.plan))
        events = [*self._events, *news(self._before, now)]
        self._events.clear()
        self._before = now
        return Look((now,), tuple(events))


def _service_names(plan: Plan) -> Services:
    return {frontend.key: entry.key.service for frontend, entry in plan.frontends()}


def _primaries(node: NodeConfig) -> tuple[str, ...]:
    return tuple(filter(None, (node.primary(family) for family in Family)))


def _sources(node: NodeConfig) -> Iterable[SourceShown]:
    """One of each class of sources: a pod's address stands for pods, one that nobody has for outside clients."""
    addresses: dict[str, list[str]] = {}
    for family in Family:
        for address in sources_of(node, family):
            kind = "client" if address == OUTSIDE[family] else _KINDS[node.source(address)]
            addresses.setdefault(kind, []).append(address)
    names = {"pod": "a pod", "node": node.name or "this node", "client": "an outside client"}
    for kind, found in addresses.items():
        yield SourceShown(names[kind], kind, tuple(sorted(found, key=family_of)))
