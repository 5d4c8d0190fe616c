"""The bench's load generator against netperf's, over loopback: TCP_CRR, TCP_RR and UDP_RR, in turns.

    python -m tests.perf.netperf [--rounds 9]

netperf must be installed (Debian 12: non-free). A round is a second of each, in shuffled order; ratios are ours to
netperf's of the same round, with their 95 % confidence interval. netperf gives latencies in whole microseconds. Exit
status 1 if the rate of TCP_CRR or TCP_RR differs by more than 10 %, or if the interval is too wide to tell.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable

from dataplane.bench.figures.stats import Ratio, paired_ratio
from dataplane.bench.load.native import load_tool

_HERE, _OURS, _CONTROL, _DATA = "127.0.0.1", 23400, 12865, 23401
TESTS = {"crr": "TCP_CRR", "rr": "TCP_RR", "urr": "UDP_RR"}
JUDGED, NEAR = ("crr", "rr"), 0.10
Sample = tuple[float, float]
"""Operations a second, and the median latency in microseconds."""


def ours(operation: str) -> Sample:
    """A second of load.c."""
    line = f"{operation} {_HERE} {_OURS} 1 -\n"
    done = subprocess.run([*load_tool().argv, "run"], input=line, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return found["operations"] / found["seconds"], found["p50"] / 1e3


def theirs(operation: str) -> Sample:
    """A second of netperf. Its connections for data go to a port that we name, its control connection to its own."""
    command = ["netperf", "-t", TESTS[operation], "-H", _HERE, "-p", str(_CONTROL), "-l", "1"]
    command += ["--", "-P", f"0,{_DATA}", "-k", "THROUGHPUT,P50_LATENCY"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return float(found["THROUGHPUT"]), float(found["P50_LATENCY"])


def judged(ratio: Ratio) -> str:
    """What an interval says of a difference of at most NEAR: "within", "outside" or "cannot be told"."""
    if ratio.high < 1 - NEAR or ratio.low > 1 + NEAR:
        return "outside"
    return "within" if ratio.low >= 1 - NEAR and ratio.high <= 1 + NEAR else "cannot be told"


def compare(rounds: int) -> bool:
    """Measure and print a line for each test; true if those of JUDGED are as near as NEAR."""
    near = True
    ways: tuple[Callable[[str], Sample], ...] = (ours, theirs)
    for operation, name in TESTS.items():
        seen: dict[Callable[[str], Sample], list[Sample]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in random.sample(ways, 2):
                seen[way].append(way(operation))
        ratio = paired_ratio([rate for rate, _ in seen[ours]], [rate for rate, _ in seen[theirs]])
        rates = {way: statistics.median(rate for rate, _ in seen[way]) for way in ways}
        medians = {way: statistics.median(p50 for _, p50 in seen[way]) for way in ways}
        print(
            f"{name}: ours {rates[ours]:,.0f}/s, p50 {medians[ours]:.1f} us; netperf {rates[theirs]:,.0f}/s, "
            f"p50 {medians[theirs]:.0f} us; ratio of rates {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]: "
            f"{judged(ratio)} of {NEAR:.0%}",
            flush=True,
        )
        near &= operation not in JUDGED or judged(ratio) == "within"
    print(f"load average {os.getloadavg()[0]:.2f}")
    return near


def main() -> int:
    """Start both servers, compare, end them."""
    parser = argparse.ArgumentParser(description="The bench's load generator against netperf's.")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if not shutil.which("netserver"):
        print("netperf is not installed: on Debian 12 it is in non-free (apt-get install netperf)", file=sys.stderr)
        return 1
    listener = subprocess.Popen([*load_tool().argv, "serve", str(_OURS), "1"], stdout=subprocess.PIPE)
    server = subprocess.Popen(["netserver", "-D", "-L", _HERE, "-p", str(_CONTROL)], stdout=subprocess.DEVNULL)
    try:
        assert listener.stdout is not None, "it was started with a pipe"
        listener.stdout.readline()
        near = compare(args.rounds)
    finally:
        for process in (listener, server):
            process.kill()
            process.communicate()
    return 0 if near else 1


if __name__ == "__main__":
    sys.exit(main())
