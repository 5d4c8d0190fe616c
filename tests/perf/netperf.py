"""The bench's load generator against netperf's, over loopback: TCP_CRR, TCP_RR and UDP_RR, in turns.

    python -m tests.perf.netperf [--rounds 9]

netperf must be installed (Debian 12: non-free). A round is a second of each, in shuffled order; ratios are ours to
netperf's of the same round, with their 95 % confidence interval.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable

from dataplane.bench import netperf
from dataplane.bench.native import load_tool
from dataplane.bench.stats import paired_ratio

_HERE, _OURS, _DATA = "127.0.0.1", 23400, 23401
TESTS = {"crr": "TCP_CRR", "rr": "TCP_RR", "urr": "UDP_RR"}


def ours(operation: str) -> dict[str, float]:
    """A second of load.c."""
    line = f"{operation} {_HERE} {_OURS} 1 -\n"
    done = subprocess.run([*load_tool().argv, "run"], input=line, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def theirs(operation: str) -> dict[str, float]:
    """A second of netperf."""
    return netperf.measure(
        lambda words: subprocess.run(words, check=False, capture_output=True, text=True),
        operation, _HERE, (_HERE, _DATA), 1.0,
    )  # fmt: skip


def compare(rounds: int) -> None:
    """Measure and print a line for each test."""
    ways: tuple[Callable[[str], dict[str, float]], ...] = (ours, theirs)
    for operation, name in TESTS.items():
        rates: dict[Callable[[str], dict[str, float]], list[float]] = {way: [] for way in ways}
        medians: dict[Callable[[str], dict[str, float]], list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in random.sample(ways, 2):
                found = way(operation)
                rates[way].append(found["operations"] / found["seconds"])
                medians[way].append(found["p50"] / 1e3)
        ratio = paired_ratio(rates[ours], rates[theirs])
        told = [f"{statistics.median(rates[way]):,.0f}/s, p50 {statistics.median(medians[way]):.1f} us" for way in ways]
        print(f"{name}: ours {told[0]}; netperf {told[1]}; ratio {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")


def main() -> int:
    """Start both servers, compare, end them."""
    parser = argparse.ArgumentParser(description="The bench's load generator against netperf's.")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if not netperf.installed():
        print("netperf is not installed: on Debian 12 it is in non-free (apt-get install netperf)", file=sys.stderr)
        return 1
    listener = subprocess.Popen([*load_tool().argv, "serve", str(_OURS), "1"], stdout=subprocess.PIPE)
    server = subprocess.Popen(["netserver", "-D", "-L", _HERE, "-p", str(netperf.CONTROL_PORT)], stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None, "it was started with a pipe"
        listener.stdout.readline()
        compare(args.rounds)
    finally:
        for process in (listener, server):
            process.kill()
            process.communicate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
