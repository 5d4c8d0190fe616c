"""The report: one HTML page that needs nothing else, its charts as SVG files, the tables, and the run's data."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import msgspec

from dataplane.bench.figures import bars as bars_module
from dataplane.bench.figures import events
from dataplane.bench.figures.analyse import Analysis, analyse, as_records
from dataplane.bench.figures.export import latency_log
from dataplane.bench.figures.results import Results, write
from dataplane.bench.figures.scaling import NOTE, records
from dataplane.bench.modes import MODES
from dataplane.bench.pace import duration
from dataplane.bench.report.charts import CAPTIONS, MAIN, alone, charts, style
from dataplane.bench.report.html import anchor, document, listed, table
from dataplane.bench.report.markdown import markdown
from dataplane.bench.report.summary import headlines, highlights, places, where_baselines_win
from dataplane.bench.scenarios import SCENARIOS

PAGE, DATA, TABLES, LATENCIES = "index.html", "results.json", "tables.md", "latency.hlog"
_TITLE = "Service data planes side by side"

_SCALING = "On several processors"
_SECTIONS: dict[str, tuple[str, ...]] = {
    "Against direct": ("against-direct",),
    "New connections": ("connect-p50", "connect-p99", "positions", "paced"),
    "Processor time": ("cpu", "connect-cpu"),
    _SCALING: ("scaling-connect", "scaling-forward"),
    "Control plane": ("coldstart", "change", "rollout", "memory", "kernel-memory"),
    "Proxies probed by packets": ("first-cold", "first-change", "first-rollout"),
}
_WIDE = ("against-direct", "cpu")
_LAB = "each on a node of its own of one lab of network namespaces"
_WHERE = {"cluster": "which are ways between two pods of one cluster"}
"""Where the modes are, by profile."""


def _bars(records: Sequence[dict[str, object]]) -> str:
    """The table of bars; what is the same as in the line above is written once."""
    last, shown = "", []
    for record in records:
        what = str(record["what"])
        shown.append(record if what != last else record | {"what": ""})
        last = what
    return table(shown, "bars")


def _places(analysis: Analysis) -> str:
    """The table of winners."""
    found = places(analysis)
    if not found:
        return "<p>No two modes were measured.</p>"
    modes = [mode for mode in MODES if any(mode in place.figures for place in found)]
    names = ("scenario", "Services", "wins", "unit", "rounds", "noise floor", *modes)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines, last = [], ""
    for place in found:
        name = place.key.scenario
        begins = ' class="begins"' if name != last else ""
        last = name
        cells = (
            f'<th scope="row" title="{escape(SCENARIOS[name].title, quote=True)}">{escape(name)}</th>'
            f'<td class="number">{place.key.services:,}</td><td class="wins">{escape(place.wins)}</td>'
            f"<td>{escape(place.unit)}</td>"
            f'<td class="number">{place.rounds}</td><td class="number">{escape(place.floor)}</td>'
        )
        for mode in modes:
            shown = place.figures.get(mode)
            mark = "number best" if shown and shown.best else "number"
            text = f"{escape(shown.text)} <small>{escape(shown.spread)}</small>" if shown else ""
            cells += f'<td class="{mark}">{text}</td>'
        lines.append(f"<tr{begins}>{cells}</tr>")
    inner = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide" tabindex="0"><table class="places">{inner}</table></div>'


def _machine(results: Results) -> str:
    machine, settings = results.machine, results.settings
    facts = {
        "run": f"{machine.started}, {duration(results.seconds)} minutes, profile {settings.profile}",
        "machine": f"{machine.cpus} x {machine.cpu_model}, {machine.memory_bytes / 2**30:.0f} GiB, {machine.virtual}",
        "kernel": machine.kernel,
        "system": machine.system,
        "versions": ", ".join(f"{name}: {version}" for name, version in machine.versions.items()),
        "load average at the start": " ".join(f"{value:.2f}" for value in machine.load_average),
        "rounds": f"{settings.rounds} where a bar is measured, {settings.light_rounds} elsewhere, of "
        f"{settings.seconds} s each, the warm-up round not counted; control plane {settings.control_rounds} at the "
        f"largest size, {settings.light_control_rounds} elsewhere",
        "cluster": f"{settings.endpoints} endpoints each, IPv{settings.family.value}"
        + ("" if settings.profile in _WHERE else f", routing {settings.routing.value}"),
        "load generator": settings.load_tool,
    }
    return table([{"": name, "fact": value} for name, value in facts.items()])


def _scenarios(results: Results) -> str:
    found = [SCENARIOS[name] for name in results.settings.scenarios]
    records = [{"scenario": s.name, "what it is": s.title, "Kubernetes SLI": s.sli, "way": s.way.value} for s in found]
    return table(records)


def _figure(name: str, images: Mapping[str, str]) -> str:
    kind = "whole" if name in _WIDE or name == MAIN else "half"
    return (
        f'<figure class="{kind}" id="chart-{name}"><div class="wide" tabindex="0">{images[name]}</div>'
        f"<figcaption>{escape(CAPTIONS[name])}</figcaption></figure>"
    )


def _images(images: Mapping[str, str], analysis: Analysis) -> list[tuple[str, str]]:
    """The charts by section, and what belongs below them."""
    found = []
    for title, names in _SECTIONS.items():
        figures = [_figure(name, images) for name in names if name in images]
        below = _scaling(analysis) if title == _SCALING else ""
        if figures or below:
            found.append((title, (f'<div class="pictures">{"".join(figures)}</div>' if figures else "") + below))
    return found


def _scaling(analysis: Analysis) -> str:
    """The table of what was measured on several processors; "" without such."""
    found = records(analysis)
    return f"<p>{escape(NOTE)}</p>{table(found)}" if found else ""


def _events(results: Results, analysis: Analysis) -> list[tuple[str, str]]:
    """The section about what a load saw while something happened; none without such."""
    found = events.records(results, analysis)
    return [("While something happens", f"<p>{escape(events.NOTE)}</p>{table(found)}")] if found else []


def _introduction(results: Results) -> str:
    machine = results.machine
    modes = "".join(
        f"<li><b>{escape(name)}</b>: {escape(MODES[name].title)}</li>"
        for name in MODES
        if name in results.settings.modes
    )
    return (
        f"<p>{len(results.settings.modes)} modes, {_WHERE.get(results.settings.profile, _LAB)}, measured "
        f"in turns: every round measures everything once, in shuffled order. {escape(machine.started[:10])}, "
        f"{machine.cpus} x {escape(machine.cpu_model)}, kernel {escape(machine.kernel)}. Compare ratios; "
        f'absolute figures are this machine\'s.</p><ul class="modes">{modes}</ul>'
    )


def _baselines(results: Results, analysis: Analysis) -> str:
    """Where the baselines are not beaten."""
    return "<h3>Where iptables or direct wins</h3>" + listed(where_baselines_win(analysis, results.settings.modes))


def _headlines(analysis: Analysis) -> str:
    cards = "".join(
        f'<div class="card"><b>{escape(line.figure)}</b><span>{escape(line.what)}</span>'
        f"<small>{escape(line.certainty)}</small></div>"
        for line in headlines(analysis)
    )
    return f'<div class="cards">{cards}</div>' if cards else ""


def page(results: Results, analysis: Analysis, images: Mapping[str, str]) -> str:
    """The whole page."""
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in analysis.warnings)
    bars = bars_module.bars(results, analysis)
    data = base64.b64encode(gzip.compress(msgspec.json.encode(results), mtime=0)).decode()
    sections = [
        (
            "In short",
            listed([*highlights(analysis), *(bars_module.sentences(bars) if bars else ())])
            + _baselines(results, analysis),
        ),
        (
            "What wins where",
            "<p>Medians of the rounds, small beside them their spread (distance of the quartiles). Marked: the best "
            "mode, and those that cannot be told from it. Noise floor: the smallest difference that the line finds, "
            "but for one run in a hundred.</p>" + _places(analysis),
        ),
        (
            "Bars",
            "<p>What this project asks of itself. Ratios: median over the rounds with its 95 % confidence interval; "
            "other figures: median with quartiles. Spread: the interval's width. Noise floor: the smallest distance "
            "from the bar that the line finds. Unclear: the bar is inside the interval or nearer than the line can "
            "tell, or others were at work.</p>"
            + _bars(bars_module.as_records(bars)),
        ),
        *_images(images, analysis),
        *_events(results, analysis),
        ("Scenarios", _scenarios(results)),
        ("The run", _run(results, data)),
        (
            "All figures",
            "<details><summary>Every row</summary><p>Medians of the rounds; spread: distance of the quartiles; against "
            "direct: median of the ratios with its 95 % confidence interval; CPU: seconds for a million operations, or "
            f"for a gigabyte of bulk.</p>{table(as_records(analysis))}</details>",
        ),
    ]  # fmt: skip
    contents = "".join(f'<a href="#{anchor(title)}">{escape(title)}</a>' for title, _ in sections)
    main = _figure(MAIN, images) if MAIN in images else ""
    parts = [
        f"<h1>{_TITLE}</h1>", _headlines(analysis), main, warnings, f"<nav>{contents}</nav>", _introduction(results),
        *(f'<section id="{anchor(title)}"><h2>{escape(title)}</h2>{text}</section>' for title, text in sections),
    ]  # fmt: skip
    return document(_TITLE, "\n".join(parts), style())


def _run(results: Results, data: str) -> str:
    return (
        f"{_machine(results)}<p>Repeat it: <code>{escape(results.command)}</code></p>"
        f'<p><a download="{DATA}.gz" href="data:application/gzip;base64,{data}">Its raw data</a> (JSON, compressed; '
        "<code>hotplane bench report</code> and <code>hotplane bench compare</code> read it as it is)</p>"
    )


def write_report(results: Results, directory: Path) -> list[Path]:
    """Write the page, the charts, the tables and the data into a directory; returns the files. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    analysis = analyse(results)
    images = charts(analysis)
    written = []
    for name, image in images.items():
        written.append(directory / f"{name}.svg")
        written[-1].write_text(alone(image), encoding="utf-8")
    (directory / PAGE).write_text(page(results, analysis, images), encoding="utf-8")
    (directory / TABLES).write_text(markdown(results, whole=True, analysis=analysis), encoding="utf-8")
    write(directory / DATA, results)
    if any(cell.histogram for cell in results.cells):
        written.append(directory / LATENCIES)
        written[-1].write_text(latency_log(results), encoding="utf-8")
    return [directory / PAGE, directory / DATA, directory / TABLES, *written]
