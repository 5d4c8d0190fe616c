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
HOST = "ebpf-host"
FORWARDING = {"ebpf-tunnel": 1.0, "ebpf-dsr": 1.3}
"""Connections to another node with the client's address kept: at least so many times those with it hidden (SNAT)."""
SNAT = "ebpf-xdp"
LAST = Position.LAST.value


class Verdict(enum.StrEnum):
    """UNCLEAR: the bar is inside the confidence interval, or nearer to the figure than the run can tell (the line's
    threshold, see figures.noise), rounds were too few, or others were at work on the machine.

    A ratio is of rounds that were taken together, in shuffled order, so a machine's own noise is in its interval; what
    is in no interval, a difference between nodes that have the same rules, is in the threshold.
    """

    MET = "met"
    MISSED = "missed"
    UNCLEAR = "unclear"
    UNMEASURED = "not measured"


class BarRow(msgspec.Struct, frozen=True):
    """One bar in one mode. measured: median over `rounds`. low, high: confidence interval for ratios, quartiles
    otherwise. spread: (high - low) / measured. unit: "" for ratios. floor: smallest relative difference that the bar's
    line finds; infinite where rounds are too few."""

    what: str
    mode: str
    limit: float
    at_least: bool
    unit: str = ""
    measured: float | None = None
    low: float = 0.0
    high: float = 0.0
    rounds: int = 0
    floor: float = math.inf
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

    def fineness(self, key: GroupKey, figure: str) -> "_Fineness":
        """What the line that a group is in can tell of a figure."""
        found = place_line(self.rounds, PlaceKey(*key[1:]), figure)
        return _Fineness(noise.threshold(found, _RATIO_BARS), noise.floor(found, _RATIO_BARS))


class _Fineness(NamedTuple):
    """threshold: a measured relative difference from a bar that is smaller is not told. floor: a true one that is
    larger is found."""

    threshold: float
    floor: float


def _judged(
    row: BarRow,
    found: Ratio,
    note: str,
    fineness: _Fineness,
    *,
    least: int = LEAST_ROUNDS,
    crowded: bool = False,
    apart: bool = True,
) -> BarRow:
    """found: a ratio, or a figure with its quartiles. least: rounds that it takes to judge. apart: only what is further
    from the bar than the threshold is judged."""

    def meets(figure: float) -> bool:
        return figure >= row.limit if row.at_least else figure <= row.limit

    verdict = Verdict.MET if meets(found.value) else Verdict.MISSED
    few = found.rounds < least
    near = apart and not few and abs(math.log(found.value / row.limit)) <= math.log1p(fineness.threshold)
    if crowded or few or near or meets(found.low) != meets(found.high):
        verdict = Verdict.UNCLEAR
    reasons = ["others at work" if crowded else "", "too few rounds" if few else ""]
    reasons.append(f"nearer to the bar than the {floor_text(fineness.threshold)} that can be told" if near else "")
    return msgspec.structs.replace(
        row, measured=found.value, low=found.low, high=found.high, rounds=found.rounds, floor=fineness.floor,
        verdict=verdict, note="; ".join(filter(None, [note, *reasons])),
    )  # fmt: skip


def _missing(row: BarRow, why: str) -> BarRow:
    return msgspec.structs.replace(row, note=why)


def _ratio(run: _Run, row: BarRow, ratio: Ratio | None, key: GroupKey, note: str = "") -> BarRow:
    """A ratio of the line that `key` is in."""
    if ratio is None:
        return _missing(row, f"{_measured_where(key)} was not measured for both sides of this ratio")
    figure = "p99" if "p99" in row.what else "rate"
    return _judged(row, ratio, note, run.fineness(key, figure), crowded=run.crowded(key))


def _measured_where(key: GroupKey) -> str:
    beside = "beside" if key.scenario == "connect-alone" else "at"
    return f"{key.scenario} {beside} {key.services:,} Services"


def _absolute(
    run: _Run, row: BarRow, key: GroupKey, figure: str, scale: float = 1.0, note: str = "", *, alone: bool = False
) -> BarRow:
    """alone: others on the machine make no difference to it. The note has iptables' figure, if there is one."""
    found = list(values(run.rounds.get(key, {}), figure).values())
    if not found:
        return _missing(row, f"{_measured_where(key)} was not part of this run")
    seen = estimate(found)
    low, high = seen.quartiles
    others = estimate(list(values(run.rounds[key], "others").values()) or [0.0]).median
    busy = others > BUSY_OTHERS and not alone
    peer = list(values(run.rounds.get(key._replace(mode="iptables"), {}), figure).values())
    slower = f"iptables {number(estimate(peer).median * scale, row.unit)} ({_rounds(len(peer))})" if peer else ""
    notes = [note, slower, f"others kept {others:.1f} processors busy" if busy else ""]
    shown = Ratio(seen.median * scale, low * scale, high * scale, seen.rounds)
    text = "; ".join(filter(None, notes))
    fineness = run.fineness(key, figure)
    return _judged(row, shown, text, fineness, least=LEAST_CONTROL_ROUNDS, crowded=busy, apart=False)


def _rounds(count: int) -> str:
    return f"{count} round{'s' if count > 1 else ''}"


def _where_measured(run: _Run, key: GroupKey) -> tuple[str, ...]:
    """The ebpf modes that have a bar of a line: host routing, which runs measure on request, where this one did."""
    return (*EBPF, HOST) if key._replace(mode=HOST) in run.rounds else EBPF


def _connect_bars(run: _Run) -> Iterator[BarRow]:
    rounds, rate = run.rounds, f"new connections/s, last of {SIZE:,} Services"
    direct = GroupKey(DIRECT, "connect", SIZE, LAST)
    for mode in _where_measured(run, direct):
        row = BarRow(f"{rate} / direct, on a node without rules", mode, 1.10, True)
        yield _ratio(run, row, against(rounds, direct._replace(mode=mode), DIRECT, "rate"), direct)
    tracked = against(rounds, direct._replace(mode=CONNTRACK), DIRECT, "rate")
    note = f"connection tracking alone / direct {tracked.value:.2f}" if tracked else ""
    row = BarRow(f"{rate} / direct with connections tracked", "nftables", 0.95, True)
    yield _ratio(run, row, against(rounds, direct._replace(mode=row.mode), CONNTRACK, "rate"), direct, note)
    for mode, limit in (*((mode, 0.97) for mode in EBPF), ("nftables", 0.80)):
        row = BarRow(f"{rate} / to the pod's own address on the same node", mode, limit, True)
        pod = GroupKey(mode, "pod", SIZE, "")
        own = between_scenarios(rounds, direct._replace(mode=mode), pod, "rate")
        yield _ratio(run, row, own, direct if pod in rounds else pod)
    row = BarRow(f"{rate} / iptables", "nftables", 8.0, True)
    yield _ratio(run, row, against(rounds, direct._replace(mode=row.mode), "iptables", "rate"), direct)
    yield from _latency_bars(run)


def _latency_bars(run: _Run) -> Iterator[BarRow]:
    many = GroupKey(DIRECT, "connect", MOST, LAST)
    one = many._replace(scenario="connect-alone", position="")
    own = between_scenarios(run.rounds, many, one, "p99")
    note = f"direct itself {own.value:.2f}" if own else ""
    for mode in ("nftables", *EBPF):
        row = BarRow(f"p99 connect latency, {MOST:,} Services / 1", mode, 1.10, False)
        ratio = between_scenarios(run.rounds, many._replace(mode=mode), one._replace(mode=mode), "p99")
        yield _ratio(run, row, ratio, many if one in run.rounds else one, note)
    key = GroupKey("ebpf-connect", "connect", SIZE, LAST)
    row = BarRow(f"p99 connect latency, last of {SIZE:,} Services / nftables", key.mode, 1.15, False)
    yield _ratio(run, row, against(run.rounds, key, "nftables", "p99"), key)


def _packet_bars(results: Results, run: _Run) -> Iterator[BarRow]:
    size = max(results.settings.fixed_services)
    place = f"at {size:,} Services"
    bulk = GroupKey(DIRECT, "TCP_STREAM", size, LAST)
    for mode in _where_measured(run, bulk):
        row = BarRow("bulk TCP through a clusterIP / direct", mode, 0.98, True)
        yield _against_direct(run, row, bulk._replace(mode=mode), place)
    key = GroupKey(SNAT, "north-remote-pps", size, "")
    for mode, limit in ((SNAT, 4.2), *((mode, 3.0) for mode in FORWARDING)):
        row = BarRow("packets/s to a remote backend / plain forwarding", mode, limit, True)
        yield _against_direct(run, row, key._replace(mode=mode), f"{place}; packets of the kernel's own making")
    connects = key._replace(scenario="north-remote")
    for mode, limit in FORWARDING.items():
        row = BarRow(f"new connections/s from outside to another node / {SNAT}", mode, limit, True)
        ratio = against(run.rounds, connects._replace(mode=mode), SNAT, "rate")
        yield _ratio(run, row, ratio, connects._replace(mode=mode), place)
    row = BarRow("XDP program, established node-port flow, DNAT and SNAT", "ebpf-xdp", 150.0, False, "ns")
    cost = key._replace(scenario="xdp-cost")
    yield _absolute(run, row, cost, "ns", note=f"{place}; test run, its own 30 to 40 ns included", alone=True)


def _against_direct(run: _Run, row: BarRow, key: GroupKey, note: str) -> BarRow:
    return _ratio(run, row, against(run.rounds, key, DIRECT, "rate"), key, note)


def _control_bars(endpoints: int, run: _Run) -> Iterator[BarRow]:
    def key(mode: str, scenario: str) -> GroupKey:
        return GroupKey(mode, scenario, MOST, "")

    size = f"{MOST:,} Services x {endpoints} endpoints"
    limits = {"nftables": (0.8, 130.0), **dict.fromkeys(EBPF, (1.0, 160.0))}
    for mode, (seconds, _) in limits.items():
        row = BarRow(f"cold start, {size}: objects to kernel", mode, seconds, False, "s")
        yield _absolute(run, row, key(mode, "coldstart"), "seconds")
    for mode in limits:
        row = BarRow(f"one endpoint changes at {MOST:,} Services, event to kernel, p99", mode, 1.0, False, "ms")
        yield _absolute(run, row, key(mode, "change"), "p99", 1e-6)
    for mode, (_, megabytes) in limits.items():
        row = BarRow(f"control plane memory, {size}", mode, megabytes, False, "MB")
        yield _absolute(run, row, key(mode, "coldstart"), "rss", 1e-6, alone=True)


def bars(results: Results, analysis: Analysis | None = None) -> list[BarRow]:
    """Every bar, in the modes that the run has."""
    analysis = analysis or analyse(results)
    run = _Run(by_group(results.cells), analysis)
    rows = [
        *_connect_bars(run),
        *_packet_bars(results, run),
        *_control_bars(results.settings.endpoints, run),
    ]
    return [row for row in rows if row.mode in results.settings.modes]


def number(value: float, unit: str = "") -> str:
    """A bar's figure for people: three digits that count, and the unit."""
    text = f"{value:.0f}" if value >= 100 else f"{value:.3g}" if unit else f"{value:.2f}"
    return f"{text} {unit}".strip()


def as_records(rows: list[BarRow]) -> list[dict[str, object]]:
    """The bars as a table: bar, measured, verdict, interval, spread, rounds, noise floor."""
    return [
        {
            "what": row.what,
            "mode": row.mode,
            "bar": ("≥ " if row.at_least else "≤ ") + f"{row.limit:g} {row.unit}".strip(),
            "measured": "" if row.measured is None else number(row.measured, row.unit),
            "verdict": row.verdict.value,
            "interval": "" if row.measured is None else f"{number(row.low)} to {number(row.high)}",
            "spread": "" if row.measured is None else f"{row.spread:.0%}",
            "rounds": "" if row.measured is None else row.rounds,
            "noise floor": "" if row.measured is None else floor_text(row.floor),
            "note": row.note,
        }
        for row in rows
    ]


def sentences(rows: list[BarRow]) -> list[str]:
    """How many are met, which are missed, and which cannot be judged."""
    count = {verdict: [row for row in rows if row.verdict is verdict] for verdict in Verdict}
    judged = len(rows) - len(count[Verdict.UNMEASURED])
    if not judged:
        return ["No bar was measured in this run; the full profile measures all of them."]
    said = [f"{len(count[Verdict.MET])} of {judged} bars that were measured are met."]
    for verdict, label in ((Verdict.MISSED, "missed"), (Verdict.UNCLEAR, "cannot be judged from this run")):
        if count[verdict]:
            modes: dict[str, list[str]] = {}
            for row in count[verdict]:
                modes.setdefault(row.what, []).append(row.mode)
            names = "; ".join(f"{what} ({', '.join(found)})" for what, found in modes.items())
            said.append(f"{len(count[verdict])} {label}: {names}.")
    return said
