"""Runs over time: the same figures in every results file of a directory, in the order in which they were measured.

Packets are shown as their ratio to direct of the same round, so that another machine or a busier day is not taken for
another data plane; the control plane's figures as they are.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dataplane.bench.figures.analyse import Analysis, GroupKey, analyse, common_scale
from dataplane.bench.figures.results import Results, ResultsError, read
from dataplane.bench.modes import MODES
from dataplane.bench.scenarios import SCENARIOS, Kind, Position

_ENDINGS = (".json", ".json.gz")


class Run(NamedTuple):
    """One results file. name: of its commit, or the day where that is unknown."""

    path: Path
    name: str
    results: Results
    analysis: Analysis


class Point(NamedTuple):
    """A figure of one run, with its confidence interval or quartiles."""

    value: float
    low: float
    high: float


class Series(NamedTuple):
    """A figure over the runs; None where a run lacks it. unit: "x direct", or the figure's own."""

    key: GroupKey
    unit: str
    points: tuple[Point | None, ...]

    def change(self) -> str:
        """The last against the first, where their intervals do not touch."""
        found = [point for point in self.points if point is not None]
        first, last = found[0], found[-1]
        if len(found) < 2 or (first.low <= last.high and last.low <= first.high):
            return ""
        return f"{last.value / first.value - 1:+.0%}"


def runs(directory: Path) -> tuple[list[Run], list[str]]:
    """The runs in a directory and below it, oldest first, and sentences about files that are none.

    Raises ResultsError when there is no run at all.
    """
    if not directory.is_dir():
        raise ResultsError(f"{directory}: there is no such directory; name the one that holds the results files")
    found, said = [], []
    for path in sorted(p for p in directory.rglob("*") if p.name.endswith(_ENDINGS)):
        try:
            results = read(path)
        except ResultsError as error:
            said.append(str(error))
            continue
        found.append(Run(path, _name(results), results, analyse(results)))
    if not found:
        raise ResultsError(f"{directory}: no results of hotplane bench in it; name the directory that holds them")
    return sorted(found, key=lambda run: run.results.machine.started), said


def _name(results: Results) -> str:
    return results.machine.versions.get("commit", "") or results.machine.started[:10]


def series(found: Sequence[Run]) -> list[Series]:
    """What at least one run has of the main figures: of every scenario, mode and size, through the last Service."""
    keys = dict.fromkeys(row.key for run in found for row in run.analysis.rows if _is_shown(row.key))
    names, modes = list(SCENARIOS), list(MODES)
    ordered = sorted(keys, key=lambda k: (names.index(k.scenario), k.services, modes.index(k.mode)))
    return [_series(key, found) for key in ordered]


def _is_shown(key: GroupKey) -> bool:
    return key.position in ("", Position.LAST.value) and not MODES[key.mode].reference


def _series(key: GroupKey, found: Iterable[Run]) -> Series:
    scenario = SCENARIOS[key.scenario]
    points: list[Point | None] = []
    for run in found:
        row = run.analysis.row(*key)
        if row is None:
            points.append(None)
        elif scenario.kind is Kind.DATA and scenario.metric in row.ratios:
            ratio = row.ratios[scenario.metric]
            points.append(Point(ratio.value, ratio.low, ratio.high))
        elif scenario.kind is not Kind.DATA or scenario.metric == "ns":
            points.append(Point(row.main.median, *row.main.quartiles))
        else:
            points.append(None)
    unit = "x direct" if scenario.kind is Kind.DATA and scenario.metric != "ns" else scenario.unit
    if unit != "x direct":
        scale = common_scale((point.value for point in points if point), unit)
        points = [point and Point(*(value * scale.factor for value in point)) for point in points]
        unit = scale.unit
    return Series(key, unit, tuple(points))


def as_records(found: Sequence[Run], lines: Sequence[Series]) -> list[dict[str, object]]:
    """A table: a line for each figure, a column for each run."""
    columns = column_names(found)
    records = []
    for line in lines:
        record: dict[str, object] = {
            "scenario": line.key.scenario, "services": line.key.services, "mode": line.key.mode, "unit": line.unit,
        }  # fmt: skip
        for name, point in zip(columns, line.points, strict=True):
            record[name] = "" if point is None else f"{point.value:.3g}"
        records.append(record | {"change": line.change() if any(line.points) else ""})
    return records


def column_names(found: Sequence[Run]) -> list[str]:
    """A name for each run, told apart by a number where a commit was measured twice."""
    names: list[str] = []
    for run in found:
        same = sum(name.split("#")[0] == run.name for name in names)
        names.append(f"{run.name}#{same + 1}" if same else run.name)
    return names
