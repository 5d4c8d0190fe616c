"""Does the noise floor hold on this machine? Real runs in which the truth is known.

    python -m tests.perf.noise_floor [--plane nftables] [--levels 0,3,10,30] [--runs 20] [--rounds 9] [--seconds 0.1]

Four nodes: direct, direct once more, and the plane twice. On the second of the plane's nodes packets pass a loop, rules
that none of them matches, which makes new connections 0, 3, 10 or 30 % slower. Each run must find that slowdown or have
a floor above it; with 0 % the plane's two nodes must not be told apart, and direct and direct again never. Exit status
1 when a verdict was wrong. Needs root; takes a minute and a half for each level.
"""

import argparse
import os
import random
import statistics
import sys
from typing import NamedTuple

import msgspec

from dataplane.bench.figures import noise
from dataplane.bench.load.native import load_tool
from dataplane.bench.modes import AGAIN, DIRECT, MODES
from dataplane.bench.profiles import Overrides, settings
from dataplane.bench.rig import Rig, lab_name, remove_abandoned
from dataplane.bench.scenarios import SCENARIOS, Position

SLOWED = "slowed"
PLANES = ("iptables", "nftables", "ebpf-connect", "ebpf-tc", "ebpf-xdp")
SERVICES = 100
_TRIAL_RULES, _TRIAL_ROUNDS = 300, 15


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
    found = rig.traffic(mode, scenario.operation, rig.target(mode, scenario, SERVICES, Position.LAST), seconds, False)
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
    """One run's verdicts: on the slowed node against its peer, and on direct against itself."""

    slowed: noise.Verdict
    again: noise.Verdict

    def wrong(self, level: float) -> bool:
        """True if a difference is named that is not there, or one is missed that the floor promises to find."""
        invented = self.slowed.real and (not level or self.slowed.difference > 0)
        return self.again.real or invented or (not self.slowed.real and level > self.slowed.floor)


def one_run(rig: Rig, plane: str, args: argparse.Namespace, chance: random.Random) -> Outcome:
    """A run of four modes with the statistics of the bench."""
    values: dict[str, dict[int, float]] = {DIRECT: {}, AGAIN: {}, plane: {}, SLOWED: {}}
    for number in range(args.rounds):
        for mode in chance.sample(sorted(values), len(values)):
            values[mode][number] = rate(rig, mode, args.seconds)
    found = noise.line(values, (DIRECT, AGAIN))
    compared = noise.comparisons([found])
    return Outcome(noise.judge(found, SLOWED, plane, compared), noise.judge(found, AGAIN, DIRECT, compared))


def report(level: float, outcomes: list[Outcome]) -> int:
    """Print a line for a level; returns how many verdicts were wrong."""
    slowed = [o.slowed for o in outcomes]
    found = sum(v.real for v in slowed)
    floors = sorted(v.floor for v in slowed)
    seen = statistics.median(v.difference for v in slowed)
    again = sum(o.again.real for o in outcomes)
    wrong = sum(o.wrong(level) for o in outcomes)
    print(
        f"slowed by {level:.0%}: found in {found} of {len(outcomes)} runs, declared too small in "
        f"{len(outcomes) - found}; direct told from itself in {again}; wrong in {wrong}; measured {seen:+.1%} "
        f"(median), floors {floors[0]:.1%} to {floors[-1]:.1%}, median {statistics.median(floors):.1%}",
        flush=True,
    )
    return wrong


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Does the noise floor hold on this machine?")
    parser.add_argument("--plane", default="nftables", choices=PLANES)
    parser.add_argument("--levels", default="0,3,10,30", metavar="P,...", help="per cent")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.1)
    return parser


def main() -> int:
    """Measure, print a line for each level, and say whether a verdict was wrong."""
    args = arguments().parse_args()
    plane = args.plane
    MODES[SLOWED] = MODES[plane]._replace(title=f"{plane} with a loop in the way")
    wanted = settings("quick", Overrides(scenarios=("connect",), services=(SERVICES,)))
    wanted = msgspec.structs.replace(wanted, modes=(DIRECT, AGAIN, plane, SLOWED))
    remove_abandoned()
    chance, wrong = random.Random(1), 0
    with Rig(lab_name(), wanted, load_tool()) as rig:
        for mode in (plane, SLOWED):
            rig.restart_agent(mode)
            rig.load(mode, SERVICES)
        injection = Injection(rig)
        each = cost_of_a_rule(rig, injection, args.seconds)
        print(
            f"{plane}, {args.rounds} rounds of {args.seconds:g} s; load average {os.getloadavg()[0]:.2f}; a rule makes "
            f"a connection {each:.4%} longer",
            flush=True,
        )
        for level in (int(text) / 100 for text in args.levels.split(",")):
            injection.rules(max(0, round(level / (1 - level) / each)) if level else 0)
            wrong += report(level, [one_run(rig, plane, args, chance) for _ in range(args.runs)])
    print(f"load average {os.getloadavg()[0]:.2f}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
