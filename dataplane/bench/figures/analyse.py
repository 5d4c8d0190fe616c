"""Compute figures from cells: medians, spreads, ratios to direct with intervals, and how far to trust the machine."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from dataplane.bench.figures import hdr, noise
from dataplane.bench.figures.results import VERSION, Cell, Results
from dataplane.bench.figures.stats import Estimate, Ratio, estimate, paired_ratio
from dataplane.bench.modes import AGAIN, DIRECT, MODES
from dataplane.bench.processors import count_of, position
from dataplane.bench.scenarios import SCENARIOS, Kind, Scenario

NOISY_FLOOR = 0.35
"""A line that finds no smaller difference is noisy."""
BUSY_OTHERS = 0.15
"""Processors that somebody else may keep busy during a measurement of the control plane, and before it is told."""
CROWDED_OTHERS = 0.4
"""The same for packets, of which modes are compared in turns: then ratios conclude nothing either."""
_NOISE = f"the noise floor is above {NOISY_FLOOR:.0%}, or others kept {CROWDED_OTHERS} processors busy"
RATIO_FIGURES = ("rate", "p50", "p90", "p99", "p999", "cpu")


class GroupKey(NamedTuple):
    """Cells of all rounds together. position: "" where it makes no difference."""

    mode: str
    scenario: str
    services: int
    position: str


class PlaceKey(NamedTuple):
    """A line: what modes are compared in."""

    scenario: str
    services: int
    position: str


class Row(msgspec.Struct, frozen=True):
    """One group's figures, each with its rounds' median and spread; ratios: of the same round to direct, by figure.
    scaling: of the same round and mode to one processor, by figure. latencies: of paced operations of all rounds
    together, number by bucket of an HdrHistogram."""

    key: GroupKey
    figures: dict[str, Estimate]
    ratios: dict[str, Ratio] = {}
    scaling: dict[str, Ratio] = {}
    latencies: dict[int, int] = {}

    @property
    def place(self) -> PlaceKey:
        return PlaceKey(*self.key[1:])

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.key.scenario]

    @property
    def main(self) -> Estimate:
        """The scenario's main figure."""
        return self.figures[self.scenario.metric]


Rounds = dict[GroupKey, dict[int, Cell]]
"""The cells that have figures, by group and round."""


class Analysis(msgspec.Struct, frozen=True):
    """rounds: what all of it is from. lines: what rounds say of the noise of each line's main figure; a line of too few
    rounds is not there. compared: comparisons among them. noisy: lines that find only coarse differences, or beside
    which somebody else was at work. crowded: those of the latter. warnings: sentences, worst first."""

    rows: list[Row]
    rounds: Rounds
    lines: dict[PlaceKey, noise.Line]
    compared: int
    noisy: list[PlaceKey]
    crowded: list[PlaceKey]
    warnings: list[str]

    def row(self, mode: str, scenario: str, services: int, position: str = "") -> Row | None:
        """The row of a group, if it was measured."""
        return next((r for r in self.rows if r.key == GroupKey(mode, scenario, services, position)), None)

    def floor(self, place: PlaceKey) -> float:
        """Smallest relative difference of modes that this line finds; infinite where rounds are too few."""
        return noise.floor(self.lines.get(place), self.compared)

    def judge(self, place: PlaceKey, mode: str, other: str) -> noise.Verdict:
        """Return whether a mode's main figure differs from another's, by how much, and the floor; see noise.judge."""
        return noise.judge(self.lines.get(place), mode, other, self.compared)

    def median_floor(self) -> float:
        """Median of the floors of lines that were measured against direct, and of all where none was."""
        places = {row.place for row in self.rows if row.key.mode == DIRECT} or {row.place for row in self.rows}
        return statistics.median([self.floor(place) for place in places] or [math.inf])


def by_group(cells: Iterable[Cell]) -> Rounds:
    """Cells that have figures, by group and round."""
    found: Rounds = defaultdict(dict)
    for cell in cells:
        if not cell.error:
            key = cell.key
            found[GroupKey(key.mode, key.scenario, key.services, key.position)][key.round] = cell
    return found


def values(rounds: dict[int, Cell], figure: str) -> dict[int, float]:
    """A figure by round."""
    return {number: cell.figures[figure] for number, cell in rounds.items() if figure in cell.figures}


def against(rounds: Rounds, key: GroupKey, other: str, figure: str) -> Ratio | None:
    """Ratio of a mode's figure to another mode's of the same rounds; None where they share no round."""
    return between_scenarios(rounds, key, key._replace(mode=other), figure)


def between_scenarios(rounds: Rounds, key: GroupKey, other: GroupKey, figure: str) -> Ratio | None:
    """Ratio of a figure to that of another group of the same rounds; None where they share no round."""
    mine, theirs = values(rounds.get(key, {}), figure), values(rounds.get(other, {}), figure)
    common = [number for number in sorted(mine) if theirs.get(number)]
    if not common:
        return None
    return paired_ratio([mine[number] for number in common], [theirs[number] for number in common])


def analyse(results: Results) -> Analysis:
    """All figures of a run."""
    rounds = by_group(results.cells)
    rows = []
    for key, cells in rounds.items():
        names = list(dict.fromkeys(name for cell in cells.values() for name in cell.figures))
        figures = {name: estimate(list(values(cells, name).values())) for name in names}
        ratios: dict[str, Ratio] = {}
        if SCENARIOS[key.scenario].kind is Kind.DATA and key.mode != DIRECT:
            to_direct = {name: against(rounds, key, DIRECT, name) for name in RATIO_FIGURES if name in figures}
            ratios = {name: ratio for name, ratio in to_direct.items() if ratio is not None}
        scaling: dict[str, Ratio] = {}
        if SCENARIOS[key.scenario].scaling:
            one = key._replace(position=position(1))
            to_one = {name: between_scenarios(rounds, key, one, name) for name in ("rate", "p99") if name in figures}
            scaling = {name: ratio for name, ratio in to_one.items() if ratio is not None}
        paced = hdr.merged(hdr.decode(cell.histogram) for cell in cells.values() if cell.histogram)
        rows.append(Row(key, figures, ratios, scaling, paced))
    rows.sort(key=_order)
    lines = _lines(rounds, rows)
    compared = noise.comparisons(lines.values())
    places = list(dict.fromkeys(row.place for row in rows if row.key.mode == DIRECT))
    crowded = [row.place for row in rows if row.key.mode == DIRECT and _is_crowded(row)]
    noisy = [place for place in places if place in crowded or noise.floor(lines.get(place), compared) > NOISY_FLOOR]
    found = Analysis(rows, rounds, lines, compared, noisy, crowded, [])
    return msgspec.structs.replace(found, warnings=_warnings(results, found, places))


def place_line(rounds: Rounds, place: PlaceKey, figure: str) -> noise.Line | None:
    """Return the noise of a figure from the rounds of a line; None where they are too few."""
    modes = [key.mode for key in rounds if PlaceKey(*key[1:]) == place]
    return noise.line({mode: values(rounds[GroupKey(mode, *place)], figure) for mode in modes}, (DIRECT, AGAIN))


def _lines(rounds: Rounds, rows: Sequence[Row]) -> dict[PlaceKey, noise.Line]:
    """The noise of every line's main figure."""
    places = dict.fromkeys(row.place for row in rows)
    found = {place: place_line(rounds, place, SCENARIOS[place.scenario].metric) for place in places}
    return {place: line for place, line in found.items() if line is not None}


def _is_crowded(baseline: Row) -> bool:
    others = baseline.figures.get("others")
    return others is not None and others.median > CROWDED_OTHERS


def _order(row: Row) -> tuple[int, int, int, str, int]:
    names, modes, key = list(SCENARIOS), list(MODES), row.key
    processors = count_of(key.position) if row.scenario.scaling else 0
    return (names.index(key.scenario), key.services, processors, key.position, modes.index(key.mode))


def floor_text(floor: float) -> str:
    """A noise floor for people; "unknown" where rounds are too few for one."""
    if math.isinf(floor):
        return "unknown"
    return f"{floor:.1%}" if floor < 0.1 else f"{floor:.0%}" if floor < 10 else "> 1000%"


def _warnings(results: Results, found: Analysis, places: Sequence[PlaceKey]) -> list[str]:
    return [
        *_noise_warnings(results, found, places),
        *_machine_warnings(results),
        *_cell_warnings(results, found.rows),
        *results.skipped,
        *results.machine.notes,
    ]


def _noise_warnings(results: Results, found: Analysis, places: Sequence[PlaceKey]) -> list[str]:
    noisy, said = found.noisy, []
    if places and len(noisy) * 2 >= len(places):
        said.append(
            f"TOO NOISY TO CONCLUDE: {_NOISE}, in {len(noisy)} of {len(places)} lines. What differs by more than its "
            "line's floor differs all the same. For the rest, run again on a quiet machine or with more --rounds."
        )
    elif noisy:
        names = ", ".join(dict.fromkeys(f"{key.scenario} at {key.services:,}" for key in noisy))
        said.append(f"Too noisy to conclude ({_NOISE}): {names}.")
    if places and AGAIN not in results.settings.modes:
        said.append(
            "This run has no A/A pair (direct measured twice): its noise floors are of the rounds' disagreement alone."
        )
    return said


def _machine_warnings(results: Results) -> list[str]:
    found = []
    others = [cell.figures["others"] for cell in results.cells if "others" in cell.figures]
    if others and statistics.median(others) > BUSY_OTHERS:
        found.append(
            f"Other programs kept {statistics.median(others):.2f} processors busy while packets were measured: "
            "figures are too low and their spread too wide."
        )
    if results.settings.load_tool != "c":
        found.append(
            "The load generator ran in Python: its own time is part of every rate, so ratios are too near to 1."
        )
    if not results.complete:
        found.append("This run is not finished: hotplane bench --resume goes on with it.")
    if results.version < VERSION:
        found.append("Measured by an earlier version: its TCP_RR, then called rr, sent 64 bytes each way.")
    return found


def _cell_warnings(results: Results, rows: Sequence[Row]) -> list[str]:
    found = []
    failed = [cell for cell in results.cells if cell.error]
    if failed:
        example = failed[0]
        what = f"{example.key.mode}, {example.key.scenario} at {example.key.services} Services: {example.error}"
        found.append(f"{len(failed)} of {len(results.cells)} cells have no figures; the first is {what}")
    many = sum(len(row.main.outliers) for row in rows)
    if many:
        total = sum(row.main.rounds for row in rows)
        found.append(f"{many} outliers among {total} rounds; they stay in the figures; a median hardly moves for them.")
    return found


def ratio_text(ratio: Ratio | None) -> str:
    """A ratio with its interval: 0.87 [0.85, 0.89]."""
    return "" if ratio is None else f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


class Scale(NamedTuple):
    """A unit with its prefix, in which one figure or a whole line of figures is written. factor: of the plain unit."""

    factor: float
    unit: str

    def number(self, value: float) -> str:
        """The figure without its unit: three digits that count."""
        scaled = value * self.factor
        return f"{scaled:,.0f}" if abs(scaled) >= 1000 else f"{scaled:.3g}"

    def text(self, value: float) -> str:
        """The figure with its unit."""
        return f"{self.number(value)} {self.unit}"


def scale(value: float, unit: str) -> Scale:
    """The prefix that suits a figure: k/s, Gbit/s, µs, s, MB."""
    if unit == "ns":
        for limit, factor, name in ((1e3, 1.0, "ns"), (1e6, 1e-3, "µs"), (1e9, 1e-6, "ms")):
            if value < limit:
                return Scale(factor, name)
        return Scale(1e-9, "s")
    if unit == "s":
        return Scale(1e3, "ms") if value < 1 else Scale(1.0, "s")
    if unit == "B":
        return Scale(1e-6, "MB")
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return Scale(1 / size, f"{prefix}{_ending(unit)}")
    return Scale(1.0, _ending(unit).strip())


def common_scale(values: Iterable[float], unit: str) -> Scale:
    """One prefix for figures that stand side by side: that of the smallest."""
    return scale(min((value for value in values if value > 0), default=0.0), unit)


def _ending(unit: str) -> str:
    """A unit as it follows its prefix: k/s, Gbit/s, k packets/s."""
    return f" {unit}" if unit == "packets/s" else unit.removeprefix("1")


def quantity(value: float, unit: str) -> str:
    """A figure for people: 12.3 k/s, 4.56 Gbit/s, 38.1 µs, 2.31 s, 91 MB."""
    found = scale(value, unit)
    return f"{value * found.factor:.0f} MB" if unit == "B" else found.text(value)


def as_records(analysis: Analysis) -> list[dict[str, object]]:
    """The main figures as a table. Every column has one unit, or says in the column beside it which one a line has."""
    scales: dict[PlaceKey, list[float]] = {}
    for row in analysis.rows:
        scales.setdefault(row.place, []).append(row.main.median)
    units = {place: common_scale(found, SCENARIOS[place.scenario].unit) for place, found in scales.items()}
    return [_record(analysis, row, units[row.place]) for row in analysis.rows]


def _record(analysis: Analysis, row: Row, unit: Scale) -> dict[str, object]:
    figures, scenario = row.figures, row.scenario

    def shown(name: str, factor: float = 1.0, digits: str = ".3g") -> str:
        return f"{figures[name].median * factor:{digits}}" if name in figures else ""

    is_bulk = scenario.operation.startswith("iperf3")
    with_cpu = scenario.kind is Kind.DATA and scenario.operation != "program" and "cpu" in figures
    notes = [
        "noisy" if row.place in analysis.noisy else "",
        f"{len(row.main.outliers)} outliers" if row.main.outliers else "",
        "CPU of a gigabyte" if is_bulk and with_cpu else "",
    ]
    many = row.main.rounds > 1
    tail = hdr.percentile(row.latencies, 0.9999) if sum(row.latencies.values()) >= 10000 else 0
    return {
        "scenario": scenario.name,
        "services": row.key.services,
        "position": row.key.position,
        "mode": row.key.mode,
        "median": unit.number(row.main.median),
        "unit": unit.unit,
        "spread": f"{row.main.spread:.0%}" if many else "one round",
        "rounds": row.main.rounds,
        "against direct": ratio_text(row.ratios.get(scenario.metric)) if many else "",
        "noise floor": floor_text(analysis.floor(row.place)),
        "p50 µs": shown("p50", 1e-3),
        "p99 µs": shown("p99", 1e-3),
        "p99.9 µs": shown("p999", 1e-3),
        "p99.99 µs": f"{tail / 1e3:.3g}" if tail else "",
        "CPU s/M": shown("cpu") if with_cpu else "",
        "client": shown("cpu_client") if with_cpu else "",
        "server": shown("cpu_server") if with_cpu else "",
        "softirq": shown("cpu_softirq") if with_cpu else "",
        "cycles": shown("cycles", digits=",.0f"),
        "instructions": shown("instructions", digits=",.0f"),
        "memory MB": shown("rss", 1e-6),
        "in kernel MB": shown("kernel_bytes", 1e-6),
        "note": ", ".join(filter(None, notes)),
    }
