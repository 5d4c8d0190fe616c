"""The tables as Markdown, for pages that show a run: made from the results, so that nobody types a figure."""

from collections.abc import Mapping, Sequence

from dataplane.bench.figures.analyse import analyse
from dataplane.bench.figures.bars import BarRow, Verdict, as_records, bars
from dataplane.bench.figures.results import Results
from dataplane.bench.figures.scaling import NOTE, records
from dataplane.bench.modes import MODES
from dataplane.bench.pace import duration
from dataplane.bench.report.summary import Place, iptables_wins, places
from dataplane.errors import HotplaneError

BEGIN, END = "<!-- hotplane bench: begin -->", "<!-- hotplane bench: end -->"


class MarkersError(HotplaneError):
    """A page without a place for the tables."""


def table(records: Sequence[Mapping[str, object]]) -> str:
    """Records as a Markdown table."""
    if not records:
        return "Nothing was measured.\n"
    columns = list(records[0])
    lines = [columns, ["---"] * len(columns), *([str(record[name]) for name in columns] for record in records)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _verdict(verdict: str) -> str:
    return f"**{verdict}**" if verdict == Verdict.MISSED else verdict


def _bars(rows: Sequence[BarRow]) -> str:
    """A line for each bar and mode."""
    return table([record | {"verdict": _verdict(str(record["verdict"]))} for record in as_records(list(rows))])


def _bars_by_mode(rows: Sequence[BarRow]) -> str:
    """A line for each bar, its modes side by side."""
    modes = [mode for mode in MODES if any(row.mode == mode for row in rows)]
    lines: dict[tuple[str, str], dict[str, object]] = {}
    for row, record in zip(rows, as_records(list(rows)), strict=True):
        line = lines.setdefault(
            (row.what, str(record["bar"])), {"what": row.what, "bar": record["bar"], **dict.fromkeys(modes, "")}
        )
        text = f"{record['measured']} ({record['interval']}) " if row.measured is not None else ""
        line[row.mode] = text + _verdict(row.verdict)
    return table(list(lines.values()))


def place_records(found: Sequence[Place], modes: Sequence[str], mark: str = "**") -> list[dict[str, object]]:
    """The table of winners as records, the best of each line between marks."""
    records = []
    for place in found:
        record: dict[str, object] = {
            "scenario": place.key.scenario,
            "Services": place.key.services,
            "unit": place.unit,
            "rounds": place.rounds,
            "noise floor": place.floor,
        }
        for mode in modes:
            shown = place.figures.get(mode)
            text = (
                ""
                if shown is None
                else f"{mark}{shown.text}{mark if len(mark) > 1 else ''}"
                if shown.best
                else shown.text
            )
            record[mode] = f"{text} ({shown.spread})" if shown else ""
        records.append(record)
    return records


def markdown(results: Results, *, whole: bool = False) -> str:
    """The bars, what wins where, and how to repeat it. whole: a line for each bar and mode, with spread and note."""
    analysis, machine = analyse(results), results.machine
    found = places(analysis)
    modes = [mode for mode in MODES if any(mode in place.figures for place in found)]
    wins, judged = iptables_wins(analysis), bars(results, analysis)
    scaled = records(analysis)
    kernel = f"kernel {machine.kernel}"
    commit = f"commit {machine.versions['commit']}" if "commit" in machine.versions else ""
    where = ", ".join(filter(None, (f"{machine.cpus} x {machine.cpu_model}", machine.virtual, kernel, machine.system)))
    parts = [
        f"Made by `{results.command}` on {machine.started[:10]} in {duration(results.seconds)} minutes: "
        f"{', '.join(filter(None, (where, commit)))}.\n",
        *(f"> {text}\n" for text in analysis.warnings),
        *(_judged(judged, whole=whole) if results.settings.profile != "cluster" else ()),
        "What wins where. Medians with the spread of their rounds (distance of the quartiles); bold: the best mode, "
        "and those that differ from it by less than the noise floor, the smallest difference that the line can tell; "
        "none: too few rounds.\n",
        table(place_records(found, modes)),
        *((f"On several processors. {NOTE}\n", table(scaled)) if scaled else ()),
    ]
    if "iptables" in results.settings.modes:
        told = " ".join(text.removeprefix("iptables ") for text in wins) if wins else "nowhere in this run."
        parts.append(f"Where iptables wins or shares the first place: {told}\n")
    return "\n".join(parts)


def _judged(rows: Sequence[BarRow], *, whole: bool) -> tuple[str, str]:
    """The table of bars, and how to read it."""
    return (
        (_bars if whole else _bars_by_mode)(rows),
        "Ratios are medians over rounds with their 95 % confidence interval, other figures medians with their "
        "quartiles. Where the bar is inside the interval, or others were at work, it is `unclear`.\n",
    )


def insert(page: str, text: str, name: str) -> str:
    """The page with `text` between its markers. Raises MarkersError when it has none. name: of the page, for errors."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise MarkersError(f"{name}: put the lines {BEGIN} and {END} where the tables belong")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}"
