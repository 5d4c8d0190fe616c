"""What counters cost packets that are refused, and that they cost no others: `python -m tests.perf.refusals`.

Two namespaces with the same plan, one of whose tables has no counters and no empty chains for captures in front of its
verdicts. Datagrams of the node's own, each a flow of its own, go to a Service without endpoints and to one that serves,
in turns; the figures are medians of the rounds and of their ratios.
"""

import argparse
import contextlib
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink.conntrack import forget_all
from dataplane.model.net import Protocol
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules import refusals
from tests.kernel.nftables_net import VIP, entry, plan_of, pods
from tests.namespaces import namespaces

SERVED = "10.96.0.12"


@contextlib.contextmanager
def node(*, counters: bool) -> Iterator[str]:
    """A namespace with the plan loaded."""
    with namespaces() as make:
        name = make("refusals")
        for words in ("address add 192.0.2.1/24 dev lo", "route add 10.0.0.0/8 dev lo src 192.0.2.1"):
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        plain = refusals._rules
        if not counters:
            refusals._rules = lambda refusal: list(refusal.rules)
        try:
            plane = in_netns(name, NftablesPlane)
            plane.load(
                plan_of(
                    entry(4, (), protocol=Protocol.UDP, name="nobody"),
                    entry(4, pods(4, 0), protocol=Protocol.UDP, name="served", address=SERVED),
                )
            )
        finally:
            refusals._rules = plain
        yield name


def ns_each(namespace: str, address: str, count: int) -> float:
    """Nanoseconds of processor time of a datagram that opens a flow: the kernel handles it in the sender's."""

    def send() -> float:
        socks = []
        for _ in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect((address, 80))
            socks.append(sock)
        started = time.thread_time_ns()
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(b"?")
        spent = time.thread_time_ns() - started
        for sock in socks:
            sock.close()
        return spent / count

    spent = in_netns(namespace, send)
    in_netns(namespace, forget_all)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--packets", type=int, default=500)
    args = parser.parse_args()
    with node(counters=False) as plain, node(counters=True) as counting:
        for what, address in (("refused", VIP[4]), ("served", SERVED)):
            figures: dict[str, list[float]] = {"without": [], "with": []}
            for number in range(args.rounds):
                sides = [("without", plain), ("with", counting)]
                for name, namespace in sides if number % 2 else reversed(sides):
                    figures[name].append(ns_each(namespace, address, args.packets))
            ratios = [b / a for a, b in zip(figures["without"], figures["with"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            without, counted = (statistics.median(figures[name]) for name in ("without", "with"))
            print(
                f"{what}: {without:.0f} ns without, {counted:.0f} ns with; ratio {middle:.3f} ({low:.3f} to {high:.3f})"
            )


if __name__ == "__main__":
    main()
