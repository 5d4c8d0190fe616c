"""Charts as SVG: lines over a logarithmic axis, and modes side by side in groups.

Everything that is drawn says its figure, spread and rounds when it is pointed at or focused (`title`, and `data-tip`
for the page's own tip). Colours are custom properties, so that the page's light and dark schemes recolour them. What
goes on beyond the plot is cut with an arrow, never silently; each axis says its scale.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from dataplane.bench.modes import MODES

WIDTH, HEIGHT, WIDE = 720, 400, 1200
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 40, 56
_LEGEND_LINE, _LETTER = 22, 7.4
_NAMES, _NAME_GAP = 136, 20
"""Room for the names at the ends of lines: beside the plot, and from one to the next."""
_LEAST_RANGE = 4.0
"""A logarithmic axis spans this factor at least, so that small differences do not look large."""
MARKERS = {
    "direct": "circle",
    "direct-again": "ring",
    "conntrack": "square",
    "iptables": "down",
    "nftables": "up",
    "ebpf-connect": "diamond",
    "ebpf-tc": "plus",
    "ebpf-xdp": "cross",
    "ebpf-tc-host": "saltire",
    "ebpf-host": "star",
    "ebpf": "bar",
    "ebpf-tunnel": "pipe",
    "ebpf-dsr": "hook",
    "ipvs": "dash",
    "host-network": "frame",
    "cluster-ip": "left",
    "node-port": "right",
}
PEER_LOOKS = {"peer-1": "#d6336c", "peer-2": "#7c5cff", "peer-3": "#b8722c", "peer-4": "#0c93a8"}
"""Shapes and colours of peers in the order in which they are known, again from the first after the last. The colours
are read on light and on dark paper."""
_SHAPES = {
    "peer-1": '<path d="M0-6 1.8-1.8 6 0 1.8 1.8 0 6-1.8 1.8-6 0-1.8-1.8z"/>',
    "peer-2": '<path d="M0-5 5 5H-5z" class="hollow"/>',
    "peer-3": '<path d="M0-5.5 5.5 0 0 5.5-5.5 0z" class="hollow"/>',
    "peer-4": '<path d="M-5-5 5-5 0 5z" class="hollow"/>',
    "star": '<path d="M0-5V5M-5 0H5M-3.5-3.5 3.5 3.5M-3.5 3.5 3.5-3.5" class="hollow"/>',
    "saltire": '<path d="M-4-4 4 4M-4 4 4-4" class="hollow"/>',
    "frame": '<path d="M-4,-4 L4,-4 L4,4 L-4,4 Z" class="hollow"/>',
    "left": '<path d="M-5,0 L4,-5 L4,5 Z"/>',
    "right": '<path d="M5,0 L-4,-5 L-4,5 Z"/>',
    "circle": '<circle r="4.5"/>',
    "ring": '<circle r="4" class="hollow"/>',
    "square": '<rect x="-4" y="-4" width="8" height="8"/>',
    "down": '<path d="M-5-4H5L0 5z"/>',
    "up": '<path d="M-5 4H5L0-5z"/>',
    "diamond": '<path d="M0-5.5 5.5 0 0 5.5-5.5 0z"/>',
    "plus": '<path d="M-1.8-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8z"/>',
    "cross": '<path d="M-1.8-5H1.8V-1.8H5V1.8H1.8V5H-1.8V1.8H-5V-1.8H-1.8z" transform="rotate(45)"/>',
    "bar": '<rect x="-2" y="-6" width="4" height="12"/>',
    "pipe": '<path d="M-2.5-6V6M2.5-6V6" class="hollow"/>',
    "hook": '<path d="M-4-5V3H4" class="hollow"/>',
    "dash": '<rect x="-6" y="-2" width="12" height="4"/>',
}


class Mark(NamedTuple):
    """A figure with the ends of its whisker or band. tip: what is said when it is pointed at."""

    value: float
    low: float
    high: float
    tip: str


class Group(NamedTuple):
    """Modes side by side, under one label."""

    label: str
    marks: dict[str, Mark]


class Axis(NamedTuple):
    """A range and how it is placed on the picture. label: with the scale in words."""

    low: float
    high: float
    logarithmic: bool
    label: str

    def share(self, value: float) -> float:
        """Where a value is between the ends, 0 to 1; beyond them less or more."""
        if not self.logarithmic:
            return (value - self.low) / (self.high - self.low)
        value = max(value, self.low / 1e6)
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self) -> list[float]:
        """Round values: powers of ten and more where those are few."""
        if not self.logarithmic:
            length = self.high - self.low
            step = 10.0 ** math.floor(math.log10(length))
            step /= 5 if length < 3 * step else 2 if length < 6 * step else 1
            first = math.ceil(self.low / step)
            return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        found: list[float] = []
        for steps in ((1,), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
            found = [m * 10.0**e for e in range(-12, 13) for m in steps if self.low <= m * 10.0**e <= self.high]
            if len(found) > 2:
                break
        return found


def log_axis(values: Sequence[float], label: str) -> Axis:
    """An axis that has all of these positive values."""
    low, high = min(values) / 1.15, max(values) * 1.15
    wider = max(1.0, _LEAST_RANGE / (high / low)) ** 0.5
    return Axis(low / wider, high * wider, True, f"{label} (logarithmic)")


def plain(value: float) -> str:
    """A tick's label."""
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _look(mode: str) -> str:
    """A mode's own name, or that of its look if it is a peer; "" for one that nobody knows."""
    if mode in MARKERS:
        return mode
    peers = [name for name in MODES if name not in MARKERS]
    return list(PEER_LOOKS)[peers.index(mode) % len(PEER_LOOKS)] if mode in peers else ""


def _colour(mode: str) -> str:
    colour = PEER_LOOKS.get(_look(mode)) or f"var(--{mode},var(--ink))"
    return f'style="--c:{colour}"'


def marker(mode: str, x: float, y: float, tip: str = "") -> str:
    """A mode's marker, which says `tip` where there is one."""
    shape = _SHAPES[MARKERS.get(mode) or _look(mode) or "frame"]
    if not tip:
        return f'<g class="mark" {_colour(mode)} transform="translate({x:.1f} {y:.1f})">{shape}</g>'
    text = escape(tip, quote=True)
    return (
        f'<g class="mark tip" tabindex="0" role="img" aria-label="{text}" data-tip="{text}" {_colour(mode)} '
        f'transform="translate({x:.1f} {y:.1f})"><title>{text}</title><circle r="10" class="reach"/>{shape}</g>'
    )


class _Plot:
    """The frame of a picture: axes, title, legend (of `modes`), and places of values in it. beside: room kept free on
    the right."""

    def __init__(
        self, width: int, title: str, y: Axis, modes: Sequence[str], x_label: str, beside: int = _RIGHT
    ) -> None:
        self.width, self.modes, self.y = width, modes, y
        self.left, self.right, self.top, self.bottom = _LEFT, width - beside, _TOP, HEIGHT - _BOTTOM
        self._title, self._x_label = title, x_label
        self.parts: list[str] = []

    def place_y(self, value: float) -> float:
        return self.bottom - self.y.share(value) * (self.bottom - self.top)

    def clipped(self, value: float) -> tuple[float, str]:
        """The place of a whisker's end inside the plot, and an arrow where it goes on beyond."""
        y = self.place_y(value)
        if y < self.top - 0.5:
            return self.top, "up"
        if y > self.bottom + 0.5:
            return self.bottom, "down"
        return y, ""

    def whisker(self, x: float, mark: Mark) -> str:
        """The interval of a mark; an arrow and its end in words where it is cut."""
        (high, above), (low, below) = self.clipped(mark.high), self.clipped(mark.low)
        parts = [f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}"/>']
        for y, beyond, end in ((high, above, mark.high), (low, below, mark.low)):
            if beyond:
                turn = "" if beyond == "up" else " rotate(180)"
                said = escape(f"cut: the interval goes on to {end:.3g}", quote=True)
                parts.append(
                    f'<path class="cut" transform="translate({x:.1f} {y:.1f}){turn}" d="M-5 0H5L0-8z">'
                    f"<title>{said}</title></path>"
                )
        return "".join(parts)

    def draw(self) -> str:
        """The whole picture."""
        legend, lines = self._legend()
        height = HEIGHT + lines * _LEGEND_LINE
        title, below = escape(self._title), escape(self._x_label)
        middle = (self.top + self.bottom) / 2
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {self.width} {height}" role="group" '
            f'aria-label="{escape(self._title, quote=True)}">'
            f'<text class="title" x="{self.left}" y="22">{title}</text>{self._grid()}'
            f'<text class="label" transform="translate(14 {middle:.0f}) rotate(-90)">{escape(self.y.label)}</text>'
            f'<text class="label" x="{(self.left + self.right) / 2:.0f}" y="{HEIGHT - 14}">{below}</text>'
            f"{''.join(self.parts)}{legend}</svg>"
        )

    def _grid(self) -> str:
        found = []
        for tick in self.y.ticks():
            y = self.place_y(tick)
            found.append(f'<path class="grid" d="M{self.left} {y:.1f}H{self.right}"/>')
            found.append(f'<text class="tick end" x="{self.left - 7}" y="{y + 4:.1f}">{plain(tick)}</text>')
        return "".join(found) + f'<path class="axis" d="M{self.left} {self.top}V{self.bottom}H{self.right}"/>'

    def _legend(self) -> tuple[str, int]:
        x, line, parts = float(self.left), 0, []
        for mode in self.modes:
            size = 26 + len(mode) * _LETTER
            if x + size > self.right and x > self.left:
                x, line = float(self.left), line + 1
            y = HEIGHT + 6 + line * _LEGEND_LINE
            parts.append(marker(mode, x + 6, y) + f'<text class="tick" x="{x + 17:.1f}" y="{y + 4}">{mode}</text>')
            x += size
        return "".join(parts), line + 1 if self.modes else 0


def _modes(found: Sequence[str]) -> list[str]:
    return [mode for mode in MODES if mode in found]


def lines(
    series: dict[str, dict[float, Mark]], title: str, y_label: str, x_label: str, *, names: Sequence[str] = ()
) -> str:
    """A line for each mode with its spread as a band, both axes logarithmic, its name at its end, direct on top; ""
    without two places on the x axis.

    names: labels of x's 0, 1, 2, … where those are no quantities but runs in their order.
    """
    places = sorted({x for marks in series.values() for x in marks})
    if len(places) < 2:
        return ""
    y = log_axis([v for marks in series.values() for mark in marks.values() for v in mark[:3] if v > 0], y_label)
    modes = _modes(list(series))
    scale = "in the order of their making" if names else "logarithmic"
    plot = _Plot(WIDTH, title, y, (), f"{x_label} ({scale})", _NAMES)
    x_axis = Axis(places[0], places[-1], not names, "")

    def place_x(value: float) -> float:
        return plot.left + 24 + x_axis.share(value) * (plot.right - plot.left - 48)

    for at in places:
        text = escape(names[int(at)]) if names else (f"{at / 1000:g}k" if at >= 1000 else f"{at:g}")
        plot.parts.append(f'<text class="tick middle" x="{place_x(at):.1f}" y="{plot.bottom + 18}">{text}</text>')
    for mode in reversed(modes):
        plot.parts.append(_line(plot, mode, series[mode], place_x))
    last = {mode: max(series[mode]) for mode in modes}
    ends = {mode: (place_x(x), plot.place_y(series[mode][x].value)) for mode, x in last.items()}
    plot.parts.append(_names_at(plot, ends))
    return plot.draw()


def _names_at(plot: _Plot, ends: dict[str, tuple[float, float]]) -> str:
    """The modes' names beside the plot, each as near to its line's end as the others let it."""
    ordered = sorted(ends, key=lambda mode: ends[mode][1])
    places: list[float] = []
    for mode in ordered:
        places.append(max([ends[mode][1], *(place + _NAME_GAP for place in places[-1:])]))
    lowest = float(plot.bottom)
    for at in reversed(range(len(places))):
        places[at] = min(places[at], lowest)
        lowest = places[at] - _NAME_GAP
    parts = []
    for mode, y in zip(ordered, places, strict=True):
        x_end, y_end = ends[mode]
        parts.append(
            f'<path class="lead" {_colour(mode)} d="M{x_end + 6:.1f} {y_end:.1f}L{plot.right + 4} {y:.1f}"/>'
            f"{marker(mode, plot.right + 11, y)}"
            f'<text class="name" x="{plot.right + 20}" y="{y + 4:.1f}">{escape(mode)}</text>'
        )
    return "".join(parts)


def _line(plot: _Plot, mode: str, marks: dict[float, Mark], place_x: Callable[[float], float]) -> str:
    found = sorted(marks.items())
    top = [f"{place_x(x):.1f} {plot.clipped(mark.high)[0]:.1f}" for x, mark in found]
    bottom = [f"{place_x(x):.1f} {plot.clipped(mark.low)[0]:.1f}" for x, mark in reversed(found)]
    way = "L".join(f"{place_x(x):.1f} {plot.place_y(mark.value):.1f}" for x, mark in found)
    cuts = "".join(
        plot.whisker(place_x(x), mark) for x, mark in found if plot.clipped(mark.high)[1] or plot.clipped(mark.low)[1]
    )
    points = "".join(marker(mode, place_x(x), plot.place_y(mark.value), mark.tip) for x, mark in found)
    return (
        f'<g class="series" {_colour(mode)}><path class="band" d="M{"L".join([*top, *bottom])}z"/>'
        f'<path class="line {mode}" d="M{way}"/>{cuts}{points}</g>'
    )


def grouped(groups: Sequence[Group], title: str, y: Axis, x_label: str, *, one: bool = False, width: int = WIDE) -> str:
    """Modes side by side in each group, points with whiskers. one: a line at 1. "" without groups."""
    if not groups:
        return ""
    modes = _modes([mode for group in groups for mode in group.marks])
    plot = _Plot(width, title, y, modes, x_label)
    room = (plot.right - plot.left) / len(groups)
    if one:
        plot.parts.append(f'<path class="one" d="M{plot.left} {plot.place_y(1):.1f}H{plot.right}"/>')
    for at, group in enumerate(groups):
        left = plot.left + at * room
        if at:
            plot.parts.append(f'<path class="grid" d="M{left:.1f} {plot.top}V{plot.bottom}"/>')
        y_label = plot.bottom + (16 if at % 2 == 0 or room > 100 else 30)
        text = escape(group.label)
        middle = min(left + room / 2, width - len(group.label) * _LETTER / 2)
        plot.parts.append(f'<text class="tick middle" x="{middle:.1f}" y="{y_label}">{text}</text>')
        for mode, mark in group.marks.items():
            x = left + room * (0.1 + 0.8 * (modes.index(mode) + 0.5) / len(modes))
            y_mark = min(max(plot.place_y(mark.value), plot.top), plot.bottom)
            plot.parts.append(
                f'<g class="series" {_colour(mode)}>{plot.whisker(x, mark)}{marker(mode, x, y_mark, mark.tip)}</g>'
            )
    return plot.draw()
