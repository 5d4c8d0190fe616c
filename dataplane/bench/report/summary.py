"""Summary of a run: which mode is fastest where, iptables included, and where the figures do not tell."""

from typing import NamedTuple

from dataplane.bench.figures.analyse import Analysis, PlaceKey, Row, common_scale, floor_text, quantity
from dataplane.bench.modes import DIRECT, MODES
from dataplane.bench.scenarios import SCENARIOS, Position

_HIGHLIGHTS = ("connect", "TCP_CRR", "TCP_RR", "TCP_STREAM", "dns", "north-remote-pps", "coldstart", "change")
_ASIDE = ("pod", "xdp-cost")
"""Scenarios that explain others; nobody wins them."""


class Shown(NamedTuple):
    """A mode's figure in the table of winners. best: it wins or shares the first place. spread: of its rounds."""

    text: str
    best: bool = False
    spread: str = ""


class Place(NamedTuple):
    """A line of the table of winners. figures: by mode, in `unit`. rounds: of the mode that has most. floor: the
    smallest difference that it can tell."""

    key: PlaceKey
    unit: str
    rounds: int
    figures: dict[str, Shown]
    floor: str
    noisy: bool


def _groups(analysis: Analysis) -> dict[PlaceKey, list[Row]]:
    """The rows of modes that compete, where at least two do."""
    found: dict[PlaceKey, list[Row]] = {}
    for row in analysis.rows:
        if not MODES[row.key.mode].reference and row.key.scenario not in _ASIDE:
            found.setdefault(row.place, []).append(row)
    return {key: rows for key, rows in found.items() if len(rows) > 1}


def winners(analysis: Analysis, rows: list[Row]) -> list[Row]:
    """The best mode of a line, and those that cannot be told from it by more than the noise floor; best first. All of
    them where the line has too few rounds."""
    place = rows[0].place
    line = analysis.lines.get(place)
    if line is None:
        return rows
    here = [row for row in rows if row.key.mode in line.logarithms]
    ordered = sorted(here, key=lambda row: line.effect(row.key.mode), reverse=rows[0].scenario.higher)
    first = ordered[0].key.mode
    return [ordered[0], *(row for row in ordered[1:] if not analysis.judge(place, row.key.mode, first).real)]


def winners_at(analysis: Analysis) -> list[PlaceKey]:
    """The lines in which somebody is better than somebody else."""
    return [place for place, rows in _groups(analysis).items() if len(winners(analysis, rows)) < len(rows)]


def _titles(rows: list[Row]) -> str:
    return " and ".join(row.key.mode for row in rows)


def _sentence(analysis: Analysis, key: PlaceKey, rows: list[Row]) -> str:
    name, services, position = key
    scenario = SCENARIOS[name]
    first = winners(analysis, rows)
    rest = [row for row in rows if row not in first]
    where = f"{name}, {_many(services)}" + (f", {position} of them" if position and services > 1 else "")
    if key not in analysis.lines:
        return f"{where}: too few rounds to tell."
    if key in analysis.crowded:
        return f"{where}: too noisy to conclude, others were at work."
    if not rest:
        return f"{where}: no difference above {floor_text(analysis.floor(key))} ({_titles(first)})."
    best = quantity(first[0].main.median, scenario.unit)
    worst = (min if scenario.higher else max)(rest, key=lambda row: row.main.median)
    factor = max(first[0].main.median, worst.main.median) / min(first[0].main.median, worst.main.median)
    verb = "wins" if len(first) == 1 else "share the first place"
    times = f"{factor:.0f}" if factor >= 10 else f"{factor:.2g}"
    return f"{where}: {_titles(first)} {verb} ({best}), {times} times as good as {worst.key.mode}."


def sentences(analysis: Analysis) -> list[str]:
    """One sentence for each group in which modes compete."""
    return [_sentence(analysis, key, rows) for key, rows in _groups(analysis).items()]


def highlights(analysis: Analysis) -> list[str]:
    """The sentences of the main scenarios, each at the largest size at which most modes compete."""
    groups, found = _groups(analysis), []
    for name in _HIGHLIGHTS:
        keys = [key for key in groups if key[0] == name and key[2] in ("", Position.LAST.value)]
        if keys:
            key = max(keys, key=lambda key: (len(groups[key]), key[1]))
            found.append(_sentence(analysis, key, groups[key]))
    return found


def iptables_wins(analysis: Analysis) -> list[str]:
    """Where iptables is first, then where it shares the first place: a sentence for each scenario, with the sizes."""
    found: dict[tuple[str, str], list[str]] = {}
    for key, rows in _groups(analysis).items():
        first = winners(analysis, rows)
        if key in analysis.crowded or len(first) == len(rows):
            continue
        if not any(row.key.mode == "iptables" for row in first):
            continue
        name, services, position = key
        verb = "wins" if len(first) == 1 else "shares the first place"
        where = _many(services) + (f" ({position})" if position and services > 1 else "")
        found.setdefault((verb, name), []).append(where)
    ordered = sorted(found.items(), key=lambda item: item[0][0] != "wins")
    return [f"iptables {verb}: {title}, {' and '.join(where)}." for (verb, title), where in ordered]


def places(analysis: Analysis) -> list[Place]:
    """The table of winners: the scenarios in which modes compete, at the fewest and the most Services and at the size
    at which most was measured; at the last of them where the place among them matters."""
    sizes = _main_sizes(analysis)
    found = []
    for key, rows in _groups(analysis).items():
        name, services, position = key
        if services not in sizes or position not in ("", Position.LAST.value):
            continue
        best = winners(analysis, rows)
        first = {row.key.mode for row in best} if len(best) < len(rows) and key not in analysis.crowded else set()
        direct = analysis.row(DIRECT, name, services, position)
        shown = [*([direct] if direct else []), *rows]
        unit = common_scale((row.main.median for row in shown), SCENARIOS[name].unit)
        rounds = max(row.main.rounds for row in shown)
        figures = {
            row.key.mode: Shown(unit.number(row.main.median), row.key.mode in first, _spread(row, rounds))
            for row in shown
        }
        found.append(Place(key, unit.unit, rounds, figures, floor_text(analysis.floor(key)), key in analysis.noisy))
    return found


def _spread(row: Row, rounds: int) -> str:
    """Spread of a figure's rounds; how many those are, where a line's other modes have more."""
    few = "" if row.main.rounds == rounds else f", {row.main.rounds} rounds"
    return f"{row.main.spread:.0%}{few}" if row.main.rounds > 1 else "1 round"


class Headline(NamedTuple):
    """A number that a reader wants first. certainty: its interval, rounds, and noise floor."""

    figure: str
    what: str
    certainty: str


def headlines(analysis: Analysis) -> list[Headline]:
    """Connections against direct and against iptables, latency of a programmed change, cold start: each at the largest
    size, or where the most was measured."""
    return [*_rates(analysis), *_times(analysis)]


def _rates(analysis: Analysis) -> list[Headline]:
    rows = [r for r in analysis.rows if r.key.scenario == "connect" and r.key.position == Position.LAST.value]
    if not rows:
        return []
    size = max(rows, key=lambda row: (row.main.rounds, row.key.services)).key.services
    here = {row.key.mode: row for row in rows if row.key.services == size}
    found = []
    for mode in ("nftables", "ebpf-connect"):
        ratio = here[mode].ratios.get("rate") if mode in here else None
        if ratio is not None:
            floor = floor_text(analysis.floor(here[mode].place))
            certainty = f"{ratio.low:.2f} to {ratio.high:.2f}, {ratio.rounds} rounds, noise floor {floor}"
            what = f"of direct's new connections, {mode}, last of {_many(size)}"
            found.append(Headline(f"{ratio.value:.0%}", what, certainty))
    if {"nftables", "iptables"} <= set(here):
        fast, slow = here["nftables"].main, here["iptables"].main
        rounds = f"medians of {min(fast.rounds, slow.rounds)} rounds"
        what = f"as many new connections as iptables, nftables, last of {_many(size)}"
        found.append(Headline(f"{fast.median / slow.median:.2g}x", what, rounds))
    return found


def _times(analysis: Analysis) -> list[Headline]:
    found = []
    for name, what in (("change", "p99 from one change to the kernel"), ("coldstart", "cold start")):
        rows = [row for row in analysis.rows if row.key.scenario == name and row.key.mode == "nftables"]
        if rows:
            row = max(rows, key=lambda row: row.key.services)
            low, high = (quantity(value, row.scenario.unit) for value in row.main.quartiles)
            rounds = f"quartiles {low} to {high}, {row.main.rounds} rounds" if row.main.rounds > 1 else "one round"
            where = f"{what}, nftables, {_many(row.key.services)}"
            found.append(Headline(quantity(row.main.median, row.scenario.unit), where, rounds))
    return found


def _main_sizes(analysis: Analysis) -> set[int]:
    measured = [row.key.services for row in analysis.rows]
    if not measured:
        return set()
    return {min(measured), max(measured), max(sorted(set(measured)), key=measured.count)}


def _many(services: int) -> str:
    return f"{services:,} Service{'s' if services > 1 else ''}"
