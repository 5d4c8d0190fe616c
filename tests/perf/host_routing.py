"""What going past the node's stack buys, mechanism by mechanism: a table of docs/cost-model.md.

    python -m tests.perf.host_routing [--services 1000] [--rounds 100] [--seconds 0.02] [--write]

Runs a lab of its own, as root; takes about two minutes. What is measured is the client's own processor time in an
operation, its packets' way through the node included, which is much steadier than a rate on a machine that others use,
too. Every round takes all ways in another order; of the rounds of each, the least disturbed tenth is told. Prints the
table, or with --write puts it into the page.
"""

import argparse
import os
import random
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from dataplane.bench.load.native import load_tool
from dataplane.bench.modes import AGAIN, DIRECT
from dataplane.bench.profiles import Overrides, settings
from dataplane.bench.rig import Rig, lab_name
from dataplane.bench.scenarios import SCENARIOS, Position
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, ProgramType
from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.spec import LabError, Node
from tests.perf import page
from tests.perf.cost_model import _QUIET as QUIET
from tests.perf.cost_model import PAGE
from tests.perf.cost_model import _processor_seconds as processor_seconds
from tests.perf.page import Row

MODES = (DIRECT, AGAIN, "ebpf-connect", "ebpf-tc", "ebpf-tc-host", "ebpf-host")
_REDIRECT_PEER = 155  # enum bpf_func_id


class Way(NamedTuple):
    """A row of the table: whose node, and whether to the pod's own address; remote: to the pod of another node."""

    title: str
    mode: str
    pod: bool = False
    remote: bool = False


WAYS = (
    Way("direct", DIRECT, pod=True),
    Way("handed over by a program without any look-up", AGAIN, pod=True),
    Way("pod's address, past the stack (tc)", "ebpf-tc-host", pod=True),
    Way("clusterIP, past the stack (connect, tc)", "ebpf-host"),
    Way("clusterIP, past the stack (tc)", "ebpf-tc-host"),
    Way("clusterIP, by the stack (connect)", "ebpf-connect"),
    Way("clusterIP, by the stack (tc)", "ebpf-tc"),
)
REMOTE = (
    Way("direct, to a pod of another node", DIRECT, remote=True),
    Way("the same, past the stack of the client's node", "ebpf-tc-host", remote=True),
    Way("the same, by the stack (tc)", "ebpf-tc", remote=True),
)


def _hand_over(ifindex: int) -> int:
    """A program that hands IPv4 packets to the other end of a device; returns its descriptor."""

    def instruction(operation: int, registers: int, offset: int, number: int) -> bytes:
        return struct.pack("<BBhi", operation, registers, offset, number)

    code = (
        instruction(0x61, 0x12, 16, 0)  # w2 = skb->protocol
        + instruction(0x55, 2, 4, socket.htons(0x0800))
        + instruction(0xB7, 1, 0, ifindex)
        + instruction(0xB7, 2, 0, 0)
        + instruction(0x85, 0, 0, _REDIRECT_PEER)
        + instruction(0x95, 0, 0, 0)
        + instruction(0xB4, 0, 0, -1)  # TC_ACT_UNSPEC
        + instruction(0x95, 0, 0, 0)
    )
    return bpf.program_load(code, ProgramType.SCHED_CLS, AttachType.NONE, "hand_over")


@contextmanager
def _handed_over(node: Node) -> Iterator[None]:
    """A node's two pods get each other's packets without a look at them."""
    held = []
    with netns(node.netns):
        one, other = (socket.if_nametoindex(pod.device) for pod in node.pods)
        for here, there in ((one, other), (other, one)):
            program = _hand_over(there)
            held += [program, bpf.link_create(program, here, AttachType.TCX_INGRESS)]
    try:
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def _measure(rig: Rig, way: Way, scenario: str, services: int, seconds: float) -> float:
    """Nanoseconds of the client's processor time in an operation."""
    what = SCENARIOS[scenario]
    address, port = rig.target(way.mode, what, services, Position.LAST)
    if way.pod or way.remote:
        port = rig.target(DIRECT, what, services, Position.LAST)[1]
        address = rig.pod(way.mode) if way.pod else rig.lab.nodes[-1].pods[0].addresses[rig.lab.spec.families[0]]
    [client], _ = rig.ends(way.mode, what)
    before = processor_seconds(client)
    figures = rig.traffic(way.mode, what.operation, (address, port), seconds, outside=False)
    spent = processor_seconds(client) - before
    if figures.get("failures"):
        raise LabError(f"{way.title}: {figures['failures']:.0f} operations failed")
    nanoseconds: float = 1e9 * spent / max(1, figures["operations"])
    return nanoseconds


def measured(rig: Rig, ways: Sequence[Way], scenario: str, services: int, rounds: int, seconds: float) -> list[str]:
    """For each way its time in the least disturbed tenth of rounds, and the first one's divided by it."""
    found: dict[str, list[float]] = {way.title: [] for way in ways}
    for number in range(rounds + 2):  # two to warm up
        for way in random.sample(ways, len(ways)):
            nanoseconds = _measure(rig, way, scenario, services, seconds)
            if number > 1:
                found[way.title].append(nanoseconds)
    quiet = [sorted(found[way.title])[int(QUIET * rounds)] for way in ways]
    return [f"{each:.0f} ({quiet[0] / each:.2f})" for each in quiet]


def table(services: int, rounds: int, seconds: float) -> list[Row]:
    """Rows of the table: a way, and what it takes in each scenario."""
    wanted = msgspec.structs.replace(settings("quick", Overrides(services=(services,))), modes=MODES)
    rows: list[Row] = []
    with Rig(lab_name(), wanted, load_tool()) as rig:
        for mode in MODES[2:]:
            rig.restart_agent(mode)
            rig.load(mode, services)
        with _handed_over(rig.nodes[AGAIN]):
            for ways in (WAYS, REMOTE):
                columns = [measured(rig, ways, name, services, rounds, seconds) for name in ("connect", "TCP_RR")]
                rows += [(way.title, *texts) for way, *texts in zip(ways, *columns, strict=True)]
    return rows


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    head = ("ns of the client's processor (direct / this)", "one connection", "a byte each way")
    text = page.table(head, table(wanted.services, wanted.rounds, wanted.seconds))
    if wanted.write:
        PAGE.write_text(page.write(PAGE.read_text(), {"past": text}))
    else:
        print(text)


if __name__ == "__main__":
    main()
