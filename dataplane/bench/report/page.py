"""The report: one HTML page that needs nothing else, the pictures as PNG files, the tables, and the run's data."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import msgspec

from dataplane.bench import bars as bars_module
from dataplane.bench import hdr
from dataplane.bench.analyse import Analysis, analyse, as_records
from dataplane.bench.modes import MODES
from dataplane.bench.pace import duration
from dataplane.bench.report.markdown import markdown
from dataplane.bench.report.plots import pictures
from dataplane.bench.report.summary import highlights, iptables_wins, places
from dataplane.bench.results import Results, write
from dataplane.bench.scenarios import SCENARIOS

PAGE, DATA, TABLES, LATENCIES = "index.html", "results.json", "tables.md", "latency.hlog"
_TITLE = "Service data planes side by side"
_STYLE = Path(__file__).with_name("page.css")

_SECTIONS: dict[str, tuple[str, ...]] = {
    "Against direct": ("against-direct",),
    "New connections": ("connect-p50", "connect-p99", "connect-rate", "positions"),
    "Processor time": ("cpu", "connect-cpu"),
    "Control plane": ("coldstart", "change", "rollout", "memory", "kernel-memory"),
}
_PICTURES = {
    "connect-p50": "Median time of connect(2) through the last of the Services. Bands: quartiles of the rounds.",
    "connect-p99": "The time that one connection in a hundred exceeds.",
    "connect-rate": "One client, one connection after another, as fast as they go.",
    "against-direct": "Each mode's rate divided by direct's of the same round. Whiskers: 95 % confidence. Longer "
    "bars are better; those cut off have their height written in them.",
    "positions": "Rules that are walked through make the last Service slower than the first; maps do not.",
    "cpu": "Of everybody involved: client, server and the kernel's packet work. Lower is better.",
    "connect-cpu": "The same, for new connections to the last of so many Services.",
    "coldstart": "From decoded objects to a kernel that serves them, planning included.",
    "change": "From the bytes of an EndpointSlice to the kernel, one change at a time.",
    "rollout": "A hundred changes a second; whatever is due goes into one update. From due until done.",
    "memory": "Resident memory of the planning process after its start.",
    "kernel-memory": "Slabs, vmalloc areas and per-CPU memory of the machine, after the cold start less before.",
}


def _bars(records: Sequence[dict[str, object]]) -> str:
    """The table of bars; what is the same as in the line above is written once."""
    last, shown = "", []
    for record in records:
        what = str(record["what"])
        shown.append(record if what != last else record | {"what": ""})
        last = what
    return _table(shown, "bars")


def _table(records: Sequence[Mapping[str, object]], kind: str = "") -> str:
    if not records:
        return "<p>Nothing was measured.</p>"
    columns = list(records[0])
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = []
    for record in records:
        cells = []
        for name in columns:
            text = escape(str(record[name]))
            mark = f' class="{text.replace("not measured", "unmeasured")}"' if name == "verdict" else ""
            cells.append(f"<td{mark}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    inner = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide"><table class="{kind}">{inner}</table></div>'


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _places(analysis: Analysis) -> str:
    """The table of winners."""
    found = places(analysis)
    if not found:
        return "<p>No two modes were measured.</p>"
    modes = [mode for mode in MODES if any(mode in place.figures for place in found)]
    head = "".join(f"<th>{escape(n)}</th>" for n in ("scenario", "Services", "unit", "noise floor", *modes))
    lines, last = [], ""
    for place in found:
        name = place.key.scenario
        begins = ' class="begins"' if name != last else ""
        last = name
        cells = (
            f'<th scope="row" title="{escape(SCENARIOS[name].title)}">{escape(name)}</th>'
            f'<td class="number">{place.key.services:,}</td><td>{escape(place.unit)}</td>'
            f'<td class="number">{escape(place.floor)}</td>'
        )
        for mode in modes:
            shown = place.figures.get(mode)
            mark = "number best" if shown and shown.best else "number"
            cells += f'<td class="{mark}">{escape(shown.text) if shown else ""}</td>'
        lines.append(f"<tr{begins}>{cells}</tr>")
    inner = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide"><table class="places">{inner}</table></div>'


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
        "cluster": f"{settings.endpoints} endpoints each, IPv{settings.family.value}, routing {settings.routing.value}",
        "load generator": settings.load_tool,
    }
    return _table([{"": name, "fact": value} for name, value in facts.items()])


def _images(images: Mapping[str, bytes]) -> str:
    """The pictures by section, wide ones over the whole width."""
    parts = []
    for title, names in _SECTIONS.items():
        figures = [
            f'<figure class="{"whole" if name in ("against-direct", "cpu") else "half"}">'
            f'<img alt="{escape(_PICTURES[name])}" src="data:image/png;base64,{_base64(images[name])}">'
            f"<figcaption>{escape(_PICTURES[name])}</figcaption></figure>"
            for name in names
            if name in images
        ]
        if figures:
            parts.append(f'<h2>{escape(title)}</h2><div class="pictures">{"".join(figures)}</div>')
    return "\n".join(parts)


def _introduction(results: Results) -> str:
    machine = results.machine
    modes = "".join(
        f"<li><b>{escape(name)}</b>: {escape(MODES[name].title)}</li>"
        for name in MODES
        if name in results.settings.modes
    )
    return (
        f"<p>{len(results.settings.modes)} modes, each on a node of its own of one lab of network namespaces, measured "
        f"in turns: every round measures everything once, in shuffled order. {escape(machine.started[:10])}, "
        f"{machine.cpus} x {escape(machine.cpu_model)}, kernel {escape(machine.kernel)}. Compare ratios; "
        f'absolute figures are this machine\'s.</p><ul class="modes">{modes}</ul>'
    )


def page(results: Results, analysis: Analysis, images: Mapping[str, bytes]) -> str:
    """The whole page."""
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in analysis.warnings)
    bars = bars_module.bars(results, analysis)
    data = _base64(gzip.compress(msgspec.json.encode(results), mtime=0))
    wins = iptables_wins(analysis)
    parts = [
        f"<h1>{_TITLE}</h1>",
        _introduction(results),
        warnings,
        "<h2>In short</h2>",
        _list([bars_module.summary(bars), *highlights(analysis)]),
        "<h3>Where iptables wins</h3>",
        _list(wins) if wins else "<p>Nowhere in this run, beyond what cannot be told apart.</p>",
        "<h2>What wins where</h2>",
        "<p>Medians of the rounds. Marked: the best mode, and those that cannot be told from it.</p>",
        _places(analysis),
        "<h2>Bars</h2>",
        "<p>What this project asks of itself. Ratios: median over the rounds with its 95 % confidence interval; other "
        "figures: median with quartiles. Spread: the interval's width. Unclear: the bar is inside the interval, or "
        "others were at work.</p>",
        _bars(bars_module.as_records(bars)),
        _images(images),
        "<h2>The run</h2>",
        _machine(results),
        f"<p>Repeat it: <code>{escape(results.command)}</code></p>",
        f'<p><a download="{DATA}.gz" href="data:application/gzip;base64,{data}">Its raw data</a> (JSON, compressed; '
        "<code>hotplane bench report</code> and <code>hotplane bench compare</code> read it as it is)</p>",
        "<details><summary>All figures</summary>",
        "<p>Medians of the rounds; spread: distance of the quartiles; against direct: median of the ratios with "
        "its 95 % confidence interval; CPU: for a million operations, or for a gigabyte of bulk.</p>",
        _table(as_records(analysis)),
        "</details>",
    ]
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    style = _STYLE.read_text(encoding="utf-8")
    head = f'<meta charset="utf-8">{view}<title>{_TITLE}</title><style>{style}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def latency_log(results: Results) -> str:
    """An HdrHistogram log of what was paced, a line for each round, tagged scenario/mode/Services; "" without any."""
    paced = [cell for cell in results.cells if cell.histogram]
    return (
        hdr.log_file(
            (
                f"{cell.key.scenario}/{cell.key.mode}/{cell.key.services}",
                cell.figures["seconds"],
                hdr.decode(cell.histogram),
            )
            for cell in paced
        )
        if paced
        else ""
    )


def write_report(results: Results, directory: Path) -> list[Path]:
    """Write the page, the pictures, the tables and the data into a directory; returns the files. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    analysis = analyse(results)
    images = pictures(analysis)
    written = []
    for name, image in images.items():
        written.append(directory / f"{name}.png")
        written[-1].write_bytes(image)
    (directory / PAGE).write_text(page(results, analysis, images), encoding="utf-8")
    (directory / TABLES).write_text(markdown(results, whole=True), encoding="utf-8")
    write(directory / DATA, results)
    if text := latency_log(results):
        written.append(directory / LATENCIES)
        written[-1].write_text(text, encoding="utf-8")
    return [directory / PAGE, directory / DATA, directory / TABLES, *written]
