"""The report's pictures, PNG as bytes: one colour and marker a mode everywhere, fit for colour-blind eyes."""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

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
    "direct-again": ("#444444", "*", ":"),
    "conntrack": ("#7f7f7f", "s", "--"),
    "iptables": ("#d55e00", "v", "-"),
    "nftables": ("#0072b2", "^", "-"),
    "ebpf-connect": ("#009e73", "D", "-"),
    "ebpf-tc": ("#cc79a7", "P", "-"),
    "ebpf-xdp": ("#e69f00", "X", "-"),
    "ebpf": ("#56b4e9", "h", "-"),
    "ipvs": ("#b8a800", "<", "-"),
}
"""Okabe and Ito's colours, which all kinds of colour blindness tell apart."""
NARROW, WIDE = (6.6, 4.5), (13.6, 4.7)
"""Inches: two pictures side by side, or one over the page's whole width."""
_DPI = 144
_LEAST_RANGE = 4.0
_TALLEST = 1.5
"""Bars of ratios end here; what is higher is written above."""
LAST = Position.LAST.value

Middle = tuple[float, float, float]
"""A figure with the lower and upper end of its whisker."""


class Group(NamedTuple):
    """Modes side by side, under one label."""

    label: str
    values: dict[str, Middle]


def _figure(size: tuple[float, float], title: str, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_ylabel(label)
    return figure, axes


def _finish(figure: Figure, axes: Axes) -> bytes:
    """The legend, below and in the order of reports, and the picture."""
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if figure.get_figwidth() > NARROW[0] else 4
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _log_axis(axes: Axes) -> None:
    """A range of _LEAST_RANGE at least, so that small differences do not look large; labels at powers of ten, or
    at more where those are too few."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    low, high = axes.get_ylim()
    wider = max(1.0, _LEAST_RANGE / (high / low)) ** 0.5
    axes.set_ylim(low / wider, high * wider)
    low, high = axes.get_ylim()
    for steps in ((1,), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
        ticks = [m * 10.0**e for e in range(-12, 12) for m in steps if low <= m * 10.0**e <= high]
        if len(ticks) > 2:
            break
    axes.set_yticks(ticks)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _modes(found: Iterable[str]) -> list[str]:
    here = set(found)
    return [mode for mode in MODES if mode in here]


def lines(rows: Sequence[Row], figure: str, title: str, label: str, scale: float) -> bytes | None:
    """A figure against the number of Services, one line a mode with its quartiles as a band, both axes logarithmic;
    None without two sizes."""
    rows = [row for row in rows if figure in row.figures]
    counts = sorted({row.key.services for row in rows})
    if len(counts) < 2:
        return None
    picture, axes = _figure(NARROW, title, label)
    for mode in _modes(row.key.mode for row in rows):
        colour, marker, dash = STYLE[mode]
        found = sorted((row.key.services, row.figures[figure]) for row in rows if row.key.mode == mode)
        x = [services for services, _ in found]
        axes.plot(
            x, [e.median * scale for _, e in found], label=mode,
            color=colour, marker=marker, linestyle=dash, linewidth=1.8, markersize=5.5,
        )  # fmt: skip
        low, high = zip(*(e.quartiles for _, e in found), strict=True)
        axes.fill_between(x, [v * scale for v in low], [v * scale for v in high], color=colour, alpha=0.13, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{n // 1000}k" if n >= 1000 and not n % 1000 else str(n) for n in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Services")
    _log_axis(axes)
    return _finish(picture, axes)


def _slots(groups: Sequence[Group], modes: Sequence[str], mode: str) -> tuple[list[float], list[Middle]]:
    """Where a mode stands in each group that has it, and its figures there."""
    width, place = 0.84 / len(modes), modes.index(mode)
    found = [(at, group.values[mode]) for at, group in enumerate(groups) if mode in group.values]
    return [at + (place - (len(modes) - 1) / 2) * width for at, _ in found], [value for _, value in found]


def _whiskers(values: Sequence[Middle]) -> dict[str, Any]:
    below = [max(0.0, middle - low) for middle, low, _ in values]
    above = [max(0.0, high - middle) for middle, _, high in values]
    return {"yerr": (below, above), "ecolor": "#333333", "elinewidth": 0.9, "capsize": 1.5}


def grouped(
    groups: Sequence[Group],
    title: str,
    label: str,
    *,
    size: tuple[float, float] = WIDE,
    against_direct: bool = False,
    log: bool = False,
) -> bytes | None:
    """Modes side by side in each group: bars, or points where the axis is logarithmic. against_direct: ratios, with a
    line at 1. None without groups."""
    if not groups:
        return None
    picture, axes = _figure(size, title, label)
    modes = _modes(mode for group in groups for mode in group.values)
    for mode in modes:
        colour, marker, _ = STYLE[mode]
        x, values = _slots(groups, modes, mode)
        height, whiskers = [middle for middle, _, _ in values], _whiskers(values)
        if log:
            axes.errorbar(x, height, fmt=marker, color=colour, markersize=6, label=mode, **whiskers)
        else:
            whiskers = {"yerr": whiskers.pop("yerr"), "error_kw": whiskers}
            axes.bar(x, height, 0.84 / len(modes) * 0.9, color=colour, label=mode, **whiskers)
        if against_direct:
            _write_tall(axes, x, height)
    axes.set_xticks(range(len(groups)), [group.label for group in groups])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    for at in range(1, len(groups)):
        axes.axvline(at - 0.5, color="#eeeeee", linewidth=0.8, zorder=0.5)
    if against_direct:
        axes.axhline(1.0, color="#000000", linewidth=1.2, zorder=2.5)
        highest = max(value[0] for group in groups for value in group.values.values())
        axes.set_ylim(0, min(_TALLEST, max(1.1, 1.1 * highest)))  # cuts wild whiskers off
    if log:
        _log_axis(axes)
    return _finish(picture, axes)


def _write_tall(axes: Axes, x: Sequence[float], height: Sequence[float]) -> None:
    """The height of bars that go on above the picture."""
    for place, value in zip(x, height, strict=True):
        if value > _TALLEST:
            axes.annotate(
                f"{value:.1f}x", (place, _TALLEST), ha="center", va="top", rotation=90, fontsize=9, color="white",
                xytext=(0, -4), textcoords="offset points", fontweight="bold",
            )  # fmt: skip


def _by_scenario(rows: Iterable[Row], value: Callable[[Row], Middle | None]) -> list[Group]:
    """One group for each scenario of packets, in the order of reports."""
    found: dict[str, dict[str, Middle]] = {}
    for row in rows:
        if row.scenario.kind is Kind.DATA and row.key.position in ("", LAST) and (middle := value(row)) is not None:
            found.setdefault(row.key.scenario, {})[row.key.mode] = middle
    return [Group(name, found[name]) for name in SCENARIOS if name in found]


def _rate_ratio(row: Row) -> Middle | None:
    ratio = row.ratios.get("rate")
    return None if ratio is None else (ratio.value, ratio.low, ratio.high)


def _cpu(row: Row) -> Middle | None:
    used = row.figures.get("cpu")
    if used is None or row.scenario.operation.startswith("iperf3"):
        return None  # bulk is counted by the gigabyte
    return used.median, *used.quartiles


def _rate(row: Row) -> Middle:
    low, high = row.main.quartiles
    return row.main.median / 1e3, low / 1e3, high / 1e3


def _positions(analysis: Analysis) -> bytes | None:
    """Rate of new connections to the first, middle and last of the Services."""
    connect = [row for row in analysis.rows if row.key.scenario == "connect" and row.key.mode != DIRECT]
    sizes = [row.key.services for row in connect if row.key.position != LAST]
    if not sizes:
        return None
    size = max(sizes)
    groups = [
        Group(
            f"{p.value} of {size:,} Services",
            {r.key.mode: _rate(r) for r in connect if r.key.services == size and r.key.position == p.value},
        )
        for p in Position
    ]
    title = "Does the place among the Services matter?"
    return grouped([g for g in groups if g.values], title, "new connections, 1000/s", size=NARROW)


def pictures(analysis: Analysis) -> dict[str, bytes]:
    """All pictures that the figures allow, by file name without its ending."""

    def rows(scenario: str, position: str = "") -> list[Row]:
        return [r for r in analysis.rows if r.key.scenario == scenario and r.key.position == position]

    measured = [row.key.services for row in analysis.rows if row.scenario.kind is Kind.DATA]
    size = max(sorted(set(measured)), key=measured.count, default=0)
    here = [row for row in analysis.rows if row.key.services == size]
    connect, cold, change, rollout = rows("connect", LAST), rows("coldstart"), rows("change"), rows("rollout")
    ratio = "rate / direct's rate"
    per_operation = "CPU seconds / million operations"
    us, ms, mb = "microseconds", "milliseconds", "MB"
    found = {
        "connect-p50": lines(connect, "p50", "Latency of a new connection, median", us, 1e-3),
        "connect-p99": lines(connect, "p99", "Latency of a new connection, p99", us, 1e-3),
        "connect-rate": lines(connect, "rate", "New connections", "1000/s", 1e-3),
        "positions": _positions(analysis),
        "against-direct": grouped(
            _by_scenario(here, _rate_ratio), f"Rates against direct, {size:,} Services", ratio, against_direct=True
        ),
        "cpu": grouped(
            _by_scenario(here, _cpu), f"Processor time of an operation, {size:,} Services", per_operation, log=True
        ),
        "coldstart": lines(cold, "seconds", "Cold start: from objects to kernel", "seconds", 1.0),
        "change": lines(change, "p99", "One endpoint changes: event to kernel, p99", ms, 1e-6),
        "rollout": lines(rollout, "p99", "100 changes a second: lag, p99", ms, 1e-6),
        "connect-cpu": lines(connect, "cpu", "Processor time of a new connection", per_operation, 1.0),
        "memory": lines(cold, "rss", "Memory of the control plane", mb, 1e-6),
        "kernel-memory": lines(cold, "kernel_bytes", "Memory that the kernel took", mb, 1e-6),
    }
    return {name: picture for name, picture in found.items() if picture is not None}
