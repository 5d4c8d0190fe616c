"""The report's charts: which figures of a run are drawn, and what each says of itself."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dataplane.bench.figures import scaling
from dataplane.bench.figures.analyse import Analysis, Row
from dataplane.bench.figures.history import Run, Series, column_names
from dataplane.bench.figures.stats import Estimate, Ratio
from dataplane.bench.modes import AGAIN, MODES
from dataplane.bench.report.svg import Axis, Group, Mark, grouped, lines, log_axis
from dataplane.bench.scenarios import SCENARIOS, Kind, Position

LAST = Position.LAST.value
_HIGHEST = 1.5
"""Charts against direct end here; what is higher is cut with an arrow."""
_STYLE = Path(__file__).with_name("chart.css")
MAIN = "connect-rate"
CAPTIONS = {
    MAIN: "New connections through the last of the Services, one client, one after another, as fast as they go.",
    "connect-p50": "First packet latency, median: connect(2) through the last of the Services.",
    "connect-p99": "First packet latency: what one connection in a hundred exceeds.",
    "against-direct": "Each mode's rate divided by direct's of the same round; whiskers: 95 % confidence. "
    "direct-again is direct measured twice: what it differs from 1 by is noise.",
    "paced": "Latency of TCP_CRR from when each was due, at a share of the rate that the mode itself reached.",
    "positions": "Rules that are walked through make the last Service slower than the first; maps do not.",
    "cpu": "Of everybody involved: client, server and the kernel's packet work. Lower is better.",
    "connect-cpu": "The same, for new connections to the last of so many Services.",
    "scaling-connect": "Rate with a client on each of k processors over the rate with one; bands: 95 % confidence.",
    "scaling-forward": "Rate with k processors that send over the rate with one; bands: 95 % confidence.",
    "coldstart": "From decoded objects to a kernel that serves them, planning included.",
    "change": "Network programming latency: from the bytes of an EndpointSlice to the kernel, one change at a time.",
    "rollout": "Network programming latency while a hundred changes a second come: from due until done.",
    "first-cold": "From the start of the proxy's own process to the first answered connection to the last Service.",
    "first-change": "From when watches hear of a change to the first connection that meets the new endpoint, median.",
    "first-rollout": "The same while 100 other endpoints change every second, median.",
    "memory": "Resident memory of the planning process after its start.",
    "kernel-memory": "Slabs, vmalloc areas and per-CPU memory of the machine, after the cold start less before.",
}


def style() -> str:
    """The colours and shapes of charts, light and dark."""
    return _STYLE.read_text(encoding="utf-8")


def alone(chart: str) -> str:
    """A chart as a file of its own, on paper of its own: a page in one scheme may show it to a reader of the other."""
    head, _, rest = chart.partition(">")
    return f'{head}><style>{style()}</style><rect class="paper" width="100%" height="100%"/>{rest}\n'


def _mark(row: Row, found: Estimate, factor: float, unit: str) -> Mark:
    low, high = (value * factor for value in found.quartiles)
    where = f"{row.key.mode}, {row.key.scenario}, {row.key.services:,} Service{'s' if row.key.services > 1 else ''}"
    where += f" ({row.key.position})" if row.key.position and row.key.position != LAST else ""
    spread = f"quartiles {low:.3g} to {high:.3g}, {found.rounds} rounds" if found.rounds > 1 else "one round, no spread"
    return Mark(found.median * factor, low, high, f"{where}: {found.median * factor:.3g} {unit} ({spread})")


def _over_services(rows: Sequence[Row], figure: str, title: str, unit: str, factor: float) -> str:
    """A figure against the number of Services, a line for each mode."""
    series: dict[str, dict[float, Mark]] = {}
    for row in rows:
        if figure in row.figures and row.figures[figure].median > 0 and row.key.mode != AGAIN:
            mark = _mark(row, row.figures[figure], factor, unit)
            series.setdefault(row.key.mode, {})[float(row.key.services)] = mark
    return lines(series, title, unit, "Services")


def _by_scenario(rows: Sequence[Row], mark: Callable[[Row], Mark | None]) -> list[Group]:
    """One group for each scenario of packets, in the order of reports."""
    found: dict[str, dict[str, Mark]] = {}
    for row in rows:
        if row.scenario.kind is Kind.DATA and row.key.position in ("", LAST) and (seen := mark(row)) is not None:
            found.setdefault(row.key.scenario, {})[row.key.mode] = seen
    return [Group(name, found[name]) for name in SCENARIOS if name in found]


def _against_direct(row: Row) -> Mark | None:
    ratio = row.ratios.get("rate")
    if ratio is None or row.scenario.load:
        return None
    tip = f"{row.key.mode}, {row.key.scenario}, {row.key.services:,} Services: {ratio.value:.2f} of direct"
    certain = f"95 % confidence {ratio.low:.2f} to {ratio.high:.2f}, {ratio.rounds} rounds"
    return Mark(ratio.value, ratio.low, ratio.high, f"{tip} ({certain if ratio.rounds > 1 else 'one round'})")


def _cpu(row: Row) -> Mark | None:
    used = row.figures.get("cpu")
    if used is None or used.median <= 0 or row.scenario.operation.startswith(("iperf3", "program")):
        return None  # bulk is counted by the gigabyte, and the program has no packets
    return _mark(row, used, 1.0, "CPU seconds / million operations")


def _logarithmic(groups: Sequence[Group], title: str, label: str, width: int) -> str:
    values = [mark.value for group in groups for mark in group.marks.values()]
    return grouped(groups, title, log_axis(values, label), "", width=width) if values else ""


def _positions(analysis: Analysis) -> str:
    """Rate of new connections to the first, middle and last of the Services."""
    connect = [r for r in analysis.rows if r.key.scenario == "connect" and not MODES[r.key.mode].reference]
    size = max((row.key.services for row in connect if row.key.position != LAST), default=0)
    groups = [
        Group(
            f"{place.value} of {size:,}",
            {
                row.key.mode: _mark(row, row.main, 1e-3, "1000/s")
                for row in connect
                if row.key.services == size and row.key.position == place.value
            },
        )
        for place in Position
    ]
    groups = [group for group in groups if group.marks]
    return _logarithmic(groups, "Does the place among the Services matter?", "new connections, 1000/s", 720)


def _scaling(analysis: Analysis, scenario: str, title: str) -> str:
    """Rate on k processors over that on one, a line for each mode, at the most Services; "" without two of them."""
    found = [line for line in scaling.lines(analysis) if line.scenario == scenario and line.mode != AGAIN]
    size = max((line.services for line in found), default=0)
    series = {
        line.mode: {
            float(count): _ratio_mark(f"{line.mode}, {count} / 1 processors", row.scaling["rate"])
            for count, row in line.rows.items()
            if "rate" in row.scaling
        }
        for line in found
        if line.services == size
    }
    return lines(series, title, "rate at k / rate at 1", "processors, k")


def _ratio_mark(where: str, ratio: Ratio) -> Mark:
    certain = f"95 % confidence {ratio.low:.2f} to {ratio.high:.2f}, {ratio.rounds} rounds"
    return Mark(ratio.value, ratio.low, ratio.high, f"{where}: {ratio.value:.2f} ({certain})")


def _paced(rows: Sequence[Row]) -> str:
    found: dict[str, dict[str, Mark]] = {}
    for row in rows:
        if row.scenario.load:
            mark = _mark(row, row.main, 1e-3, "microseconds")
            found.setdefault(row.key.scenario, {})[row.key.mode] = mark
    groups = [Group(name, found[name]) for name in SCENARIOS if name in found]
    return _logarithmic(groups, "Latency under load, p99", "microseconds", 720)


def charts(analysis: Analysis) -> dict[str, str]:
    """All charts that the figures allow, by name, as SVG."""

    def rows(scenario: str, position: str = "") -> list[Row]:
        return [r for r in analysis.rows if r.key.scenario == scenario and r.key.position == position]

    measured = [row.key.services for row in analysis.rows if row.scenario.kind is Kind.DATA]
    size = max(sorted(set(measured)), key=measured.count, default=0)
    here = [row for row in analysis.rows if row.key.services == size]
    connect, cold, change, rollout = rows("connect", LAST), rows("coldstart"), rows("change"), rows("rollout")
    per_operation = "CPU seconds / million operations"
    ratios = _by_scenario(here, _against_direct)
    ratio_axis = Axis(0.0, _HIGHEST, False, "rate / direct's (linear, from 0)")
    us, ms = "microseconds", "milliseconds"
    found = {
        MAIN: _over_services(connect, "rate", "New connections through the last Service", "1000/s", 1e-3),
        "against-direct": grouped(ratios, f"Rates against direct, {size:,} Services", ratio_axis, "", one=True),
        "connect-p50": _over_services(connect, "p50", "First packet latency, median", us, 1e-3),
        "connect-p99": _over_services(connect, "p99", "First packet latency, p99", us, 1e-3),
        "paced": _paced(here),
        "positions": _positions(analysis),
        "cpu": _logarithmic(
            _by_scenario(here, _cpu), f"Processor time of an operation, {size:,} Services", per_operation, 1200
        ),
        "connect-cpu": _over_services(connect, "cpu", "Processor time of a new connection", per_operation, 1.0),
        "scaling-connect": _scaling(analysis, "connect-processors", "New connections on several processors"),
        "scaling-forward": _scaling(analysis, "forward-processors", "Packets forwarded on several processors"),
        "coldstart": _over_services(cold, "seconds", "Cold start: from objects to kernel", "seconds", 1.0),
        "change": _over_services(change, "p99", "One endpoint changes: event to kernel, p99", ms, 1e-6),
        "rollout": _over_services(rollout, "p99", "100 changes a second: lag, p99", ms, 1e-6),
        "first-cold": _over_services(rows("first-cold"), "seconds", "A proxy's cold start, by packets", "seconds", 1.0),
        "first-change": _over_services(rows("first-change"), "p50", "One change, by packets", ms, 1e-6),
        "first-rollout": _over_services(rows("first-rollout"), "p50", "100 changes a second, by packets", ms, 1e-6),
        "memory": _over_services(cold, "rss", "Memory of the control plane", "MB", 1e-6),
        "kernel-memory": _over_services(cold, "kernel_bytes", "Memory that the kernel took", "MB", 1e-6),
    }
    return {name: chart for name, chart in found.items() if chart}


def over_runs(found: Sequence[Run], series: Sequence[Series]) -> dict[str, str]:
    """A chart for each scenario and size, a line for each mode over the runs, by name."""
    drawn: dict[tuple[str, int], list[Series]] = {}
    for line in series:
        drawn.setdefault((line.key.scenario, line.key.services), []).append(line)
    names, pictures = column_names(found), {}
    for (scenario, services), group in drawn.items():
        unit = group[0].unit
        marks = {
            line.key.mode: {
                float(at): Mark(*point, f"{line.key.mode}, {names[at]}: {point.value:.3g} {line.unit} "
                                f"({point.low:.3g} to {point.high:.3g})")
                for at, point in enumerate(line.points)
                if point is not None and point.value > 0
            }
            for line in group
            if line.unit == unit
        }  # fmt: skip
        chart = lines(
            {mode: points for mode, points in marks.items() if points},
            f"{scenario}, {services:,} Services", unit, "runs", names=names,
        )  # fmt: skip
        if chart:
            pictures[f"{scenario}-{services}"] = chart
    return pictures
