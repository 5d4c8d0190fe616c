"""Summary of a run: which mode is fastest where, iptables and direct included, and where the figures do not tell."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dataplane.bench.figures.analyse import Analysis, PlaceKey, Row, against, common_scale, floor_text, quantity
from dataplane.bench.modes import DIRECT, MODES
from dataplane.bench.scenarios import SCENARIOS, Position, Scenario

_HIGHLIGHTS = ("connect", "TCP_CRR", "TCP_RR", "TCP_STREAM", "dns", "north-remote-pps", "coldstart", "change")
_ASIDE = ("pod", "xdp-cost")
"""Scenarios that explain others; nobody wins them."""
_WILD = 10.0
"""A floor that says nothing in figures."""


class Shown(NamedTuple):
    """A mode's figure in the table of winners. best: it wins or shares the first place. spread: of its rounds."""

    text: str
    best: bool = False
    spread: str = ""


class Place(NamedTuple):
    """A line of the table of winners. wins: the best mode and those not told from it, or why none is named. figures: by
    mode, in `unit`. rounds: of the mode that has most. floor: the smallest difference that it finds."""

    key: PlaceKey
    wins: str
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


class Contest(NamedTuple):
    """Who is in front in a line. best: the best mode and those that cannot be told from it, best first. behind: those
    that can. unjudged: those whose rounds are too few; all of them where the line's are."""

    best: list[Row]
    behind: list[Row]
    unjudged: list[Row]


def contest(analysis: Analysis, rows: list[Row]) -> Contest:
    """What the rounds of a line, one row a mode, tell of its modes."""
    line = analysis.lines.get(rows[0].place)
    judged = [row for row in rows if line and row.key.mode in line.logarithms]
    unjudged = [row for row in rows if row not in judged]
    if line is None or len(judged) < 2:
        return Contest([], [], rows)
    ordered = sorted(judged, key=lambda row: line.effect(row.key.mode), reverse=rows[0].scenario.higher)
    first = ordered[0].key.mode
    behind = [row for row in ordered[1:] if analysis.judge(row.place, row.key.mode, first).real]
    return Contest([row for row in ordered if row not in behind], behind, unjudged)


def winners_at(analysis: Analysis) -> list[PlaceKey]:
    """The lines in which somebody is better than somebody else."""
    return [place for place, rows in _groups(analysis).items() if contest(analysis, rows).behind]


def _titles(rows: Sequence[Row]) -> str:
    *most, last = (row.key.mode for row in rows)
    return f"{', '.join(most)} and {last}" if most else last


def _sentence(analysis: Analysis, key: PlaceKey, rows: list[Row]) -> str:
    name, services, position = key
    scenario = SCENARIOS[name]
    first, rest, unjudged = contest(analysis, rows)
    where = f"{name}, {many(services)}" + (f", {position} of them" if position and services > 1 else "")
    if not first:
        return f"{where}: too few rounds to tell."
    if key in analysis.crowded:
        return f"{where}: too noisy to conclude, others were at work."
    left_out = _left_out(unjudged, scenario)
    if not rest:
        floor = analysis.floor(key)
        above = f" above {floor_text(floor)}" if floor < _WILD else " can be told"
        return f"{where}: no difference{above} ({_titles(first)}).{left_out}"
    best = quantity(first[0].main.median, scenario.unit)
    worst = (min if scenario.higher else max)(rest, key=lambda row: row.main.median)
    factor = max(first[0].main.median, worst.main.median) / min(first[0].main.median, worst.main.median)
    verb = "wins" if len(first) == 1 else "share the first place"
    times = f"{factor:,.0f}" if factor >= 10 else f"{factor:.2g}"
    main = first[0].main
    of = f"{best}, spread {main.spread:.0%} of {main.rounds} rounds, noise floor {floor_text(analysis.floor(key))}"
    return f"{where}: {_titles(first)} {verb} ({of}), {times} times as good as {worst.key.mode}.{left_out}"


def _left_out(unjudged: Sequence[Row], scenario: Scenario) -> str:
    """A sentence about the modes whose rounds are too few, with their figures; "" without such."""
    shown = (f"{row.key.mode} ({quantity(row.main.median, scenario.unit)})" for row in unjudged)
    return f" Not judged, too few rounds: {', '.join(shown)}." if unjudged else ""


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


class Firsts(NamedTuple):
    """Where one mode is in front: by scenario, the sizes at which it wins, at which it shares the first place, and at
    which no mode can be told from another."""

    wins: dict[str, list[str]]
    shares: dict[str, list[str]]
    level: dict[str, list[str]]


def iptables_firsts(analysis: Analysis) -> Firsts:
    """Where iptables is first of the modes, and where it cannot be told from the first."""
    found = Firsts({}, {}, {})
    for key, rows in _groups(analysis).items():
        best, behind, _ = contest(analysis, rows)
        if key in analysis.crowded or not any(row.key.mode == "iptables" for row in best):
            continue
        where = found.level if not behind else found.wins if len(best) == 1 else found.shares
        where.setdefault(key.scenario, []).append(_size(key))
    return found


def direct_firsts(analysis: Analysis) -> Firsts:
    """Where direct, which has no rules at all, is faster than every mode, and where it is not told from the best."""
    found = Firsts({}, {}, {})
    for key, rows in _groups(analysis).items():
        line, best = analysis.lines.get(key), contest(analysis, rows).best
        if line is None or not best or key in analysis.crowded or DIRECT not in line.logarithms:
            continue
        verdict = analysis.judge(key, DIRECT, best[0].key.mode)
        if not verdict.real:
            found.shares.setdefault(key.scenario, []).append(_size(key))
        elif (verdict.difference > 0) == best[0].scenario.higher:
            found.wins.setdefault(key.scenario, []).append(_size(key))
    return found


def _size(key: PlaceKey) -> str:
    """The number of Services, and which of them unless it is the last."""
    named = key.position not in ("", Position.LAST.value) and key.services > 1
    return f"{key.services:,}" + (f" ({key.position})" if named else "")


def listed(found: dict[str, list[str]]) -> str:
    """Scenarios with their sizes, as a part of a sentence; "nowhere" without any."""
    return "; ".join(f"{name} at {_many_sizes(sizes)}" for name, sizes in found.items()) or "nowhere"


def _many_sizes(sizes: Sequence[str]) -> str:
    *most, last = sizes
    return (f"{', '.join(most)} and {last}" if most else last) + (" Service" if sizes == ["1"] else " Services")


def where_baselines_win(analysis: Analysis, modes: Iterable[str], *, equal: bool = True) -> list[str]:
    """Sentences: where iptables wins or shares the first place, and where direct is faster than every mode. equal: also
    where direct cannot be told from the best of them."""
    said, ours, bare = [], iptables_firsts(analysis), direct_firsts(analysis)
    if "iptables" in modes:
        said.append(f"iptables wins: {listed(ours.wins)}.")
        said.append(f"iptables shares the first place: {listed(ours.shares)}.")
    if DIRECT in modes:
        said.append(f"Direct, without any rules, is faster than every mode: {listed(bare.wins)}.")
    if "iptables" in modes:
        said.append(f"iptables can be told from no other mode, nor they from each other: {listed(ours.level)}.")
    if DIRECT in modes and equal:
        said.append(f"Direct and the best mode cannot be told apart: {listed(bare.shares)}.")
    return said


def places(analysis: Analysis) -> list[Place]:
    """The table of winners: the scenarios in which modes compete, at the fewest and the most Services and at the size
    at which most was measured; at the last of them where the place among them matters."""
    sizes = _main_sizes(analysis)
    found = []
    for key, rows in _groups(analysis).items():
        name, services, position = key
        if services not in sizes or position not in ("", Position.LAST.value):
            continue
        seen = contest(analysis, rows)
        named = bool(seen.behind) and key not in analysis.crowded
        first = {row.key.mode for row in seen.best} if named else set()
        direct = analysis.row(DIRECT, name, services, position)
        shown = [*([direct] if direct else []), *rows]
        unit = common_scale((row.main.median for row in shown), SCENARIOS[name].unit)
        rounds = max(row.main.rounds for row in shown)
        figures = {
            row.key.mode: Shown(unit.number(row.main.median), row.key.mode in first, spread_text(row, rounds))
            for row in shown
        }
        floor = floor_text(analysis.floor(key))
        found.append(Place(key, _wins(analysis, key, seen), unit.unit, rounds, figures, floor, key in analysis.noisy))
    return found


def _wins(analysis: Analysis, key: PlaceKey, seen: Contest) -> str:
    """Who wins, in few words, or why nobody does."""
    if not seen.best:
        return "too few rounds"
    if key in analysis.crowded:
        return "others at work"
    if not seen.behind:
        return "not told apart"
    if len(seen.best) > len(seen.behind) + 1:
        return f"all but {', '.join(row.key.mode for row in seen.behind)}"
    return ", ".join(row.key.mode for row in seen.best)


def spread_text(row: Row, rounds: int) -> str:
    """Spread of a figure's rounds; how many those are, where a line's other modes have more."""
    few = "" if row.main.rounds == rounds else f", {row.main.rounds} rounds"
    return f"{row.main.spread:.0%}{few}" if row.main.rounds > 1 else "1 round"


class Headline(NamedTuple):
    """A number that a reader wants first. certainty: its interval or quartiles, rounds, and noise floor."""

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
            interval = f"{ratio.low:.2f} to {ratio.high:.2f}, {_rounds(ratio.rounds)}"
            certainty = f"{interval}, {_floor(analysis, here[mode])}"
            what = f"of direct's new connections, {mode}, last of {many(size)}"
            found.append(Headline(f"{ratio.value:.0%}", what, certainty))
    for mode in ("nftables",) if "iptables" in here else ():
        ratio = against(analysis.rounds, here[mode].key, "iptables", "rate") if mode in here else None
        if ratio is not None:
            certainty = f"{ratio.low:.2g} to {ratio.high:.2g}, {_rounds(ratio.rounds)}"
            what = f"as many new connections as iptables, {mode}, last of {many(size)}"
            found.append(Headline(f"{ratio.value:.2g}x", what, f"{certainty}, {_floor(analysis, here[mode])}"))
    return found


def _floor(analysis: Analysis, row: Row) -> str:
    return f"noise floor {floor_text(analysis.floor(row.place))}"


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count > 1 else ''}"


def _times(analysis: Analysis) -> list[Headline]:
    found = []
    for name, what in (("change", "p99 from one change to the kernel"), ("coldstart", "cold start")):
        rows = [row for row in analysis.rows if row.key.scenario == name and row.key.mode == "nftables"]
        if rows:
            row = max(rows, key=lambda row: row.key.services)
            low, high = (quantity(value, row.scenario.unit) for value in row.main.quartiles)
            rounds = f"quartiles {low} to {high}, {_rounds(row.main.rounds)}" if row.main.rounds > 1 else "one round"
            where = f"{what}, nftables, {many(row.key.services)}"
            found.append(Headline(quantity(row.main.median, row.scenario.unit), where, rounds))
    return found


def _main_sizes(analysis: Analysis) -> set[int]:
    measured = [row.key.services for row in analysis.rows]
    if not measured:
        return set()
    return {min(measured), max(measured), max(sorted(set(measured)), key=measured.count)}


def many(services: int) -> str:
    """A number of Services in words."""
    return f"{services:,} Service{'s' if services > 1 else ''}"
