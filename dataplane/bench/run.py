"""A run: for each number of Services cold starts, then packets, then changes, in rounds of shuffled order.

Every round measures every cell once, all modes, scenarios and positions mixed, so that whatever disturbs the machine
disturbs all modes alike; the first round of packets only warms up and is not recorded.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator

import msgspec

from dataplane.bench.agent import Request
from dataplane.bench.cpu import Usage, usage
from dataplane.bench.modes import MODES
from dataplane.bench.profiles import Settings, positions_at
from dataplane.bench.results import Cell, CellKey, Journal, Results, done
from dataplane.bench.rig import LOAD_PATIENCE, Rig
from dataplane.bench.scenarios import SCENARIOS, Kind, Position, Scenario, Way
from dataplane.lab.spec import LabError

MOST_FAILURES = 0.01
"""Share of operations that may fail before a cell has no figures."""

Progress = Callable[[int, int, str], None]
"""Told the number of cells done, of all cells, and what comes next."""


def plane_modes(settings: Settings, services: int) -> list[str]:
    """The modes that have Services to load, at this number of them."""
    return [
        mode
        for mode in settings.modes
        if MODES[mode].plane and not (mode == "iptables" and services > settings.iptables_max)
    ]


def data_modes(settings: Settings, services: int) -> list[str]:
    """The modes that packets are sent in, at this number of Services."""
    loaded = plane_modes(settings, services)
    return [mode for mode in settings.modes if MODES[mode].reference or mode in loaded]


def data_cells(settings: Settings, services: int) -> list[tuple[str, Scenario, Position]]:
    """What is measured with packets in each round, at this number of Services."""
    found = []
    for name in settings.scenarios:
        scenario = SCENARIOS[name]
        if scenario.kind is not Kind.DATA or not (scenario.sweep or services in settings.fixed_services):
            continue
        several = scenario.sweep and scenario.way is Way.CLUSTER_IP
        positions = positions_at(settings.positions, services) if several else (Position.LAST,)
        found += [(mode, scenario, p) for mode, p in itertools.product(data_modes(settings, services), positions)]
    return found


def control_scenarios(settings: Settings) -> list[Scenario]:
    """The scenarios of the control plane that were asked for, in their order."""
    return [s for s in SCENARIOS.values() if s.kind is Kind.CONTROL and s.name in settings.scenarios]


def all_keys(settings: Settings) -> Iterator[CellKey]:
    """Every cell of a run."""
    for services in settings.services:
        for scenario, mode in itertools.product(control_scenarios(settings), plane_modes(settings, services)):
            for number in range(1, settings.control_rounds + 1):
                yield CellKey(mode, scenario.name, services, "", number)
        for number in range(1, settings.rounds + 1):
            for mode, scenario, position in data_cells(settings, services):
                yield _data_key(mode, scenario, services, position, number)


def _data_key(mode: str, scenario: Scenario, services: int, position: Position, number: int) -> CellKey:
    """Node ports and pods do not have a position among the Services."""
    where = position.value if scenario.way is Way.CLUSTER_IP else ""
    return CellKey(mode, scenario.name, services, where, number)


class Runner:
    """Measures whatever `results` does not have yet."""

    def __init__(self, rig: Rig, results: Results, journal: Journal, progress: Progress) -> None:
        self._rig, self._results, self._journal, self._progress = rig, results, journal, progress
        self._settings = results.settings
        self._done = done(results.cells)
        self._broken: set[str] = set()
        self._total = len(set(all_keys(self._settings)))
        self._random = random.Random(self._settings.seed + len(self._done))

    def run(self) -> None:
        """Measure everything. Raises LabError when the lab itself fails; a cell that fails is recorded as such."""
        for services in self._settings.services:
            if all(key in self._done or self._not_repeated(key) for key in self._keys(services)):
                continue
            self._cold_starts(services)
            self._data_rounds(services)
            self._change_rounds(services)

    def _keys(self, services: int) -> list[CellKey]:
        return [key for key in all_keys(self._settings) if key.services == services]

    def _not_repeated(self, key: CellKey) -> bool:
        """Whether this is a further cold start of a mode that was too slow at its first."""
        return key.scenario == "coldstart" and key.round > 1 and key._replace(round=1) in self._done

    def _record(self, key: CellKey, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Measure one cell and keep it, unless it is there already or not wanted (planes must be loaded anyway)."""
        self._progress(len(self._done), self._total, f"{key.services} Services: {key.scenario}, {key.mode}")
        try:
            cell = Cell(key, measure())
        except LabError as error:
            cell = Cell(key, error=str(error))
        if key not in self._done and key.scenario in self._settings.scenarios:
            self._done.add(key)
            self._results.cells.append(cell)
            self._journal.add(cell)
        return cell.figures

    def _shuffled(self, items: list[str]) -> list[str]:
        return self._random.sample(items, len(items))

    def _cold_starts(self, services: int) -> None:
        """What the last one of each mode leaves stays for the packets. A mode that does not start at this size is left
        out of the rest of this stage."""
        self._broken.clear()
        modes = plane_modes(self._settings, services)
        wanted = control_scenarios(self._settings)
        slow: set[str] = set()
        rounds = self._settings.control_rounds if SCENARIOS["coldstart"] in wanted else 1
        for number in range(1, rounds + 1):
            for mode in self._shuffled([mode for mode in modes if mode not in slow | self._broken]):
                figures = self._coldstart(mode, services, number)
                if not figures:
                    self._broken.add(mode)
                elif figures["seconds"] > self._settings.slow_load_seconds and number < rounds:
                    self._total -= rounds - number
                    slow.add(mode)

    def _change_rounds(self, services: int) -> None:
        """Changes come after the packets, because they change the order of iptables' rules."""
        modes = [mode for mode in plane_modes(self._settings, services) if mode not in self._broken]
        wanted = [s.name for s in control_scenarios(self._settings) if s.name != "coldstart"]
        for number, name in itertools.product(range(1, self._settings.control_rounds + 1), wanted):
            for mode in self._shuffled(modes):
                key = CellKey(mode, name, services, "", number)
                if key not in self._done:
                    self._record(key, lambda mode=mode, name=name: self._control(mode, name))  # type: ignore[misc]

    def _coldstart(self, mode: str, services: int, number: int) -> dict[str, float]:
        def start() -> dict[str, float]:
            self._rig.restart_agent(mode)
            return self._with_others(lambda: self._rig.load(mode, services))

        return self._record(CellKey(mode, "coldstart", services, "", number), start)

    def _control(self, mode: str, scenario: str) -> dict[str, float]:
        settings = self._settings
        seconds = settings.change_seconds if scenario == "change" else settings.rollout_seconds
        request = Request(scenario, count=settings.changes, seconds=seconds)
        return self._with_others(lambda: self._rig.agent(mode).ask(msgspec.json.encode(request), LOAD_PATIENCE))

    def _with_others(self, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What `measure` gives, and how many processors others kept busy meanwhile."""
        before, started = usage(self._rig.group), time.perf_counter()
        found = measure()
        seconds, after = time.perf_counter() - started, usage(self._rig.group)
        return found | {"others": _others(before, after, 0.0, seconds)}

    def _data_rounds(self, services: int) -> None:
        cells = [cell for cell in data_cells(self._settings, services) if cell[0] not in self._broken]
        for number in range(self._settings.rounds + 1):
            self._random.shuffle(cells)
            for mode, scenario, position in cells:
                key = _data_key(mode, scenario, services, position, number)
                if key in self._done:
                    continue
                if number:
                    self._record(key, lambda key=key, p=position: self._packets(key, p))  # type: ignore[misc]
                else:
                    self._warm_up(key, position)

    def _warm_up(self, key: CellKey, position: Position) -> None:
        self._progress(len(self._done), self._total, f"{key.services} Services: warming up {key.scenario}, {key.mode}")
        try:
            self._packets(key, position)
        except LabError:
            return  # whatever fails now fails again when it counts, and is recorded then

    def _packets(self, key: CellKey, position: Position) -> dict[str, float]:
        scenario, settings = SCENARIOS[key.scenario], self._settings
        target = self._rig.target(key.mode, scenario, key.services, position)
        before, started, own = usage(self._rig.group), time.perf_counter(), time.process_time()
        if scenario.operation.startswith("iperf3"):
            streams = int(scenario.operation.split()[1])
            found, scale = self._rig.bulk(key.mode, streams, target, settings.bulk_bytes), 1.0
        elif scenario.operation == "live":
            found = self._rig.live(key.mode, target, settings.seconds)
            found["rate"], scale = found["operations"] / found["seconds"], 1e6
        else:
            outside = scenario.way in (Way.NODE_PORT_LOCAL, Way.NODE_PORT_REMOTE)
            found = self._rig.traffic(key.mode, scenario.operation, target, settings.seconds, outside)
            found["rate"], scale = found["operations"] / found["seconds"], 1e6
        seconds, after = time.perf_counter() - started, usage(self._rig.group)
        own = time.process_time() - own if scenario.operation == "live" else 0.0  # the kernel works in our name then
        if not found["operations"] or found["failures"] > MOST_FAILURES * found["operations"]:
            raise LabError(f"{found['failures']:.0f} operations failed, {found['operations']:.0f} did not")
        return found | _processors(before, after, own, seconds, found["operations"] / scale)


def _processors(before: Usage, after: Usage, own: float, seconds: float, operations: float) -> dict[str, float]:
    return {"cpu": (after.lab - before.lab + own) / operations, "others": _others(before, after, own, seconds)}


def _others(before: Usage, after: Usage, own: float, seconds: float) -> float:
    """Processors kept busy by neither the lab nor this process's measuring (`own` seconds)."""
    return max(0.0, after.machine - before.machine - (after.lab - before.lab) - own) / seconds
