"""Hold packets past the node's stack against the stack itself, while policies and other programs' rules come and go.

python -m tests.past_stack.run --flows 100000 --seed 1 [--log docs/host-routing.log]

In a lab of two nodes, host routing on as `auto` decides it. Flows (TCP and UDP, IPv4 and IPv6; between pods, through
Services, from outside) are opened, used and closed, many at a time. Meanwhile a NetworkPolicy may select a pod, whose
packets are then dropped by a rule, and another program may load rules at any hook: by address, by protocol, for new
connections alone, at devices, in the legacy tables. What was sent while a rule was in force must not be answered before
it is taken back (let through); what no rule concerned must be answered, and every connection live on (lost). Exit
status 1 if anything was let through or lost.
"""

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TextIO

from dataplane.kernel.foreign_chains import TableName
from dataplane.planes.ebpf.maps.layout import Sizes
from tests.kernel.host_lab import FAMILIES, HostLab, host_lab
from tests.past_stack.deciders import PODS, Deciders
from tests.past_stack.denials import Book, Denial
from tests.past_stack.flows import Flows
from tests.past_stack.strangers import Command, Stranger, Strangers

OWN: frozenset[TableName] = frozenset({("inet", "watch"), ("inet", "denied")})
"""The lab's counter, and what enforces policies here: a plugin that did it by rules of its own would keep everything on
the stack, and policies would not matter."""
DENIED = """table inet denied {
    set to4 { type ipv4_addr; }
    set from4 { type ipv4_addr; }
    set to6 { type ipv6_addr; }
    set from6 { type ipv6_addr; }
    chain forward {
        type filter hook forward priority 0;
        ip daddr @to4 drop
        ip saddr @from4 drop
        ip6 daddr @to6 drop
        ip6 saddr @from6 drop
    }
}"""
PAUSE, FREE = (0.02, 0.15), (0.1, 0.5)
"""Seconds between two changes, and while nobody must stay on the stack."""
BACK_SHARE = 0.6
"""Of changes that take back what is in force, where there is something."""
NOTICED_SECONDS = 60.0
REPORT_SECONDS = 15.0
MOST_OPEN = 500
ROOM = Sizes(frontends=512, slots=1024, backends=512, services=256, tcp_flows=131072, udp_flows=131072)
"""Of the flows of a run all that are not collected yet have room."""


class Changes:
    """A thread that makes policies and other programs' rules come and go until `end`. count: how often, by kind.
    slowest: seconds from the end of a command that loaded rules until the plane knew of them."""

    def __init__(self, lab: HostLab, book: Book, deciders: Deciders, seed: int) -> None:
        self._lab, self._book, self._deciders = lab, book, deciders
        self._random = random.Random(seed + 1)
        self._strangers = Strangers(lab, self._random)
        self._policies: dict[str, tuple[Denial, str]] = {}
        self._stranger: Stranger | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="changes")
        self.count: Counter[str] = Counter()
        self.slowest = 0.0
        self.failed: list[str] = []
        self._thread.start()

    def end(self) -> None:
        """Take everything back; fine twice."""
        self._end.set()
        self._thread.join()

    def check(self) -> None:
        """Raise AssertionError if the thread has failed."""
        assert not self.failed, self.failed

    def _run(self) -> None:
        try:
            while not self._end.wait(self._random.uniform(*(PAUSE if self._in_force() else FREE))):
                self._one_change()
            while self._in_force():
                self._take_back()
        except Exception as error:  # noqa: BLE001 - told by `check`, in the thread that waits for this one
            self.failed.append(repr(error))

    def _in_force(self) -> bool:
        return bool(self._policies) or self._stranger is not None

    def _one_change(self) -> None:
        if self._in_force() and self._random.random() < BACK_SHARE:
            self._take_back()
        else:
            self._random.choice((self._policy, self._policy, self._rules))()

    def _take_back(self) -> None:
        """One of what is in force."""
        if self._stranger is not None and (not self._policies or self._random.random() < 0.5):
            self._rules()
        else:
            self._allow(self._random.choice(list(self._policies)))

    def _do(self, command: Command) -> None:
        self._lab.lab.run(self._lab.node, list(command))

    def _policy(self) -> None:
        pod = self._random.choice(PODS)
        if pod in self._policies:
            self._allow(pod)
            return
        sets = self._random.choice((("to",), ("from",), ("to", "from")))
        denial = self._book.add(Denial(f"policy {pod} {sets}", frozenset({pod})))
        self._deciders.policy(pod, True)
        elements = [
            f"element inet denied {name}{family.value} {{ {self._lab.address(pod, family)} }}"
            for name in sets
            for family in FAMILIES
        ]
        self._do(("nft", "; ".join(f"add {each}" for each in elements)))
        denial.hold()
        self._policies[pod] = (denial, "; ".join(f"delete {each}" for each in elements))
        self.count["policies"] += 1

    def _allow(self, pod: str) -> None:
        denial, undo = self._policies.pop(pod)
        denial.lift()
        self._do(("nft", undo))
        denial.end()
        self._deciders.policy(pod, False)

    def _rules(self) -> None:
        stranger = self._stranger
        if stranger is not None:
            if stranger.denial is not None:
                stranger.denial.lift()
            for command in stranger.remove:
                self._do(command)
            if stranger.denial is not None:
                stranger.denial.end()
            self._stranger = None
            return
        stranger = self._strangers.draw()
        if stranger.denial is not None:
            self._book.add(stranger.denial)
        for command in stranger.load:
            self._do(command)
        self._stranger = stranger
        loaded = time.monotonic()
        while self._deciders.why() is None:
            assert time.monotonic() < loaded + NOTICED_SECONDS, f"not noticed: {stranger.load}"
            time.sleep(0.001)
        self.slowest = max(self.slowest, time.monotonic() - loaded)
        if stranger.denial is not None:
            stranger.denial.hold()
        self.count[f"rules: {stranger.name}"] += 1


class Done(NamedTuple):
    """What a run saw. ways: packets, see HostLab.ways."""

    flows: Flows
    changes: Changes
    ways: dict[str, int]


def run(lab: HostLab, count: int, seed: int, say: Callable[[str], None], most: int = MOST_OPEN) -> Done:
    """So many flows in a lab of host_lab(). say: is told now and then how far it is."""
    lab.lab.run(lab.node, ["nft", "-f", "-"], input=DENIED)
    book = Book()
    flows = Flows(lab, book, seed, most)
    began = told = time.monotonic()
    said = 0
    with Deciders(lab, OWN) as deciders, lab.ways() as ways:
        changes = Changes(lab, book, deciders, seed)

        def each_turn() -> None:
            nonlocal told, said
            changes.check()
            if time.monotonic() - told > REPORT_SECONDS:
                told = time.monotonic()
                say(f"{told - began:6.0f} s: {_summary(flows, changes)}")
            while said < len(flows.faults):
                say(f"  {flows.faults[said]}")
                said += 1

        try:
            flows.run(count, each_turn, changes.end)
        finally:
            changes.end()
    changes.check()
    return Done(flows, changes, ways)


def _summary(flows: Flows, changes: Changes) -> str:
    return (
        f"{flows.opened} flows, {flows.exchanges} exchanges, {flows.dropped} questions dropped, "
        f"{sum(changes.count.values())} changes, {flows.let_through} let through, {flows.lost} lost"
    )


def _report(done: Done, out: TextIO) -> None:
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(done.changes.count.items()))
    print(f"changes: {kinds}", file=out)
    print(f"rules were known {done.changes.slowest * 1e3:.1f} ms after their command had ended, at most", file=out)
    print("packets: " + ", ".join(f"{way} {count}" for way, count in done.ways.items()), file=out)
    print(_summary(done.flows, done.changes), file=out, flush=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.past_stack.run")
    parser.add_argument("--flows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    out = options.log.open("a") if options.log else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    say(f"{options.flows} flows, seed {options.seed}")

    def full(text: str) -> None:
        say(f"  {text}")

    with host_lab(sizes=ROOM, report=full) as lab:
        done = run(lab, options.flows, options.seed, say)
    _report(done, out)
    return 1 if done.flows.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
