"""The project's performance targets checked against a run: target, measured figure, verdict."""

import enum
import math
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from dataplane.bench.figures import noise
from dataplane.bench.figures.analyse import (
    BUSY_OTHERS,
    Analysis,
    GroupKey,
    PlaceKey,
    Rounds,
    against,
    analyse,
    between_scenarios,
    by_group,
    floor_text,
    place_line,
    values,
)
from dataplane.bench.figures.results import Results
from dataplane.bench.figures.stats import Ratio, estimate
from dataplane.bench.modes import CONNTRACK, DIRECT
from dataplane.bench.scenarios import Position

SIZE, MOST = 10000, 30000
LEAST_ROUNDS, LEAST_CONTROL_ROUNDS = 5, 3
"""Fewer rounds have an interval that says nothing: of ratios, of the control plane's figures."""
_RATIO_BARS = 16
"""Of a whole run: among how many the probability of an error is shared out."""
EBPF = ("ebpf-connect", "ebpf-tc", "ebpf-xdp")
LAST = Position.LAST.value


class Verdict(enum.StrEnum):
    """UNCLEAR: the bar is inside the confidence interval, or nearer to the figure than the noise floor, rounds were too
    few, or others were at work on the machine.

    A ratio is of rounds that were taken together, in shuffled order, so a machine's own noise is in its interval; what
    is in no interval, a difference between nodes that have the same rules, is in the floor.
    """

    MET = "met"
    MISSED = "missed"
    UNCLEAR = "unclear"
    UNMEASURED = "not measured"


class BarRow(msgspec.Struct, frozen=True):
    """One bar in one mode. measured: median. low, high: confidence interval for ratios, quartiles otherwise.
    spread: (high - low) / measured. unit: "" for ratios."""

    what: str
    mode: str
    limit: float
    at_least: bool
    unit: str = ""
    measured: float | None = None
    low: float = 0.0
    high: float = 0.0
    verdict: Verdict = Verdict.UNMEASURED
    note: str = ""

    @property
    def spread(self) -> float:
        return (self.high - self.low) / self.measured if self.measured else 0.0


class _Run(NamedTuple):
    """What a run's bars are judged from."""

    rounds: Rounds
    analysis: Analysis

    def crowded(self, key: GroupKey) -> bool:
        return PlaceKey(*key[1:]) in self.analysis.crowded

    def floor(self, key: GroupKey, figure: str) -> float:
        """Noise floor of a figure in the line that a group is in."""
        return noise.floor(place_line(self.rounds, PlaceKey(*key[1:]), figure), _RATIO_BARS)


def _judged(
    row: BarRow, found: Ratio, note: str = "", *, least: int = LEAST_ROUNDS, crowded: bool = False, floor: float = 0.0
) -> BarRow:
    """found: a ratio, or a figure with its quartiles. least: rounds that it takes to judge. floor: relative difference
    from the bar that is not told."""

    def meets(figure: float) -> bool:
        return figure >= row.limit if row.at_least else figure <= row.limit

    verdict = Verdict.MET if meets(found.value) else Verdict.MISSED
    few = found.rounds < least
    fine = not few and abs(math.log(found.value / row.limit)) <= math.log1p(floor)
    if crowded or few or fine or meets(found.low) != meets(found.high):
        verdict = Verdict.UNCLEAR
    reasons = ["others at work" if crowded else "", "too few rounds" if few else ""]
    reasons.append(f"noise floor {floor_text(floor)}" if fine and floor else "")
    note = "; ".join(filter(None, [note, *reasons]))
    return msgspec.structs.replace(
        row, measured=found.value, low=found.low, high=found.high, verdict=verdict, note=note
    )


def _missing(row: BarRow, why: str) -> BarRow:
    return msgspec.structs.replace(row, note=why)


def _ratio(
    row: BarRow, ratio: Ratio | None, why: str, note: str = "", *, crowded: bool = False, floor: float = 0.0
) -> BarRow:
    if ratio is None:
        return _missing(row, why)
    return _judged(row, ratio, note, crowded=crowded, floor=floor)


def _absolute(
    row: BarRow, rounds: Rounds, key: GroupKey, figure: str, scale: float = 1.0, note: str = "", *, alone: bool = False
) -> BarRow:
    """alone: others on the machine make no difference to it."""
    found = list(values(rounds.get(key, {}), figure).values())
    if not found:
        return _missing(row, f"{key.scenario} at {key.services:,} Services was not part of this run")
    seen = estimate(found)
    low, high = seen.quartiles
    others = estimate(list(values(rounds[key], "others").values()) or [0.0]).median
    busy = others > BUSY_OTHERS and not alone
    notes = [note, f"{seen.rounds} rounds", f"others kept {others:.1f} processors busy" if busy else ""]
    text = "; ".join(filter(None, notes))
    shown = Ratio(seen.median * scale, low * scale, high * scale, seen.rounds)
    return _judged(row, shown, text, least=LEAST_CONTROL_ROUNDS, crowded=busy)


def _connect_bars(run: _Run) -> Iterator[BarRow]:
    rounds, why = run.rounds, f"connect at {SIZE:,} Services was not part of this run"
    rate = f"new connections/s, last of {SIZE:,} Services"
    direct = GroupKey(DIRECT, "connect", SIZE, LAST)
    busy, floor = run.crowded(direct), run.floor(direct, "rate")
    limits = (*((mode, 0.97) for mode in EBPF), ("nftables", 0.80))
    for mode, limit in limits:
        key = direct._replace(mode=mode)
        row = BarRow(f"{rate} / direct, on a node without rules", mode, limit, True)
        tracked = against(rounds, key._replace(mode=CONNTRACK), DIRECT, "rate")
        note = f"connection tracking alone {tracked.value:.2f}" if tracked and mode != "ebpf-connect" else ""
        yield _ratio(row, against(rounds, key, DIRECT, "rate"), why, note, crowded=busy, floor=floor)
    for mode, limit in limits:
        row = BarRow(f"{rate} / to the pod's own address on the same node", mode, limit, True)
        own = between_scenarios(rounds, direct._replace(mode=mode), GroupKey(mode, "pod", SIZE, ""), "rate")
        yield _ratio(row, own, f"pod at {SIZE:,} Services was not part of this run", crowded=busy, floor=floor)
    row = BarRow(f"{rate} / iptables", "nftables", 8.0, True)
    ratio = against(rounds, direct._replace(mode=row.mode), "iptables", "rate")
    yield _ratio(row, ratio, why, crowded=busy, floor=floor)
    yield from _latency_bars(run)


def _latency_bars(run: _Run) -> Iterator[BarRow]:
    many = GroupKey(DIRECT, "connect", MOST, LAST)
    one = many._replace(scenario="connect-alone", position="")
    own = between_scenarios(run.rounds, many, one, "p99")
    note = f"direct itself {own.value:.2f}" if own else ""
    why = f"connect-alone beside {MOST:,} Services was not part of this run"
    busy, floor = run.crowded(many), run.floor(many, "p99")
    for mode in ("nftables", *EBPF):
        row = BarRow(f"p99 connect latency, {MOST:,} Services / 1", mode, 1.10, False)
        ratio = between_scenarios(run.rounds, many._replace(mode=mode), one._replace(mode=mode), "p99")
        yield _ratio(row, ratio, why, note, crowded=busy, floor=floor)


def _packet_bars(results: Results, run: _Run) -> Iterator[BarRow]:
    size = max(results.settings.fixed_services)
    place = f"at {size:,} Services"
    for mode in EBPF:
        row = BarRow("bulk TCP through a clusterIP / direct", mode, 0.98, True)
        yield _against_direct(run, row, GroupKey(mode, "TCP_STREAM", size, LAST), place)
    row = BarRow("packets/s to a remote backend / plain forwarding", "ebpf-xdp", 3.0, True)
    key = GroupKey(row.mode, "north-remote-pps", size, "")
    yield _against_direct(run, row, key, f"{place}; packets of the kernel's own making")
    row = BarRow("XDP program, established node-port flow, DNAT and SNAT", "ebpf-xdp", 150.0, False, "ns")
    cost = key._replace(scenario="xdp-cost")
    yield _absolute(row, run.rounds, cost, "ns", note=f"{place}; test run, its own 30 to 40 ns included", alone=True)


def _against_direct(run: _Run, row: BarRow, key: GroupKey, note: str) -> BarRow:
    why = f"{key.scenario} was not part of this run"
    ratio = against(run.rounds, key, DIRECT, "rate")
    return _ratio(row, ratio, why, note, crowded=run.crowded(key), floor=run.floor(key, "rate"))


def _control_bars(endpoints: int, rounds: Rounds) -> Iterator[BarRow]:
    def key(mode: str, scenario: str) -> GroupKey:
        return GroupKey(mode, scenario, MOST, "")

    size = f"{MOST:,} Services x {endpoints} endpoints"
    row = BarRow(f"cold start, {size}: objects to kernel", "nftables", 3.0, False, "s")
    yield _absolute(row, rounds, key(row.mode, "coldstart"), "seconds")
    for mode in EBPF:
        row = BarRow(f"cold start, {size}: objects to eBPF maps", mode, 1.5, False, "s")
        yield _absolute(row, rounds, key(mode, "coldstart"), "maps_seconds")
    for mode in ("nftables", *EBPF):
        row = BarRow(f"one endpoint changes at {MOST:,} Services, event to kernel, p99", mode, 5.0, False, "ms")
        yield _absolute(row, rounds, key(mode, "change"), "p99", 1e-6)
    for mode in ("nftables", *EBPF):
        row = BarRow(f"control plane memory, {size}", mode, 300.0, False, "MB")
        yield _absolute(row, rounds, key(mode, "coldstart"), "rss", 1e-6, alone=True)


def bars(results: Results, analysis: Analysis | None = None) -> list[BarRow]:
    """Every bar, in the modes that the run has."""
    analysis = analysis or analyse(results)
    run = _Run(by_group(results.cells), analysis)
    rows = [
        *_connect_bars(run),
        *_packet_bars(results, run),
        *_control_bars(results.settings.endpoints, run.rounds),
    ]
    return [row for row in rows if row.mode in results.settings.modes]


def number(value: float, unit: str = "") -> str:
    """A bar's figure for people: three digits that count, and the unit."""
    text = f"{value:.0f}" if value >= 100 else f"{value:.3g}" if unit else f"{value:.2f}"
    return f"{text} {unit}".strip()


def as_records(rows: list[BarRow]) -> list[dict[str, object]]:
    """The bars as a table: bar, measured, interval, spread, verdict."""
    return [
        {
            "what": row.what,
            "mode": row.mode,
            "bar": ("≥ " if row.at_least else "≤ ") + f"{row.limit:g} {row.unit}".strip(),
            "measured": "" if row.measured is None else number(row.measured, row.unit),
            "interval": "" if row.measured is None else f"{number(row.low)} to {number(row.high)}",
            "spread": "" if row.measured is None else f"{row.spread:.0%}",
            "verdict": row.verdict.value,
            "note": row.note,
        }
        for row in rows
    ]


def summary(rows: list[BarRow]) -> str:
    """One sentence: how many are met, and which are not."""
    count = {verdict: [row for row in rows if row.verdict is verdict] for verdict in Verdict}
    judged = len(rows) - len(count[Verdict.UNMEASURED])
    if not judged:
        return "No bar was measured in this run; the full profile measures all of them."
    text = f"{len(count[Verdict.MET])} of {judged} bars that were measured are met"
    for verdict, label in ((Verdict.MISSED, "missed"), (Verdict.UNCLEAR, "cannot be judged from this run")):
        if count[verdict]:
            modes: dict[str, list[str]] = {}
            for row in count[verdict]:
                modes.setdefault(row.what, []).append(row.mode)
            names = "; ".join(f"{what} ({', '.join(found)})" for what, found in modes.items())
            text += f". {len(count[verdict])} {label}: {names}"
    return text + "."
