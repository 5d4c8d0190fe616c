"""A run: for each number of Services cold starts, then packets, changes and events, in rounds of shuffled order.

Every round measures every cell once, in shuffled order: the scenarios, and within each its modes, which are compared
with each other and therefore follow each other closely, so that whatever disturbs the machine disturbs all of them
alike. The first round of packets only warms up and is not recorded.
"""

import contextlib
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import msgspec

from dataplane.bench.agent import Request
from dataplane.bench.events.events import Events
from dataplane.bench.events.scale import scale_out
from dataplane.bench.figures import hdr
from dataplane.bench.figures.results import Cell, CellKey, Journal, Results, done
from dataplane.bench.figures.watched import closed_loop
from dataplane.bench.left_out import LeftOut
from dataplane.bench.load.processors import ProcessorLoad
from dataplane.bench.machine.counters import Counters, hardware
from dataplane.bench.machine.cpu import Usage, process_seconds, usage
from dataplane.bench.modes import ALONE, MODES, alone, has_alone
from dataplane.bench.pace import Pace
from dataplane.bench.processors import count_of
from dataplane.bench.processors import position as on_processors
from dataplane.bench.profiles import (
    Settings,
    control_at,
    control_rounds_at,
    happens_at,
    measured_at,
    positions_at,
    rounds_of,
    seconds_of,
    with_alone,
)
from dataplane.bench.rig import LOAD_PATIENCE, Rig
from dataplane.bench.scenarios import SCENARIOS, Kind, Position, Scenario, Way
from dataplane.lab.spec import LabError
from dataplane.planes.base import PlaneError

MOST_FAILURES = 0.01
"""Share of operations that may fail before a cell has no figures."""
FEW = 10
"""From so many operations on one may fail, whatever its share: clients that use a port both for a Service and for its
endpoint lose a connection now and then, which is no reason to have no figures of a window of a few dozen."""

SLOW_PEER = 20
"""How many times as long as other modes a peer may take to start before it is started once only."""

Progress = Callable[[int, int, float, str], None]
"""Told the number of cells done, of all cells, the seconds that the rest will take, and what comes next."""


def plane_modes(settings: Settings, services: int) -> list[str]:
    """The modes that have Services to load, at this number of them."""
    here = [SCENARIOS[name] for name in settings.scenarios if measured_at(settings, SCENARIOS[name], services)]
    forwarding = any(scenario.to_another_node for scenario in here)
    return [
        mode
        for mode in settings.modes
        if MODES[mode].plane
        and not (mode == "iptables" and services > settings.iptables_max)
        and (forwarding or not MODES[mode].forwards)
    ]


def data_modes(settings: Settings, scenario: Scenario, services: int) -> list[str]:
    """The modes that a scenario's packets are sent in, at this number of Services."""
    if scenario.operation == "program":
        return [mode for mode in settings.modes if "xdp" in MODES[mode].hooks and takes(mode, scenario)]
    loaded = [mode for mode in plane_modes(settings, services) if takes(mode, scenario)]
    return [mode for mode in settings.modes if MODES[mode].reference or mode in loaded]


class DataCell(NamedTuple):
    """One thing that a round measures with packets."""

    mode: str
    scenario: Scenario
    position: Position


def data_cells(settings: Settings, services: int) -> list[DataCell]:
    """Return the packet measurements of a round, at this number of Services."""
    found = []
    for name in settings.scenarios:
        scenario = SCENARIOS[name]
        if scenario.kind is not Kind.DATA or scenario.scaling or not measured_at(settings, scenario, services):
            continue
        several = scenario.sweep and scenario.way is Way.CLUSTER_IP
        positions = positions_at(settings, services) if several else (Position.LAST,)
        modes = data_modes(settings, scenario, services)
        found += [DataCell(mode, scenario, p) for mode, p in itertools.product(modes, positions)]
    return found


def takes(mode: str, scenario: Scenario) -> bool:
    """True if a mode is measured in a scenario. Of the control plane's, peers are by packets, others in their own
    process. Modes that keep clients' addresses differ from others only on the way to another node."""
    if MODES[mode].forwards:
        return scenario.to_another_node
    return scenario.kind is not Kind.CONTROL or MODES[mode].is_peer == scenario.probed


def cold_start(mode: str) -> str:
    """The scenario that a mode's cold start is."""
    return "first-cold" if MODES[mode].is_peer else "coldstart"


def control_scenarios(settings: Settings) -> list[Scenario]:
    """The scenarios of the control plane that were asked for, in their order."""
    return [s for s in SCENARIOS.values() if s.kind is Kind.CONTROL and s.name in settings.scenarios]


def all_keys(settings: Settings) -> Iterator[CellKey]:
    """Every cell of a run."""
    for services in settings.services:
        control = [s for s in control_scenarios(settings) if control_at(settings, s, services)]
        for scenario, mode in itertools.product(control, plane_modes(settings, services)):
            rounds = control_rounds_at(settings, services, probed=scenario.probed) if takes(mode, scenario) else 0
            for number in range(1, rounds + 1):
                yield CellKey(mode, scenario.name, services, "", number)
        for mode, scenario, position in data_cells(settings, services):
            for number in range(1, rounds_of(settings, scenario, services) + 1):
                yield data_key(mode, scenario, services, position, number)
        yield from scaling_keys(settings, services)
        yield from event_keys(settings, services)


def event_keys(settings: Settings, services: int) -> Iterator[CellKey]:
    """The events at this number of Services. A mode that balances nothing has no cold start, a peer no other mode."""
    modes = data_modes(settings, SCENARIOS["connect"], services)
    wanted = [s for s in SCENARIOS.values() if s.kind is Kind.EVENT and s.name in settings.scenarios]
    for scenario in [s for s in wanted if happens_at(settings, s, services)]:
        for number, mode in itertools.product(range(1, settings.event_rounds + 1), modes):
            if _happens(settings, mode, scenario):
                yield CellKey(mode, scenario.name, services, "", number)


def _happens(settings: Settings, mode: str, scenario: Scenario) -> bool:
    """True if an event is measured in a mode: peers are programs of their own, so they have all that a proxy has."""
    found = MODES[mode]
    if found.is_peer:
        return scenario.operation != "switch"
    bare = found.reference and scenario.operation == "coldstart"
    return not bare and mode in (settings.event_modes or settings.modes)


def scaling_keys(settings: Settings, services: int) -> Iterator[CellKey]:
    """The cells that are measured on several processors, at this number of Services."""
    scaling = [SCENARIOS[name] for name in settings.scenarios if SCENARIOS[name].scaling]
    for scenario in [s for s in scaling if measured_at(settings, s, services)]:
        for mode, count in itertools.product(data_modes(settings, scenario, services), settings.processors):
            for number in range(1, rounds_of(settings, scenario, services) + 1):
                yield CellKey(mode, scenario.name, services, on_processors(count), number)


def data_key(mode: str, scenario: Scenario, services: int, position: Position, number: int) -> CellKey:
    """Node ports, pods, and what is alone do not have a position among the Services."""
    where = position.value if scenario.way is Way.CLUSTER_IP and not scenario.alone else ""
    return CellKey(mode, scenario.name, services, where, number)


def measured(key: CellKey, measure: Callable[[], dict[str, Any]]) -> Cell:
    """A cell with the figures that `measure` gives, or with why it has none. Its `counts` become the histogram. Raises
    LeftOut where there is to be no cell."""
    try:
        found = measure()
    except LeftOut:
        raise
    except (LabError, PlaneError) as error:
        return Cell(key, error=str(error))
    counts = found.pop("counts", None)
    histogram = hdr.encode(dict(counts)) if counts else ""
    return Cell(key, {name: float(f"{value:.6g}") for name, value in found.items()}, histogram=histogram)


def judged(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of an operation, if it worked. Raises LabError when more than MOST_FAILURES of it failed, and more
    than one of FEW."""
    single = 1 if found["operations"] >= FEW else 0
    if not found["operations"] or found["failures"] > max(single, MOST_FAILURES * found["operations"]):
        raise LabError(f"{found['failures']:.0f} operations failed, {found['operations']:.0f} did not")
    return found


class Runner:
    """Measures whatever `results` does not have yet."""

    def __init__(self, rig: Rig, results: Results, journal: Journal, progress: Progress) -> None:
        self._rig, self._results, self._journal, self._progress = rig, results, journal, progress
        self._settings = results.settings
        self._done = done(results.cells)
        self._left = {key: None for key in all_keys(self._settings) if key not in self._done}
        self._slow: set[tuple[str, int]] = set()
        self._broken: set[str] = set()
        self._pace = Pace(self._settings)
        self._random = random.Random(self._settings.seed + len(self._done))
        self._counters: Counters | None = None
        self._rates: dict[CellKey, list[float]] = defaultdict(list)
        for cell in results.cells:
            if "rate" in cell.figures:
                self._rates[cell.key._replace(round=0)].append(cell.figures["rate"])
            if cell.key.scenario == cold_start(cell.key.mode):
                self._mark_slow(cell.key, cell.figures)

    def run(self) -> None:
        """Measure everything. Raises LabError when the lab itself fails; a cell that fails is recorded as such."""
        with contextlib.ExitStack() as stack:
            found = hardware()
            self._counters = stack.enter_context(found) if found else None
            for services in self._settings.services:
                if any(key.services == services for key in self._left):
                    self._cold_starts(services)
                    self._data_rounds(services)
                    self._scaling_rounds(services)
                    self._change_rounds(services)
                    self._event_rounds(services)
                    self._leave_out(lambda key, services=services: key.services == services)  # type: ignore[misc]

    def _leave_out(self, which: Callable[[CellKey], bool]) -> None:
        """These will not be measured any more."""
        self._left = {key: None for key in self._left if not which(key)}

    def _mark_slow(self, key: CellKey, figures: dict[str, float]) -> None:
        """Note a mode that is too slow to be started more than once at this size."""
        slow = self._settings.slow_load_seconds * (SLOW_PEER if MODES[key.mode].is_peer else 1)
        if figures.get("seconds", 0.0) > slow:
            self._slow.add((key.mode, key.services))
            self._leave_out(
                lambda k: (
                    (k.mode, k.services) == (key.mode, key.services)
                    and SCENARIOS[k.scenario].kind is not Kind.DATA
                    and k.round > 1
                )
            )

    def _tell(self, key: CellKey, doing: str = "") -> None:
        total = len(self._done) + len(self._left)
        what = f"{key.services:,} Service{'s' if key.services > 1 else ''}: {doing}{key.scenario}, {key.mode}"
        self._progress(len(self._done), total, self._pace.remaining(self._left), what)

    def _record(self, key: CellKey, measure: Callable[[], dict[str, Any]]) -> dict[str, float]:
        """Measure one cell and keep it, unless it is there already or not wanted (planes must be loaded anyway)."""
        self._tell(key)
        started = time.perf_counter()
        try:
            cell = measured(key, lambda: {**measure(), "wall": time.perf_counter() - started})
        except LeftOut as error:
            self._say_left_out(key, str(error))
            return {}
        wanted = key.scenario in self._settings.scenarios and takes(key.mode, SCENARIOS[key.scenario])
        if cell.error and not wanted:
            self._results.skipped.append(f"{key.mode} is left out at {key.services:,} Services: {cell.error}")
        if key not in self._done and wanted:
            self._done.add(key)
            self._left.pop(key, None)
            self._pace.done(key)
            self._results.cells.append(cell)
            self._journal.add(cell)
        return cell.figures

    def _say_left_out(self, key: CellKey, why: str) -> None:
        """There is no such cell; it is told by name, once for all its rounds."""
        self._left.pop(key, None)
        said = f"left out: {key.scenario} of {key.mode} at {key.services:,} Services: {why}"
        if said not in self._results.skipped:
            self._results.skipped.append(said)

    def _shuffled(self, items: list[str]) -> list[str]:
        return self._random.sample(items, len(items))

    def _cold_starts(self, services: int) -> None:
        """What the last one of each mode leaves stays for the packets. A mode that does not start at this size is left
        out of the rest of this stage."""
        self._broken.clear()
        modes = plane_modes(self._settings, services)
        rounds = {mode: self._start_rounds(mode, services) for mode in modes}
        for number in range(1, max(rounds.values(), default=0) + 1):
            for mode in self._shuffled([mode for mode in modes if mode not in self._broken]):
                if number > rounds[mode] or (number > 1 and (mode, services) in self._slow):
                    continue
                figures = self._coldstart(mode, services, number)
                if not figures:
                    self._broken.add(mode)
                    self._leave_out(lambda k, mode=mode: (k.mode, k.services) == (mode, services))  # type: ignore[misc]
                self._mark_slow(CellKey(mode, cold_start(mode), services, "", number), figures)
        if with_alone(self._settings) and services == max(self._settings.services):
            for node in [alone(mode) for mode in modes if has_alone(mode) and mode not in self._broken]:
                self._rig.restart_agent(node)
                with self._told_later(node):
                    self._rig.load(node, 1)

    @staticmethod
    def _told_later(node: str) -> AbstractContextManager[None]:
        """A peer that does not start ends no run: its cells say why they have no figures."""
        is_peer = MODES[node.removesuffix(ALONE)].is_peer
        return contextlib.suppress(LabError) if is_peer else contextlib.nullcontext()

    def _start_rounds(self, mode: str, services: int) -> int:
        """How often a mode is started at this size; once where only what it leaves is wanted."""
        scenario = SCENARIOS[cold_start(mode)]
        if scenario not in control_scenarios(self._settings) or not takes(mode, scenario):
            return 1
        return control_rounds_at(self._settings, services, probed=scenario.probed)

    def _change_rounds(self, services: int) -> None:
        """Changes come after the packets, because they change the order of iptables' rules."""
        modes = [mode for mode in plane_modes(self._settings, services) if mode not in self._broken]
        wanted = [s.name for s in control_scenarios(self._settings) if control_at(self._settings, s, services)]
        most = max(control_rounds_at(self._settings, services, probed=probed) for probed in (False, True))
        for number, name in itertools.product(range(1, most + 1), wanted):
            for mode in self._shuffled(modes):
                key = CellKey(mode, name, services, "", number)
                if key in self._left and name != cold_start(mode):
                    self._record(key, lambda mode=mode, name=name: self._control(mode, name))  # type: ignore[misc]

    def _coldstart(self, mode: str, services: int, number: int) -> dict[str, float]:
        def start() -> dict[str, float]:
            self._rig.restart_agent(mode)
            return self._with_others(lambda: self._rig.load(mode, services))

        return self._record(CellKey(mode, cold_start(mode), services, "", number), start)

    def _control(self, mode: str, scenario: str) -> dict[str, float]:
        settings = self._settings
        if MODES[mode].is_peer:
            peer = self._rig.peer(mode)
            probe = {"first-restart": peer.restart, "first-change": peer.change, "first-rollout": peer.rollout}
            return self._with_others(probe[scenario])
        if SCENARIOS[scenario].operation == "scale":
            return self._with_others(lambda: scale_out(self._rig, settings, mode))
        seconds = settings.change_seconds if scenario == "change" else settings.rollout_seconds
        request = Request(scenario, count=settings.changes, seconds=seconds)
        return self._with_others(lambda: self._rig.agent(mode).ask(msgspec.json.encode(request), LOAD_PATIENCE))

    def _with_others(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of `measure`, and how many processors others kept busy meanwhile."""
        before, started = usage(self._rig.group), time.perf_counter()
        found = measure()
        seconds, after = time.perf_counter() - started, usage(self._rig.group)
        return found | {"others": _others(before, after, 0.0, seconds)}

    def _data_rounds(self, services: int) -> None:
        settings = self._settings
        cells = [cell for cell in data_cells(settings, services) if cell.mode not in self._broken]
        rounds = {scenario.name: rounds_of(settings, scenario, services) for _, scenario, _ in cells}
        for number in range(max(rounds.values(), default=0) + 1):
            for mode, scenario, position in self._in_turns(cells):
                key = data_key(mode, scenario, services, position, number)
                if number and key in self._left:
                    self._record(key, lambda key=key, p=position: self._packets(key, p))  # type: ignore[misc]
                elif not number and any(key._replace(round=n + 1) in self._left for n in range(rounds[scenario.name])):
                    self._warm_up(key, position)

    def _scaling_rounds(self, services: int) -> None:
        """Rounds on several processors, apart from the others: uplinks have more queues meanwhile. In each round a mode
        is measured on all numbers of processors before the next one is, since those are compared with each other."""
        wanted = [key for key in scaling_keys(self._settings, services) if key in self._left]
        wanted = [key for key in wanted if key.mode not in self._broken]
        if not wanted:
            return
        groups = list(dict.fromkeys((key.scenario, key.mode) for key in wanted))
        last = max(key.round for key in wanted)
        with ProcessorLoad(self._rig, self._settings, dict.fromkeys(key.mode for key in wanted)) as load:

            def measure(key: CellKey) -> dict[str, Any]:
                return judged(load.measure(key.mode, SCENARIOS[key.scenario], count_of(key.position), services))

            for number in range(last + 1):
                for scenario, mode in self._random.sample(groups, len(groups)):
                    places = [on_processors(count) for count in self._settings.processors]
                    for place in self._shuffled(places):
                        key = CellKey(mode, scenario, services, place, number)
                        if key in self._left:
                            self._record(key, lambda key=key: measure(key))  # type: ignore[misc]
                        elif not number:
                            self._tell(key, "warming up ")
                            with contextlib.suppress(LabError):  # fails again when it counts, and is recorded then
                                measure(key)

    def _event_rounds(self, services: int) -> None:
        """Rollouts in all modes first, while those have their control plane from before; then mode by mode what happens
        to a proxy, which starts once for all of it, a cold start first."""
        wanted = [key for key in event_keys(self._settings, services) if key in self._left]
        wanted = [key for key in wanted if key.mode not in self._broken]
        if not wanted:
            return
        with Events(self._rig, self._settings, services) as events:
            for is_rollout, number in itertools.product((True, False), range(1, self._settings.event_rounds + 1)):
                here = [k for k in wanted if k.round == number and (k.scenario == "during-rollout") == is_rollout]
                for mode in self._shuffled(list(dict.fromkeys(key.mode for key in here))):
                    names = self._shuffled([key.scenario for key in here if key.mode == mode])
                    for name in sorted(names, key=lambda name: name != "during-coldstart"):
                        key = CellKey(mode, name, services, "", number)
                        self._record(key, lambda key=key: self._event(events, key))  # type: ignore[misc]
                    if not is_rollout:
                        with self._told_later(mode):
                            events.leave(mode)

    def _event(self, events: Events, key: CellKey) -> dict[str, Any]:
        return self._with_others(lambda: events.measure(key.mode, SCENARIOS[key.scenario]))

    def _in_turns(self, cells: list[DataCell]) -> list[DataCell]:
        """The cells of a round in its order."""
        blocks: dict[tuple[str, Position], list[DataCell]] = {}
        for cell in cells:
            blocks.setdefault((cell.scenario.beside or cell.scenario.name, cell.position), []).append(cell)
        order = self._random.sample(list(blocks.values()), len(blocks))
        return [cell for block in order for cell in self._random.sample(block, len(block))]

    def _warm_up(self, key: CellKey, position: Position) -> None:
        self._tell(key, "warming up ")
        try:
            self._packets(key, position)
        except LabError:
            return  # whatever fails now fails again when it counts, and is recorded then

    def _packets(self, key: CellKey, position: Position) -> dict[str, Any]:
        scenario, node, services = SCENARIOS[key.scenario], key.mode, key.services
        if scenario.alone and not MODES[node].reference:
            node, services = alone(node), 1
        if MODES[key.mode].is_peer:
            self._rig.peer(node).check()
        target = self._rig.target(node, scenario, services, position)
        before = self._used(node, scenario)
        found, scale = self._operate(key, node, target)
        after = self._used(node, scenario)
        own = after.own - before.own if scenario.operation == "live" else 0.0  # the kernel works in our name then
        self._rates[key._replace(round=0)].append(judged(found).get("rate", 0.0))
        return found | _processors(before, after, own, found, found["operations"] / scale)

    def _operate(self, key: CellKey, node: str, target: tuple[str, int]) -> tuple[dict[str, Any], float]:
        """The figures of one measurement, and for how many operations processor time is told."""
        settings, scenario = self._settings, SCENARIOS[key.scenario]
        if scenario.operation.startswith("iperf3"):
            return self._rig.bulk(node, int(scenario.operation.split()[1]), target, settings.bulk_bytes), 1.0
        if scenario.operation == "program":
            return self._rig.program(node), 1e6
        if scenario.operation == "live":
            found = self._rig.live(node, target, settings.seconds)
        elif scenario.at_once:
            watcher = self._rig.watcher(self._rig.client_of(node))
            answer = watcher.closed_loop(scenario.operation, target, scenario.at_once, settings.seconds)
            found = closed_loop(answer, scenario.operation)
        else:
            outside = scenario.way in (Way.NODE_PORT_LOCAL, Way.NODE_PORT_REMOTE)
            seconds, rate = seconds_of(settings, scenario), self._paced_rate(key, scenario)
            found = self._rig.traffic(node, scenario.operation, target, seconds, outside, rate)
        return found | {"rate": found["operations"] / found["seconds"]}, 1e6

    def _paced_rate(self, key: CellKey, scenario: Scenario) -> float:
        """Operations a second at which they are due; 0 for one after the other. Raises LabError where the rate that it
        is a share of is not known."""
        if not scenario.load:
            return 0.0
        rates = self._rates[key._replace(scenario=scenario.beside, round=0)]
        if not rates:
            raise LabError(f"{scenario.beside} has no rate yet, of which {scenario.name} is a share")
        return scenario.load * statistics.median(rates)

    def _used(self, node: str, scenario: Scenario) -> "_Used":
        client, server = map(process_seconds, self._rig.ends(node, scenario))
        counted = self._counters.read() if self._counters else {}
        return _Used(usage(self._rig.group), client, server, counted, time.process_time(), time.perf_counter())


class _Used(NamedTuple):
    """What was used until a moment, in processor seconds: by all (see cpu.Usage), by clients, by servers, by this
    process; counted by hardware counters. at: the moment."""

    all: Usage
    client: float
    server: float
    counted: dict[str, float]
    own: float
    at: float


def _processors(
    before: _Used, after: _Used, own: float, found: dict[str, float], operations: float
) -> dict[str, float]:
    """Processor time of so many operations, of everybody and apart. own: seconds of this process that are the lab's."""
    seconds = {
        "cpu": after.all.lab - before.all.lab + own,
        "cpu_client": found.get("cpu_client", after.client - before.client),
        "cpu_server": after.server - before.server,
        "cpu_softirq": after.all.softirq - before.all.softirq,
    }
    counted = {name: (after.counted[name] - before.counted[name]) / found["operations"] for name in after.counted}
    others = _others(before.all, after.all, own, after.at - before.at)
    return {name: value / operations for name, value in seconds.items()} | counted | {"others": others}


def _others(before: Usage, after: Usage, own: float, seconds: float) -> float:
    """Processors kept busy by neither the lab nor this process's measuring (`own` seconds)."""
    return max(0.0, after.machine - before.machine - (after.lab - before.lab) - own) / seconds
