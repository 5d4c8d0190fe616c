"""What the figures say in plain sentences: who wins where, iptables included, and where nobody can tell."""

from dataplane.bench.analyse import Analysis, Row, quantity
from dataplane.bench.modes import MODES
from dataplane.bench.scenarios import SCENARIOS

CLOSE = 0.03
"""Modes whose medians differ by less than this share the first place."""


def _groups(analysis: Analysis) -> dict[tuple[str, int, str], list[Row]]:
    found: dict[tuple[str, int, str], list[Row]] = {}
    for row in analysis.rows:
        if not MODES[row.key.mode].reference:
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


def sentences(analysis: Analysis) -> list[str]:
    """One sentence for each group in which modes compete."""
    noisy = {key[1:] for key in analysis.noisy}
    found = []
    for (name, services, position), rows in _groups(analysis).items():
        scenario = SCENARIOS[name]
        first = winners(rows)
        rest = [row for row in rows if row not in first]
        where = f"{scenario.title}, {_many(services)}" + (f", {position} of them" if position and services > 1 else "")
        if (name, services, position) in noisy:
            found.append(f"{where}: too noisy to conclude.")
        elif not rest:
            found.append(f"{where}: no difference that can be told ({_titles(first)}).")
        else:
            best = quantity(first[0].main.median, scenario.unit)
            worst = (min if scenario.higher else max)(rest, key=lambda row: row.main.median)
            factor = max(first[0].main.median, worst.main.median) / min(first[0].main.median, worst.main.median)
            verb = "wins" if len(first) == 1 else "share the first place"
            found.append(f"{where}: {_titles(first)} {verb} ({best}), {factor:.2g}x of {worst.key.mode}.")
    return found


def iptables_wins(analysis: Analysis) -> list[str]:
    """Where iptables is first, or shares the first place, by scenario and size."""
    noisy = {key[1:] for key in analysis.noisy}
    found = []
    for key, rows in _groups(analysis).items():
        first = winners(rows)
        if key in noisy or len(first) == len(rows) or not any(row.key.mode == "iptables" for row in first):
            continue
        name, services, position = key
        verb = "wins" if len(first) == 1 else f"shares the first place with {_others(first)}"
        where = f" ({position})" if position and services > 1 else ""
        found.append(f"iptables {verb}: {SCENARIOS[name].title}, {_many(services)}{where}.")
    return found


def _many(services: int) -> str:
    return f"{services:,} Service{'s' if services > 1 else ''}"


def _others(rows: list[Row]) -> str:
    return ", ".join(row.key.mode for row in rows if row.key.mode != "iptables")
