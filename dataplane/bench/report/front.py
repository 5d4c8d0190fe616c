"""What a README shows first of a run: one picture, and six lines of figures as ratios to peers."""

from typing import NamedTuple

from dataplane.bench.figures.analyse import Analysis, PlaceKey, Row, against, floor_text, quantity
from dataplane.bench.figures.bars import SIZE
from dataplane.bench.figures.stats import Ratio
from dataplane.bench.modes import DIRECT, MODES
from dataplane.bench.report.charts import CAPTIONS, MAIN, charts
from dataplane.bench.report.summary import contest, many, spread_text
from dataplane.bench.scenarios import Position


class _Line(NamedTuple):
    """One line. peer: the mode that figures are divided by; "" for figures as they are. largest: at the most Services,
    otherwise where most rounds were measured, as near to the bars' number of Services as can be."""

    scenario: str
    peer: str
    what: str
    largest: bool = True


_LINES = (
    _Line("connect", DIRECT, "new connections/s to the last of {}, of direct's", largest=False),
    _Line("connect", "iptables", "new connections/s to the last of {}, times iptables'"),
    _Line("north-remote", DIRECT, "new connections/s from outside to a pod elsewhere, {}, of plain forwarding's"),
    _Line("north-remote-pps", DIRECT, "packets/s from outside to a pod elsewhere, {}, of plain forwarding's"),
    _Line("coldstart", "", "cold start with {}"),
    _Line("change", "", "one endpoint changes among {}: p99 until the kernel has it"),
)


def picture(analysis: Analysis, directory: str) -> str:
    """The main picture in Markdown. directory: where the report is, as the page refers to it."""
    if MAIN not in charts(analysis):
        return "This run has one number of Services, and so no picture over several.\n"
    return f"![{CAPTIONS[MAIN]}]({directory}/{MAIN}.svg)\n"


def records(analysis: Analysis) -> list[dict[str, object]]:
    """Six lines at most, a column for each mode; the best of a line, and what is not told from it, between stars."""
    modes = [mode for mode in MODES if any(row.key.mode == mode for row in analysis.rows)]
    modes = [mode for mode in modes if not MODES[mode].reference]
    found = ((line, _rows(analysis, line)) for line in _LINES)
    return [_record(analysis, line, rows, modes) for line, rows in found if rows]


def _rows(analysis: Analysis, line: _Line) -> dict[str, Row]:
    """The rows of a line by mode, its peer's among them; empty where it was not measured."""
    rows = [r for r in analysis.rows if r.key.scenario == line.scenario]
    places: dict[PlaceKey, dict[str, Row]] = {}
    for row in rows:
        if row.key.position in ("", Position.LAST.value):
            places.setdefault(row.place, {})[row.key.mode] = row
    places = {place: by_mode for place, by_mode in places.items() if not line.peer or line.peer in by_mode}

    def weight(place: PlaceKey) -> tuple[int, int]:
        rounds = max(row.main.rounds for row in places[place].values())
        return (0, place.services) if line.largest else (rounds, -abs(place.services - SIZE))

    return places[max(places, key=weight)] if places else {}


def _record(analysis: Analysis, line: _Line, rows: dict[str, Row], modes: list[str]) -> dict[str, object]:
    place = next(iter(rows.values())).place
    ours = [rows[mode] for mode in modes if mode in rows]
    seen = contest(analysis, ours) if ours else None
    told = seen is not None and seen.behind and place not in analysis.crowded
    named = {row.key.mode for row in seen.best} if seen is not None and told else set()
    record: dict[str, object] = {"": line.what.format(many(place.services))}
    most = max((row.main.rounds for row in rows.values()), default=0)
    for mode in modes:
        text = ""
        if mode in rows and line.peer:
            text = "1" if mode == line.peer else _ratio(against(analysis.rounds, rows[mode].key, line.peer, "rate"))
        elif mode in rows:
            row = rows[mode]
            text = f"{quantity(row.main.median, row.scenario.unit)} ({spread_text(row, most)})"
        number, _, certainty = text.partition(" (")
        record[mode] = f"**{number}**" + (f" ({certainty}" if certainty else "") if mode in named else text
    return record | {"rounds": most, "noise floor": floor_text(analysis.floor(place))}


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    value, low, high = (f"{v:.2f}" if v < 10 else f"{v:.3g}" for v in (ratio.value, ratio.low, ratio.high))
    return f"{value} ({low} to {high})"


def floors(analysis: Analysis) -> str:
    """A sentence on what the run can tell."""
    found = sorted(analysis.floor(place) for place in analysis.lines)
    if not found:
        return "Too few rounds for a noise floor: nothing is told apart."
    texts = [floor_text(found[at]) for at in (0, len(found) // 2, -1)]
    return (
        f"Noise floor, the smallest difference that a line finds: {texts[0]} to {texts[2]}, median {texts[1]} of "
        f"{len(found)} lines."
    )
