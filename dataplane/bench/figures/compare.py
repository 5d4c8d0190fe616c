"""Two runs against each other: which differences are real, which are noise.

Figures of packets are compared as their ratios to direct of the same round, so that a machine that is faster on one
day does not count as a better data plane; the control plane's are compared as they are. A difference is real when
ranks of the rounds differ by more than chance explains (rank sum test, false discoveries bounded over all
comparisons) and its size matters: it is above LEAST_EFFECT and above what the A/A pair of either run differs by.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import msgspec

from dataplane.bench.figures.analyse import GroupKey, PlaceKey, Rounds, by_group, place_line, ratio_text, values
from dataplane.bench.figures.results import Results
from dataplane.bench.figures.stats import Ratio, difference_probability, discoveries, ratio_of_medians
from dataplane.bench.modes import DIRECT
from dataplane.bench.scenarios import SCENARIOS, Kind, Scenario

FALSE_DISCOVERIES = 0.01
LEAST_EFFECT = 0.05
_DATA_FIGURES = ("rate", "p50", "p99", "cpu")
_CONTROL_FIGURES = {"coldstart": ("seconds", "rss"), "change": ("p50", "p99", "cpu"), "rollout": ("p99", "cpu")}
_LEAST_ROUNDS, _MOST_SENTENCES = 4, 5
_OF_DIRECT = "x direct"
_UNITS = {"p50": "ns", "p99": "ns", "seconds": "s", "rss": "B", "cpu": "CPU s/M"}
_NAMES = {"cpu": "processor time", "rss": "memory", "seconds": "duration", "p50": "p50 latency", "p99": "p99 latency"}


class Difference(msgspec.Struct, frozen=True):
    """One figure of one group. unit: of `before` and `after`. ratio: after / before. probability: that chance alone
    explains it (p). least: the smallest relative difference that counts here. verdict: "better", "worse", "same" or
    "too few rounds"."""

    key: GroupKey
    figure: str
    unit: str
    before: float
    after: float
    ratio: Ratio
    probability: float
    least: float
    verdict: str

    def record(self) -> dict[str, object]:
        """As a table's line."""
        interval = ratio_text(self.ratio)
        return {
            "mode": self.key.mode,
            "scenario": self.key.scenario,
            "services": self.key.services,
            "position": self.key.position,
            "figure": self.figure,
            "unit": self.unit,
            "before": f"{self.before:.4g}",
            "after": f"{self.after:.4g}",
            "ratio": interval.split(" ")[0],
            "interval": interval.partition(" ")[2],
            "p": f"{self.probability:.2g}",
            "verdict": self.verdict,
        }

    def sentence(self) -> str:
        """What it means: nftables, connect at 10,000 Services (last): rate 12 % lower, worse (p = 0.0002)."""
        key, change = self.key, self.ratio.value - 1
        where = f"{key.mode}, {key.scenario} at {key.services:,} Services"
        where += f" ({key.position})" if key.position else ""
        figure = _NAMES.get(self.figure, self.figure)
        size = f"{abs(change):.0%} {'higher' if change > 0 else 'lower'}"
        of = " against direct" if self.unit == _OF_DIRECT else ""
        return f"{where}: {figure}{of} {size}, {self.verdict} (p = {self.probability:.2g})."


class Comparison(msgspec.Struct, frozen=True):
    """differences: all that both runs measured. machine: what differs between the machines. unmatched: groups that only
    one run has."""

    differences: list[Difference]
    machine: list[str]
    unmatched: int

    def summary(self) -> str:
        """Sentences: how many are real, what else differs."""
        verdicts = [d.verdict for d in self.differences]
        count = {name: verdicts.count(name) for name in ("better", "worse", "same", "too few rounds")}
        text = [
            f"{len(verdicts)} figures in common: {count['better']} better, {count['worse']} worse, {count['same']} not "
            f"different beyond noise (at most {FALSE_DISCOVERIES:.0%} false, effects under {LEAST_EFFECT:.0%} ignored)"
        ]
        if count["too few rounds"]:
            text.append(f"{count['too few rounds']} have fewer than {_LEAST_ROUNDS} rounds: nothing can be said")
        if self.unmatched:
            text.append(f"{self.unmatched} groups were measured in only one of the runs")
        return "\n".join([*text, *self.machine])

    def sentences(self) -> list[str]:
        """The largest real differences, worst first, then the largest improvements; or that there is none."""
        found = []
        for verdict in ("worse", "better"):
            real = [d for d in self.differences if d.verdict == verdict]
            real.sort(key=lambda d: abs(math.log(d.ratio.value)), reverse=True)
            found += [difference.sentence() for difference in real[:_MOST_SENTENCES]]
            if len(real) > _MOST_SENTENCES:
                found.append(f"And {len(real) - _MOST_SENTENCES} more that are {verdict}.")
        return found or ["Nothing differs beyond noise."]


def _series(rounds: Rounds, key: GroupKey, figure: str) -> list[float]:
    """The figure round by round; of packets as its ratio to direct."""
    mine = values(rounds[key], figure)
    if SCENARIOS[key.scenario].kind is not Kind.DATA or key.mode == DIRECT:
        return list(mine.values())
    base = values(rounds.get(key._replace(mode=DIRECT), {}), figure)
    return [value / base[number] for number, value in mine.items() if base.get(number)]


def _pairs(before: Rounds, after: Rounds) -> Iterator[tuple[GroupKey, str, list[float], list[float]]]:
    for key in before:
        if key not in after:
            continue
        for figure in _figures(SCENARIOS[key.scenario]):
            left, right = _series(before, key, figure), _series(after, key, figure)
            if left and right and all(left) and all(right):
                yield key, figure, left, right


def _figures(scenario: Scenario) -> Sequence[str]:
    if scenario.kind is Kind.EVENT:
        return (scenario.metric,)
    return _CONTROL_FIGURES.get(scenario.name, (scenario.metric,)) if scenario.kind is Kind.CONTROL else _DATA_FIGURES


def _unit(key: GroupKey, figure: str) -> str:
    scenario = SCENARIOS[key.scenario]
    if scenario.kind is Kind.DATA and key.mode != DIRECT:
        return _OF_DIRECT
    if figure == "cpu" and scenario.operation.startswith("iperf3"):
        return "CPU s/GB"
    return scenario.unit if figure in ("rate", scenario.metric) else _UNITS[figure]


def _apart(rounds: Rounds) -> Callable[[PlaceKey, str], float]:
    """Relative difference of the A/A pair in a line, of a figure; 0 where there is none."""

    @cache
    def apart(place: PlaceKey, figure: str) -> float:
        line = place_line(rounds, place, figure)
        return math.expm1(abs(line.apart)) if line is not None and line.apart is not None else 0.0

    return apart


def _machine(before: Results, after: Results) -> list[str]:
    found = []
    for name in ("cpu_model", "cpus", "kernel", "system"):
        old, new = getattr(before.machine, name), getattr(after.machine, name)
        if old != new:
            found.append(f"{name} differs: {old} and {new}")
    if before.settings.load_tool != after.settings.load_tool:
        found.append(f"load generators differ: {before.settings.load_tool} and {after.settings.load_tool}")
    return found


def compare(before: Results, after: Results) -> Comparison:
    """Compare every figure that both runs have."""
    left, right = by_group(before.cells), by_group(after.cells)
    pairs = list(_pairs(left, right))
    probabilities = [difference_probability(old, new) for _, _, old, new in pairs]
    real = discoveries(probabilities, FALSE_DISCOVERIES)
    apart_before, apart_after = _apart(left), _apart(right)
    differences = []
    for (key, figure, old, new), probability, is_real in zip(pairs, probabilities, real, strict=True):
        ratio = ratio_of_medians(new, old)
        median_old, median_new = sorted(old)[len(old) // 2], sorted(new)[len(new) // 2]
        place = PlaceKey(*key[1:])
        least = max(LEAST_EFFECT, apart_before(place, figure), apart_after(place, figure))
        if min(len(old), len(new)) < _LEAST_ROUNDS:
            verdict = "too few rounds"
        elif is_real and abs(math.log(ratio.value)) >= math.log1p(least):
            verdict = "better" if (ratio.value > 1) == (figure == "rate") else "worse"
        else:
            verdict = "same"
        unit = _unit(key, figure)
        differences.append(Difference(key, figure, unit, median_old, median_new, ratio, probability, least, verdict))
    return Comparison(differences, _machine(before, after), len(set(left) ^ set(right)))
