"""What Maglev's choice of an endpoint costs beside a random one: `python -m tests.perf.maglev_choice` (as root).

A test run hands the same first packet to a program again and again. Its endpoint has no route, so the program chooses,
finds no way, and passes the packet on as it came, without noting a flow: all but the choice is the same. Prints the
least and the median of many means of 250 packets, in ns, taken in turns, and the median of their differences.
"""

import statistics
from collections.abc import Callable

import msgspec
from scapy.layers.inet import IP, TCP

from dataplane.kernel.ebpf.bpf import ProgramRun
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.maglev import Hashing
from tests.kernel.bpf_packets.bench import Bench, bench, entry

ROUNDS, REPEAT = 400, 250
ADDRESSES = {Algorithm.RANDOM: "198.51.100.1", Algorithm.MAGLEV: "198.51.100.2"}


def install(node: Bench) -> None:
    """Two Services of one endpoint, so that no memory of ways to many of them counts, one for each algorithm."""
    node.links.route("203.0.113.0/24", kind="unreachable")
    node.tables.steady.hashing = Hashing(251, 1)
    for algorithm, address in ADDRESSES.items():
        service = entry(algorithm.value, ["203.0.113.1"], load_balancer=address)
        node.install(msgspec.structs.replace(service, algorithm=algorithm))


def compare(node: Bench, run: Callable[..., ProgramRun]) -> str:
    """Both, in turns."""
    frames = {
        algorithm: node.frame(IP(src="192.0.2.77", dst=address) / TCP(sport=4000, dport=80, flags="S"))
        for algorithm, address in ADDRESSES.items()
    }
    times: dict[Algorithm, list[int]] = {algorithm: [] for algorithm in ADDRESSES}
    for _ in range(ROUNDS):
        for algorithm, frame in frames.items():
            times[algorithm].append(run(frame, repeat=REPEAT).duration_ns)
    random, maglev = times[Algorithm.RANDOM], times[Algorithm.MAGLEV]
    more = statistics.median(m - r for r, m in zip(random, maglev, strict=True))
    shown = [f"{min(values)} / {statistics.median(values):.0f}" for values in (random, maglev)]
    return f"random {shown[0]}, maglev {shown[1]}, maglev - random {more:+.0f} ns"


def main() -> None:
    """Measure and print."""
    with bench() as node:
        install(node)
        with node.counted() as counted:
            for name, run in (("tc", node.tc), ("xdp", node.xdp)):
                print(f"{name}: {compare(node, run)}")
        print("ways out:", counted)


if __name__ == "__main__":
    main()
