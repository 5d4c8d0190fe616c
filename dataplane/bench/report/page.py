"""The report: one HTML page that needs nothing else, the pictures as PNG files, and the run's data."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import msgspec

from dataplane.bench import bars as bars_module
from dataplane.bench.analyse import Analysis, analyse, as_records
from dataplane.bench.modes import MODES
from dataplane.bench.report.plots import pictures
from dataplane.bench.report.summary import iptables_wins, sentences
from dataplane.bench.results import Results

PAGE, DATA = "index.html", "results.json"
_TITLE = "Service data planes side by side"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1150px; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #e5e5e5; vertical-align: top; }
th { border-bottom: 2px solid #888; } .wide { overflow-x: auto; }
img { max-width: 100%; height: auto; display: block; margin: 1.2rem 0; }
.met { color: #00603f; font-weight: 600; } .missed { color: #a83a00; font-weight: 600; }
.unclear, .unmeasured { color: #555; }
.warning { background: #fff3cd; border-left: 4px solid #b58900; padding: .5rem 1rem; }
code { background: #f3f3f3; padding: .1rem .3rem; }
"""

_PICTURES = {
    "connect-p50": "Median time of connect(2) through the last of the Services. Bands: quartiles of the rounds.",
    "connect-p99": "The time that one connection in a hundred exceeds.",
    "connect-rate": "One client, one connection after another, as fast as they go.",
    "against-direct": "Each mode's rate divided by direct's of the same round.",
    "positions": "Rules that are walked through make the last Service slower than the first; maps do not.",
    "cpu": "Processor time of everybody involved, the kernel's packet work included.",
    "coldstart": "From decoded objects to a kernel that serves them, planning included.",
    "change": "From the bytes of an EndpointSlice to the kernel, one change at a time.",
    "rollout": "A hundred changes a second for some seconds; whatever is due goes into one update.",
    "memory": "Resident memory of the planning process after its start.",
}


def _table(records: Sequence[Mapping[str, object]]) -> str:
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
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _machine(results: Results) -> str:
    machine, settings = results.machine, results.settings
    facts = {
        "run": f"{machine.started}, {results.seconds:.0f} s, profile {settings.profile}",
        "machine": f"{machine.cpus} x {machine.cpu_model}, {machine.memory_bytes / 2**30:.0f} GiB {machine.virtual}",
        "kernel": machine.kernel,
        "system": machine.system,
        "versions": ", ".join(f"{name}: {version}" for name, version in machine.versions.items()),
        "load average at the start": " ".join(f"{value:.2f}" for value in machine.load_average),
        "rounds": f"{settings.rounds} of {settings.seconds} s each, the warm-up round not counted; control plane "
        f"{settings.control_rounds}",
        "load generator": settings.load_tool,
    }
    return _table([{"": name, "fact": value} for name, value in facts.items()])


def _modes(results: Results) -> str:
    return _list([f"{name}: {MODES[name].title}" for name in results.settings.modes])


def page(results: Results, analysis: Analysis, images: Mapping[str, bytes]) -> str:
    """The whole page."""
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in analysis.warnings)
    shown = "".join(
        f'<h3>{escape(_PICTURES[name])}</h3><img alt="{escape(name)}" src="data:image/png;base64,{_base64(image)}">'
        for name, image in images.items()
    )
    data = _base64(msgspec.json.encode(results))
    wins = iptables_wins(analysis)
    parts = [
        f"<h1>{_TITLE}</h1>",
        f"<p>{len(results.settings.modes)} modes, each on a node of its own of one lab, measured in turns.</p>",
        _modes(results),
        warnings,
        "<h2>Bars</h2>",
        _table(bars_module.as_records(bars_module.bars(results, analysis))),
        "<h2>What wins where</h2>",
        _list(sentences(analysis)),
        "<h3>Where iptables wins</h3>",
        _list(wins) if wins else "<p>Nowhere in this run, beyond what cannot be told apart.</p>",
        "<h2>Pictures</h2>",
        shown,
        "<h2>All figures</h2>",
        "<p>Medians of the rounds; spread: distance of the quartiles; against direct: median of the ratios with "
        "its 95 % confidence interval; CPU: for a million operations, or for a gigabyte of bulk.</p>",
        _table(as_records(analysis)),
        "<h2>The run</h2>",
        _machine(results),
        f"<p>Repeat it: <code>{escape(results.command)}</code></p>",
        f'<p><a download="{DATA}" href="data:application/json;base64,{data}">Its raw data</a> (JSON; '
        "<code>hotplane bench compare</code> compares it with another run's)</p>",
    ]
    head = f'<meta charset="utf-8"><title>{_TITLE}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write_report(results: Results, directory: Path) -> list[Path]:
    """Write the page, the pictures and the data into a directory; returns the files. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    analysis = analyse(results)
    images = pictures(analysis)
    written = []
    for name, image in images.items():
        written.append(directory / f"{name}.png")
        written[-1].write_bytes(image)
    (directory / PAGE).write_text(page(results, analysis, images), encoding="utf-8")
    (directory / DATA).write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    return [directory / PAGE, directory / DATA, *written]
