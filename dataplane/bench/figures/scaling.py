"""How rates grow with processors: a run's cells on 1, 2, … of them as tables."""

from collections.abc import Sequence
from typing import NamedTuple

from dataplane.bench.figures.analyse import Analysis, PlaceKey, Row, common_scale, floor_text, ratio_text
from dataplane.bench.processors import count_of, position

NOTE = (
    "Rate and p99 on one processor, medians of the rounds; those on k over those on one: medians of the rounds' ratios "
    "with their 95 % confidence interval. p99: mean of the clients'. Noise floor: the smallest difference of two modes "
    "that can be told on 1, 2, … processors. Each client has a processor; servers are on the second half of them, "
    "which clients share where they are more than half of the processors."
)
"""What a reader of `records` has to know."""


class Line(NamedTuple):
    """One mode in one scaling scenario among so many Services: its rows by number of processors, ascending."""

    scenario: str
    services: int
    mode: str
    rows: dict[int, Row]


def lines(analysis: Analysis) -> list[Line]:
    """All modes that were measured on one processor and on more, in the order of the analysis."""
    found: dict[tuple[str, int, str], dict[int, Row]] = {}
    for row in analysis.rows:
        if row.scenario.scaling:
            key = row.key
            found.setdefault((key.scenario, key.services, key.mode), {})[count_of(key.position)] = row
    return [Line(*key, dict(sorted(rows.items()))) for key, rows in found.items() if 1 in rows]


def records(analysis: Analysis) -> list[dict[str, object]]:
    """The table: a line for each mode; empty where nothing was measured on several processors."""
    found = lines(analysis)
    counts = sorted({count for line in found for count in line.rows})
    return [_record(analysis, line, counts, found) for line in found]


def _record(analysis: Analysis, line: Line, counts: Sequence[int], all_lines: Sequence[Line]) -> dict[str, object]:
    beside = [other for other in all_lines if other[:2] == line[:2]]
    unit = common_scale((other.rows[1].main.median for other in beside), line.rows[1].scenario.unit)
    record: dict[str, object] = {
        "scenario": line.scenario,
        "Services": line.services,
        "mode": line.mode,
        "unit": unit.unit,
        "rounds": line.rows[1].main.rounds,
        "on 1": unit.number(line.rows[1].main.median),
    }
    several = [count for count in counts if count > 1]
    for count in several:
        row = line.rows.get(count)
        record[f"{count} / 1"] = ratio_text(row.scaling.get("rate")) if row else ""
    one = line.rows[1].figures.get("p99")
    record["p99 µs on 1"] = f"{one.median / 1e3:.3g}" if one else ""
    for count in several:
        row = line.rows.get(count)
        record[f"p99 {count} / 1"] = ratio_text(row.scaling.get("p99")) if row else ""
    places = [PlaceKey(line.scenario, line.services, position(count)) for count in counts]
    record["noise floor"] = ", ".join(floor_text(analysis.floor(place)) for place in places)
    return record
