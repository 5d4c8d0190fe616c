"""What the figures say: who wins where, iptables included, and where nobody can tell."""

from typing import NamedTuple

from dataplane.bench.analyse import Analysis, Row, quantity
from dataplane.bench.modes import DIRECT, MODES
from dataplane.bench.scenarios import SCENARIOS, Position

CLOSE = 0.03
"""Modes whose medians differ by less than this share the first place."""
_HIGHLIGHTS = ("connect", "dns", "rr", "bulk1", "north-remote-pps", "coldstart", "change")
_ASIDE = ("pod", "xdp-cost")
"""Scenarios that explain others; nobody wins them."""


class Shown(NamedTuple):
    """A mode's figure in the table of winners. best: it wins or shares the first place."""

    text: str
    best: bool = False


class Place(NamedTuple):
    """A line of the table of winners. figures: by mode. noisy: nothing can be concluded from it."""

    title: str
    services: int
    figures: dict[str, Shown]
    noisy: bool


def _groups(analysis: Analysis) -> dict[tuple[str, int, str], list[Row]]:
    """The rows of modes that compete, where at least two do."""
    found: dict[tuple[str, int, str], list[Row]] = {}
    for row in analysis.rows:
        if not MODES[row.key.mode].reference and row.key.scenario not in _ASIDE:
            found.setdefault(row.key[1:], []).append(row)
    return {key: rows for key, rows in found.items() if len(rows) > 1}


def _overlap(left: Row, right: Row) -> bool:
    """Whether the two cannot be told apart: medians close, or each within the other's quartiles."""
    a, b = left.main, right.main
    if abs(a.median - b.median) <= CLOSE * max(a.median, b.median):
        return True
    return a.quartiles[0] <= b.quartiles[1] and b.quartiles[0] <= a.quartiles[1]


def winners(rows: list[Row]) -> list[Row]:
    """The best mode, and those that cannot be told from it; best first."""
    higher = rows[0].scenario.higher
    ordered = sorted(rows, key=lambda row: row.main.median, reverse=higher)
    return [ordered[0], *(row for row in ordered[1:] if _overlap(ordered[0], row))]


def _titles(rows: list[Row]) -> str:
    return " and ".join(row.key.mode for row in rows)


def _sentence(key: tuple[str, int, str], rows: list[Row], noisy: set[tuple[str, int, str]]) -> str:
    name, services, position = key
    scenario = SCENARIOS[name]
    first = winners(rows)
    rest = [row for row in rows if row not in first]
    where = f"{scenario.title}, {_many(services)}" + (f", {position} of them" if position and services > 1 else "")
    if key in noisy:
        return f"{where}: too noisy to conclude."
    if not rest:
        return f"{where}: no difference that can be told ({_titles(first)})."
    best = quantity(first[0].main.median, scenario.unit)
    worst = (min if scenario.higher else max)(rest, key=lambda row: row.main.median)
    factor = max(first[0].main.median, worst.main.median) / min(first[0].main.median, worst.main.median)
    verb = "wins" if len(first) == 1 else "share the first place"
    times = f"{factor:.0f}" if factor >= 10 else f"{factor:.2g}"
    return f"{where}: {_titles(first)} {verb} ({best}), {times} times as good as {worst.key.mode}."


def sentences(analysis: Analysis) -> list[str]:
    """One sentence for each group in which modes compete."""
    noisy = {key[1:] for key in analysis.noisy}
    return [_sentence(key, rows, noisy) for key, rows in _groups(analysis).items()]


def highlights(analysis: Analysis) -> list[str]:
    """The sentences of the main scenarios, each at the largest size at which most modes compete."""
    noisy, groups, found = {key[1:] for key in analysis.noisy}, _groups(analysis), []
    for name in _HIGHLIGHTS:
        keys = [key for key in groups if key[0] == name and key[2] in ("", Position.LAST.value)]
        if keys:
            key = max(keys, key=lambda key: (len(groups[key]), key[1]))
            found.append(_sentence(key, groups[key], noisy))
    return found


def iptables_wins(analysis: Analysis) -> list[str]:
    """Where iptables is first, then where it shares the first place: a sentence for each scenario, with the sizes."""
    noisy = {key[1:] for key in analysis.noisy}
    found: dict[tuple[str, str], list[str]] = {}
    for key, rows in _groups(analysis).items():
        first = winners(rows)
        if key in noisy or len(first) == len(rows) or not any(row.key.mode == "iptables" for row in first):
            continue
        name, services, position = key
        verb = "wins" if len(first) == 1 else "shares the first place"
        where = _many(services) + (f" ({position})" if position and services > 1 else "")
        found.setdefault((verb, SCENARIOS[name].title), []).append(where)
    ordered = sorted(found.items(), key=lambda item: item[0][0] != "wins")
    return [f"iptables {verb}: {title}, {' and '.join(where)}." for (verb, title), where in ordered]


def places(analysis: Analysis) -> list[Place]:
    """The table of winners: the scenarios in which modes compete, at the fewest and the most Services and at the size
    at which most was measured; at the last of them where the place among them matters."""
    groups, noisy = _groups(analysis), {key[1:] for key in analysis.noisy}
    sizes = _main_sizes(analysis)
    found = []
    for (name, services, position), rows in groups.items():
        if services not in sizes or position not in ("", Position.LAST.value):
            continue
        first = {row.key.mode for row in winners(rows)} if len(winners(rows)) < len(rows) else set()
        direct = analysis.row(DIRECT, name, services, position)
        unit = SCENARIOS[name].unit
        shown = {DIRECT: Shown(quantity(direct.main.median, unit))} if direct else {}
        for row in rows:
            is_noisy = (name, services, position) in noisy
            shown[row.key.mode] = Shown(quantity(row.main.median, unit), row.key.mode in first and not is_noisy)
        found.append(Place(SCENARIOS[name].title, services, shown, (name, services, position) in noisy))
    return found


def _main_sizes(analysis: Analysis) -> set[int]:
    measured = [row.key.services for row in analysis.rows]
    if not measured:
        return set()
    return {min(measured), max(measured), max(sorted(set(measured)), key=measured.count)}


def _many(services: int) -> str:
    return f"{services:,} Service{'s' if services > 1 else ''}"
