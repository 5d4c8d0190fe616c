"""A run as Markdown, for pages that show it: made from the results, so that nobody types a figure.

A page has pairs of comments, between which the command writes: `<!-- hotplane bench: begin -->` and the same with
`end` for the tables, `<!-- hotplane bench picture: begin -->`, `figures` and `wins` for what a README shows.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence

from dataplane.bench.figures import events
from dataplane.bench.figures.analyse import Analysis, analyse
from dataplane.bench.figures.bars import BarRow, Verdict, as_records, bars
from dataplane.bench.figures.bars import sentences as bar_sentences
from dataplane.bench.figures.results import Results
from dataplane.bench.figures.scaling import NOTE, records
from dataplane.bench.modes import MODES
from dataplane.bench.pace import duration
from dataplane.bench.report import front
from dataplane.bench.report.summary import Place, places, where_baselines_win
from dataplane.errors import HotplaneError

_WIDTH = 120
"""Of prose in pages that people edit."""


class MarkersError(HotplaneError):
    """A page without a place for what is to be written into it."""


def marks(block: str) -> tuple[str, str]:
    """The comments around a block."""
    name = "hotplane bench" + ("" if block == "tables" else f" {block}")
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


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
            "wins": place.wins,
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


def made_by(results: Results) -> str:
    """A sentence: by which command, when, and on what machine."""
    machine = results.machine
    commit = f"commit {machine.versions['commit']}" if "commit" in machine.versions else ""
    facts = (
        f"{machine.cpus} x {machine.cpu_model}",
        machine.virtual,
        f"kernel {machine.kernel}",
        machine.system,
        commit,
    )
    return (
        f"Made by `{results.command}` on {machine.started[:10]} in {duration(results.seconds)} minutes: "
        f"{', '.join(filter(None, facts))}."
    )


def markdown(results: Results, *, whole: bool = False, analysis: Analysis | None = None) -> str:
    """The bars, what wins where, and how to repeat it. whole: a line for each bar and mode, with spread and note.
    analysis: of the results, if it is there already."""
    analysis = analysis or analyse(results)
    found = places(analysis)
    modes = [mode for mode in MODES if any(mode in place.figures for place in found)]
    judged, scaled = bars(results, analysis), records(analysis)
    happened = events.records(results, analysis)
    parts = [
        f"{made_by(results)}\n",
        *(f"> {text}\n" for text in analysis.warnings),
        *(_judged(judged, whole=whole) if results.settings.profile != "cluster" else ()),
        "What wins where. Medians with the spread of their rounds (distance of the quartiles); bold: the best mode, "
        "and those that cannot be told from it. Noise floor: the smallest difference that the line finds, but for one "
        "run in a hundred; unknown: too few rounds.\n",
        table(place_records(found, modes)),
        *((f"On several processors. {NOTE}\n", table(scaled)) if scaled else ()),
        *((f"While something happens. {events.NOTE}\n", table(happened)) if happened else ()),
        "".join(f"- {text}\n" for text in where_baselines_win(analysis, results.settings.modes)),
    ]
    return "\n".join(parts)


def _figures(results: Results, analysis: Analysis, directory: str) -> str:
    """A README's lines of figures, with machine and noise floor."""
    return f"{table(front.records(analysis))}\n" + _filled(
        f"{made_by(results)} {front.floors(analysis)} Ratios are medians over the rounds with their 95 % "
        "confidence interval, times are medians with the spread of their rounds; bold: the best, and what cannot "
        "be told from it."
    )


def _wins(results: Results, analysis: Analysis, directory: str) -> str:
    """Where the baselines win, and how many bars are met."""
    said = where_baselines_win(analysis, results.settings.modes, equal=False)
    return (
        "".join(_filled(f"- {text}", "  ") for text in said)
        + "".join(_filled(f"- {text}", "  ") for text in bar_sentences(bars(results, analysis)))
        + "".join(f"\n{_filled(f'> {text}', '> ')}" for text in analysis.warnings)
    )


def _filled(text: str, indent: str = "") -> str:
    wrapped = textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapped) + "\n"


_BLOCKS: dict[str, Callable[[Results, Analysis, str], str]] = {
    "picture": lambda results, analysis, directory: front.picture(analysis, directory),
    "figures": _figures,
    "wins": _wins,
    "tables": lambda results, analysis, directory: markdown(results, analysis=analysis),
}
"""What is between the comments of each name."""


def _judged(rows: Sequence[BarRow], *, whole: bool) -> tuple[str, str]:
    """The table of bars, and how to read it."""
    return (
        (_bars if whole else _bars_by_mode)(rows),
        "Ratios are medians over rounds with their 95 % confidence interval, other figures medians with their "
        "quartiles. Where the bar is inside the interval or nearer than the run can tell, or others were at work, it "
        "is `unclear`.\n",
    )


def insert(page: str, results: Results, name: str, directory: str = ".") -> str:
    """The page with the run between the comments that it has. name: of the page, for errors. directory: where the
    report is, as the page refers to it. Raises MarkersError when it has none, or half a pair, or one twice."""
    there = [block for block in _BLOCKS if any(mark in page for mark in marks(block))]
    if not there:
        begin, end = marks("tables")
        raise MarkersError(f"{name}: put the lines {begin} and {end} where the tables belong")
    analysis = analyse(results)
    for block in there:
        begin, end = marks(block)
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise MarkersError(f"{name}: {begin} and {end} must be there once each, in this order")
        before, rest = page.split(begin)
        page = f"{before}{begin}\n\n{_BLOCKS[block](results, analysis, directory)}\n{end}{rest.split(end)[1]}"
    return page
