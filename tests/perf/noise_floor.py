"""Does the noise floor hold on this machine? Real runs in which the truth is known.

    python -m tests.perf.noise_floor [--runs 20] [--rounds 9] [--seconds 0.1]

A third node is direct once more, with rules in the way of its packets that make new connections 0, 3, 10 or 30 %
slower. Each run must find the slowdown, or declare it too small for its floor, and must find none where there is none.
Exit status 1 when a verdict was wrong. Needs root; takes some minutes.
"""

import argparse
import math
import random
import statistics
import sys
from typing import NamedTuple

import msgspec

from dataplane.bench.figures import noise
from dataplane.bench.load.native import load_tool
from dataplane.bench.modes import AGAIN, DIRECT, MODES, Mode
from dataplane.bench.profiles import Overrides, settings
from dataplane.bench.rig import Rig, lab_name, remove_abandoned
from dataplane.bench.scenarios import SCENARIOS, Position

SLOWED = "slowed"
LEVELS = (0.0, 0.03, 0.10, 0.30)
_TRIAL_RULES, _TRIAL_ROUNDS = 2000, 9


class Injection:
    """Rules that no packet matches, in front of everything that enters a node: each costs every packet a little."""

    def __init__(self, rig: Rig) -> None:
        self._rig, self._node = rig, rig.nodes[SLOWED]

    def rules(self, count: int) -> None:
        """So many instead of those that there are."""
        lines = ["add table inet slow", "delete table inet slow"]
        if count:
            lines += ["add table inet slow", "add chain inet slow c { type filter hook prerouting priority -300; }"]
            lines += ["add rule inet slow c ip saddr 203.0.113.1 counter"] * count
        self._rig.lab.run(self._node, ["nft", "-f", "-"], input="\n".join(lines) + "\n")


def rate(rig: Rig, mode: str, seconds: float) -> float:
    """New connections a second."""
    scenario = SCENARIOS["connect"]
    found = rig.traffic(mode, scenario.operation, rig.target(mode, scenario, 1, Position.LAST), seconds, False)
    return float(found["operations"] / found["seconds"])


def cost_of_a_rule(rig: Rig, injection: Injection, seconds: float) -> float:
    """How much longer a connection takes for each rule, as a share of the time without any."""
    shares = []
    for _ in range(_TRIAL_ROUNDS):
        injection.rules(0)
        quick = rate(rig, SLOWED, seconds)
        injection.rules(_TRIAL_RULES)
        shares.append((quick / rate(rig, SLOWED, seconds) - 1) / _TRIAL_RULES)
    return statistics.median(shares)


class Outcome(NamedTuple):
    """One run's verdict on the slowed node."""

    verdict: noise.Verdict
    wrong: bool


def one_run(rig: Rig, level: float, rounds: int, seconds: float, chance: random.Random) -> Outcome:
    """A run of three modes with the statistics of the bench."""
    values: dict[str, dict[int, float]] = {DIRECT: {}, AGAIN: {}, SLOWED: {}}
    for number in range(rounds):
        for mode in chance.sample(sorted(values), len(values)):
            values[mode][number] = rate(rig, mode, seconds)
    found = noise.line(values, (DIRECT, AGAIN))
    verdict = noise.judge(found, SLOWED, DIRECT, noise.comparisons([found]))
    twice = 2 * math.log1p(verdict.floor)
    missed = not verdict.real and -math.log1p(-level) > twice
    return Outcome(verdict, missed or (verdict.real and (not level or verdict.difference > 0)))


def main() -> int:
    """Measure, print a line for each level, and say whether a verdict was wrong."""
    parser = argparse.ArgumentParser(description="Does the noise floor hold on this machine?")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1)
    args = parser.parse_args()
    MODES[SLOWED] = Mode(SLOWED, "direct with rules in the way", reference=True)
    wanted = settings("quick", Overrides(scenarios=("connect",), services=(1,)))
    wanted = msgspec.structs.replace(wanted, modes=(DIRECT, AGAIN, SLOWED))
    remove_abandoned()
    chance, wrong = random.Random(1), 0
    with Rig(lab_name(), wanted, load_tool()) as rig:
        injection = Injection(rig)
        each = cost_of_a_rule(rig, injection, args.seconds)
        print(f"a rule makes a connection {each:.4%} longer", flush=True)
        for level in LEVELS:
            injection.rules(round(level / (1 - level) / each) if level else 0)
            outcomes = [one_run(rig, level, args.rounds, args.seconds, chance) for _ in range(args.runs)]
            found = [o.verdict for o in outcomes if o.verdict.real]
            floors = sorted(o.verdict.floor for o in outcomes)
            seen = statistics.median(o.verdict.difference for o in outcomes)
            bad = sum(o.wrong for o in outcomes)
            wrong += bad
            print(
                f"slowed by {level:.0%}: found in {len(found)} of {len(outcomes)} runs, declared too small in "
                f"{len(outcomes) - len(found)}, wrong in {bad}; measured {seen:+.1%} (median), floors "
                f"{floors[0]:.1%} to {floors[-1]:.1%}, median {statistics.median(floors):.1%}",
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
