"""From cells to figures: medians with spread, ratios to direct with intervals, and how far to trust the machine."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from dataplane.bench.modes import DIRECT, MODES
from dataplane.bench.results import Cell, Results
from dataplane.bench.scenarios import SCENARIOS, Kind, Scenario
from dataplane.bench.stats import Estimate, Ratio, estimate, paired_ratio

NOISY_SPREAD = 0.10
"""Direct's own rounds may differ by this much (quartile distance / median) before nothing is concluded from medians."""
BUSY_OTHERS = 0.15
"""Processors that somebody else may keep busy during a measurement of the control plane, and before it is told."""
CROWDED_OTHERS = 0.4
"""The same for packets, of which modes are compared in turns: then ratios conclude nothing either."""
_NOISE = f"direct's own rounds differ by more than {NOISY_SPREAD:.0%} or others kept {CROWDED_OTHERS} processors busy"
RATIO_FIGURES = ("rate", "p50", "p90", "p99", "p999", "cpu")


class GroupKey(NamedTuple):
    """Cells of all rounds together. position: "" where it makes no difference."""

    mode: str
    scenario: str
    services: int
    position: str


class Row(msgspec.Struct, frozen=True):
    """One group's figures, each with its rounds' median and spread; ratios: of the same round to direct, by figure."""

    key: GroupKey
    figures: dict[str, Estimate]
    ratios: dict[str, Ratio] = {}

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.key.scenario]

    @property
    def main(self) -> Estimate:
        """The scenario's main figure."""
        return self.figures[self.scenario.metric]


class Analysis(msgspec.Struct, frozen=True):
    """noisy: direct's groups whose rounds differ too much: medians there tell no modes apart. crowded: those of them
    beside which somebody else was at work, so that not even ratios of rounds do. warnings: sentences, worst first."""

    rows: list[Row]
    noisy: list[GroupKey]
    crowded: list[GroupKey]
    warnings: list[str]

    def row(self, mode: str, scenario: str, services: int, position: str = "") -> Row | None:
        """The row of a group, if it was measured."""
        return next((r for r in self.rows if r.key == GroupKey(mode, scenario, services, position)), None)


Rounds = dict[GroupKey, dict[int, Cell]]


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
            found = {name: against(rounds, key, DIRECT, name) for name in RATIO_FIGURES if name in figures}
            ratios = {name: ratio for name, ratio in found.items() if ratio is not None}
        rows.append(Row(key, figures, ratios))
    rows.sort(key=_order)
    baselines = [row for row in rows if row.key.mode == DIRECT]
    noisy = [row.key for row in baselines if _is_crowded(row) or _is_spread(row)]
    crowded = [row.key for row in baselines if _is_crowded(row)]
    return Analysis(rows, noisy, crowded, _warnings(results, rows, noisy))


def _is_crowded(baseline: Row) -> bool:
    others = baseline.figures.get("others")
    return others is not None and others.median > CROWDED_OTHERS


def _is_spread(baseline: Row) -> bool:
    return baseline.main.rounds > 1 and baseline.main.spread > NOISY_SPREAD


def _order(row: Row) -> tuple[int, int, str, int]:
    names, modes = list(SCENARIOS), list(MODES)
    return (names.index(row.key.scenario), row.key.services, row.key.position, modes.index(row.key.mode))


def _warnings(results: Results, rows: Sequence[Row], noisy: Sequence[GroupKey]) -> list[str]:
    found = []
    baselines = [row for row in rows if row.key.mode == DIRECT]
    if baselines and len(noisy) * 2 >= len(baselines):
        found.append(
            f"TOO NOISY TO CONCLUDE: {_NOISE}, in {len(noisy)} of {len(baselines)} groups. "
            "Ratios stand as far as their intervals tell: they are of rounds that were taken together. For the rest, "
            "run again on a quiet machine or with more --rounds."
        )
    elif noisy:
        names = ", ".join(dict.fromkeys(f"{key.scenario} at {key.services:,}" for key in noisy))
        found.append(f"Too noisy to conclude ({_NOISE}): {names}.")
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
    failed = [cell for cell in results.cells if cell.error]
    if failed:
        example = failed[0]
        what = f"{example.key.mode}, {example.key.scenario} at {example.key.services} Services: {example.error}"
        found.append(f"{len(failed)} of {len(results.cells)} cells have no figures; the first is {what}")
    many = sum(len(row.main.outliers) for row in rows)
    if many:
        total = sum(row.main.rounds for row in rows)
        found.append(f"{many} outliers among {total} rounds; they are left in, and medians do not mind them.")
    return [*found, *results.skipped, *results.machine.notes]


def quantity(value: float, unit: str) -> str:
    """A figure for people: 12.3 k/s, 4.56 Gbit/s, 38.1 µs, 2.31 s, 91 MB."""
    if unit == "ns":
        if value < 1e3:
            return f"{value:.0f} ns"
        if value >= 1e9:
            return f"{value / 1e9:.3g} s"
        scaled, unit = (value / 1e3, "µs") if value < 1e6 else (value / 1e6, "ms")
        return f"{scaled:.3g} {unit}"
    if unit == "s":
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "B":
        return f"{value / 1e6:.0f} MB"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{_ending(unit)}"
    return f"{value:.3g} {_ending(unit)}".replace("  ", " ")


def _ending(unit: str) -> str:
    """A unit as it follows its prefix: k/s, Gbit/s, k packets/s."""
    return f" {unit}" if unit == "packets/s" else unit.removeprefix("1")


def ratio_text(ratio: Ratio | None) -> str:
    """A ratio with its interval: 0.87 [0.85, 0.89]."""
    return "" if ratio is None else f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def as_records(analysis: Analysis) -> list[dict[str, object]]:
    """The main figures as a table."""
    noisy = {key[1:] for key in analysis.noisy}
    return [_record(row, noisy=row.key[1:] in noisy) for row in analysis.rows]


def _record(row: Row, *, noisy: bool) -> dict[str, object]:
    figures, scenario = row.figures, row.scenario

    def shown(name: str, unit: str) -> str:
        return quantity(figures[name].median, unit) if name in figures else ""

    unit = "CPU s/GB" if scenario.operation.startswith("iperf3") else "CPU s/M"
    with_cpu = scenario.kind is Kind.DATA and scenario.operation != "program" and "cpu" in figures
    notes = ["noisy" if noisy else "", f"{len(row.main.outliers)} outliers" if row.main.outliers else ""]
    return {
        "scenario": scenario.name,
        "services": row.key.services,
        "position": row.key.position,
        "mode": row.key.mode,
        "median": quantity(row.main.median, scenario.unit),
        "spread": f"{row.main.spread:.0%}" if row.main.rounds > 1 else "",
        "rounds": row.main.rounds,
        "against direct": ratio_text(row.ratios.get(scenario.metric)),
        "p50": shown("p50", "ns"),
        "p99": shown("p99", "ns"),
        "p99.9": shown("p999", "ns"),
        "cpu": f"{figures['cpu'].median:.3g} {unit}" if with_cpu else "",
        "memory": shown("rss", "B"),
        "in kernel": shown("kernel_bytes", "B"),
        "note": ", ".join(filter(None, notes)),
    }
