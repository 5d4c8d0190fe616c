"""The report's pictures, PNG as bytes: one colour and marker a mode everywhere, fit for colour-blind eyes."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from dataplane.bench.analyse import Analysis, Row
from dataplane.bench.modes import DIRECT, MODES
from dataplane.bench.scenarios import SCENARIOS, Kind, Position

STYLE = {
    "direct": ("#000000", "o", "-"),
    "conntrack": ("#7f7f7f", "s", "--"),
    "iptables": ("#d55e00", "v", "-"),
    "nftables": ("#0072b2", "^", "-"),
    "ebpf-connect": ("#009e73", "D", "-"),
    "ebpf-tc": ("#cc79a7", "P", "-"),
    "ebpf-xdp": ("#e69f00", "X", "-"),
}
"""Okabe and Ito's colours, which all kinds of colour blindness tell apart."""
_WIDE = (9.0, 5.0)
_DPI = 120
LAST = Position.LAST.value


def _figure(width: float = _WIDE[0], height: float = _WIDE[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _line(axes: Axes, mode: str, points: Sequence[tuple[float, float, float, float]]) -> None:
    """Points: x, median, lower and upper quartile."""
    colour, marker, dash = STYLE[mode]
    x, median, low, high = zip(*points, strict=True)
    axes.plot(
        x, median, color=colour, marker=marker, linestyle=dash, linewidth=1.8, markersize=6, label=MODES[mode].title
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def _service_axis(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log")
    short = [f"{count // 1000}k" if count >= 1000 and not count % 1000 else str(count) for count in counts]
    axes.set_xticks(counts, short)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Services")


def _plain_log_axis(axes: Axes, text: Callable[[float], str]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    low, high = axes.get_ylim()
    if high / low < 1000:  # too few powers of ten for labels at these alone
        ticks = [m * 10.0**e for e in range(-12, 12) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        axes.set_yticks(ticks)
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes) -> None:
    """Below the picture, in the order of reports."""
    picture = axes.get_figure()
    handles, labels = axes.get_legend_handles_labels()
    if picture is not None:
        picture.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _modes(rows: Sequence[Row]) -> list[str]:
    here = {row.key.mode for row in rows}
    return [mode for mode in MODES if mode in here]


def over_services(
    rows: Sequence[Row], figure: str, title: str, label: str, scale: float, text: Callable[[float], str]
) -> bytes | None:
    """A figure against the number of Services, one line a mode, both axes logarithmic; None without two sizes."""
    counts = sorted({row.key.services for row in rows if figure in row.figures})
    if len(counts) < 2:
        return None
    picture, axes = _figure()
    for mode in _modes(rows):
        points = sorted(
            (row.key.services, e.median * scale, e.quartiles[0] * scale, e.quartiles[1] * scale)
            for row in rows
            if row.key.mode == mode and (e := row.figures.get(figure)) is not None
        )
        if points:
            _line(axes, mode, points)
    _service_axis(axes, counts)
    _plain_log_axis(axes, text)
    axes.set_ylabel(label)
    axes.set_title(title, loc="left", fontsize=12)
    _legend(axes)
    return _png(picture)


def _grouped_bars(
    axes: Axes,
    groups: Sequence[str],
    modes: Sequence[str],
    value: Callable[[str, str], tuple[float, float, float] | None],
) -> None:
    """Bars of each mode side by side in each group; value: height, and the lower and upper end of its whisker."""
    width = 0.82 / len(modes)
    for place, mode in enumerate(modes):
        colour, _, _ = STYLE[mode]
        x, heights, below, above = [], [], [], []
        for at, group in enumerate(groups):
            found = value(mode, group)
            if found is not None:
                x.append(at + (place - (len(modes) - 1) / 2) * width)
                heights.append(found[0])
                below.append(max(0.0, found[0] - found[1]))
                above.append(max(0.0, found[2] - found[0]))
        whiskers: dict[str, Any] = {"ecolor": "#333333", "elinewidth": 0.9, "capsize": 1.5}
        axes.bar(
            x, heights, width * 0.92, color=colour, label=MODES[mode].title, yerr=(below, above), error_kw=whiskers
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)


_SHORT = {
    "connect": "new TCP\nconnections",
    "pod": "past the\nrules",
    "dns": "DNS-like\nUDP",
    "rr": "warm\nrequests",
    "bulk1": "bulk,\n1 stream",
    "bulk4": "bulk,\n4 streams",
    "udp": "UDP\npackets",
    "north-local": "outside,\nlocal",
    "north-remote": "outside,\nremote",
    "north-remote-rr": "outside,\nremote, warm",
    "north-remote-udp": "outside,\nremote, UDP",
    "north-remote-pps": "kernel's own\npackets",
}


def bars_against_direct(analysis: Analysis, services: int) -> bytes | None:
    """Every packet scenario's rate as a share of direct's, at one number of Services, with confidence intervals."""
    rows = {
        (row.key.mode, row.key.scenario): row
        for row in analysis.rows
        if row.key.services == services and row.key.position in ("", LAST) and "rate" in row.ratios
    }
    scenarios = [name for name in SCENARIOS if any(scenario == name for _, scenario in rows)]
    modes = [mode for mode in _modes(list(rows.values())) if mode != DIRECT]
    if not scenarios:
        return None
    picture, axes = _figure(max(_WIDE[0], 3.6 + 1.15 * len(scenarios)))

    def value(mode: str, short: str) -> tuple[float, float, float] | None:
        name = next(name for name in scenarios if _SHORT[name] == short)
        row = rows.get((mode, name))
        if row is None:
            return None
        ratio = row.ratios["rate"]
        return ratio.value, ratio.low, ratio.high

    _grouped_bars(axes, [_SHORT[name] for name in scenarios], modes, value)
    axes.axhline(1.0, color="#000000", linewidth=1.2, zorder=0.9)
    axes.set_ylim(0, 1.2 * max(1.0, *(row.ratios["rate"].value for row in rows.values())))  # cuts wild whiskers off
    axes.annotate("direct", (1.0, 1.0), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)
    axes.set_ylabel("rate / direct's rate")
    axes.set_title(f"Rates against direct, {services:,} Services (whiskers: 95 % confidence)", loc="left", fontsize=12)
    _legend(axes)
    return _png(picture)


def positions(analysis: Analysis, services: int) -> bytes | None:
    """Rate of new connections to the first, middle and last of the Services."""
    rows = [r for r in analysis.rows if r.key.scenario == "connect" and r.key.services == services]
    places = [p.value for p in Position if any(row.key.position == p.value for row in rows)]
    if len(places) < 2:
        return None
    picture, axes = _figure()

    def value(mode: str, place: str) -> tuple[float, float, float] | None:
        row = next((r for r in rows if r.key.mode == mode and r.key.position == place), None)
        if row is None:
            return None
        return row.main.median / 1e3, row.main.quartiles[0] / 1e3, row.main.quartiles[1] / 1e3

    _grouped_bars(axes, places, _modes(rows), value)
    axes.set_ylabel("new connections, 1000/s")
    axes.set_title(f"Does it matter which of {services:,} Services? (whiskers: quartiles)", loc="left", fontsize=12)
    _legend(axes)
    return _png(picture)


def cpu(analysis: Analysis, services: int) -> bytes | None:
    """Processor time for each operation, at one number of Services."""
    rows = {
        (row.key.mode, row.key.scenario): row
        for row in analysis.rows
        if row.key.services == services
        and row.key.position in ("", LAST)
        and row.scenario.kind is Kind.DATA
        and not row.scenario.operation.startswith("iperf3")
    }
    scenarios = [name for name in SCENARIOS if any(scenario == name for _, scenario in rows)]
    if not scenarios:
        return None
    picture, axes = _figure(max(_WIDE[0], 3.6 + 1.15 * len(scenarios)))

    def value(mode: str, short: str) -> tuple[float, float, float] | None:
        name = next(name for name in scenarios if _SHORT[name] == short)
        row = rows.get((mode, name))
        if row is None:
            return None
        used = row.figures["cpu"]
        return used.median, used.quartiles[0], used.quartiles[1]

    _grouped_bars(axes, [_SHORT[name] for name in scenarios], _modes(list(rows.values())), value)
    axes.set_ylabel("CPU seconds / million operations")
    axes.set_title(
        f"Processor time, {services:,} Services (client, server and kernel together)", loc="left", fontsize=12
    )
    _legend(axes)
    return _png(picture)


def pictures(analysis: Analysis) -> dict[str, bytes]:
    """All pictures that the figures allow, by file name without its ending."""

    def rows(scenario: str, position: str = "") -> list[Row]:
        return [r for r in analysis.rows if r.key.scenario == scenario and r.key.position == position]

    def plain(value: float) -> str:
        return f"{value:,.0f}" if value >= 1 else f"{value:g}"

    connect, change = rows("connect", LAST), rows("change")
    measured = [row.key.services for row in analysis.rows if row.scenario.kind is Kind.DATA]
    most_scenarios = max(sorted(set(measured)), key=measured.count, default=0)
    largest = max((row.key.services for row in connect if row.key.mode == "iptables"), default=0) or max(
        measured, default=0
    )
    us, ms = "microseconds", "milliseconds"
    found = {
        "connect-p50": over_services(
            connect, "p50", "Latency of a new connection to the last Service, median", us, 1e-3, plain
        ),
        "connect-p99": over_services(
            connect, "p99", "Latency of a new connection to the last Service, p99", us, 1e-3, plain
        ),
        "connect-rate": over_services(
            connect, "rate", "New connections to the last Service", "1000 connections/s", 1e-3, plain
        ),
        "against-direct": bars_against_direct(analysis, most_scenarios),
        "positions": positions(analysis, largest),
        "cpu": cpu(analysis, most_scenarios),
        "coldstart": over_services(
            rows("coldstart"), "seconds", "Cold start: from decoded objects to kernel", "seconds", 1.0, plain
        ),
        "change": over_services(change, "p99", "One endpoint changes: event to kernel, p99", ms, 1e-6, plain),
        "rollout": over_services(
            rows("rollout"), "p99", "100 endpoint changes a second: lag behind the event, p99", ms, 1e-6, plain
        ),
        "memory": over_services(rows("coldstart"), "rss", "Memory of the control plane", "MB", 1e-6, plain),
    }
    return {name: picture for name, picture in found.items() if picture is not None}
