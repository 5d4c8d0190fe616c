"""The tables as Markdown, for pages that show a run: made from the results, so that nobody types a figure."""

from collections.abc import Mapping, Sequence

from dataplane.bench import bars as bars_module
from dataplane.bench.analyse import analyse
from dataplane.bench.modes import MODES
from dataplane.bench.pace import duration
from dataplane.bench.report.summary import Place, iptables_wins, places
from dataplane.bench.results import Results
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


def _bars(results: Results) -> str:
    records = bars_module.as_records(bars_module.bars(results))
    for record in records:
        record["verdict"] = f"**{record['verdict']}**" if record["verdict"] == "missed" else record["verdict"]
    return table(records)


def place_records(found: Sequence[Place], modes: Sequence[str]) -> list[dict[str, object]]:
    """The table of winners as records, the best of each line in bold."""
    records = []
    for place in found:
        record: dict[str, object] = {
            "": place.title + (" (too noisy)" if place.noisy else ""),
            "Services": place.services,
        }
        for mode in modes:
            shown = place.figures.get(mode)
            record[mode] = "" if shown is None else f"**{shown.text}**" if shown.best else shown.text
        records.append(record)
    return records


def markdown(results: Results) -> str:
    """The bars, what wins where, and how to repeat it."""
    analysis, machine = analyse(results), results.machine
    found = places(analysis)
    modes = [mode for mode in MODES if any(mode in place.figures for place in found)]
    wins = iptables_wins(analysis)
    versions = ", ".join(f"{name} {text}" for name, text in machine.versions.items() if name in ("hotplane", "commit"))
    parts = [
        f"Made by `{results.command}` on {machine.started[:10]} in {duration(results.seconds)} minutes: "
        f"{machine.cpus} x {machine.cpu_model}, {machine.virtual or 'no virtual machine'}, "
        f"kernel {machine.kernel}, {machine.system}, {versions}.\n",
        *(f"> {text}\n" for text in analysis.warnings),
        _bars(results),
        "Ratios are medians over rounds with their 95 % confidence interval, other figures medians with quartiles; "
        "spread is the interval's width. A bar inside its interval is `unclear`.\n",
        "What wins where (medians; bold: the best mode, and those that cannot be told from it):\n",
        table(place_records(found, modes)),
        "Where iptables wins or shares the first place: "
        + (" ".join(text.removeprefix("iptables ") for text in wins) if wins else "nowhere in this run.")
        + "\n",
    ]
    return "\n".join(parts)


def insert(page: str, text: str, name: str) -> str:
    """The page with `text` between its markers. Raises MarkersError when it has none. name: of the page, for errors."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise MarkersError(f"{name}: put the lines {BEGIN} and {END} where the tables belong")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}"
