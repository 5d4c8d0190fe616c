"""tests/mutate: put faults into a copy of the tree, and see whether the tests notice. See that script's first lines."""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutation.faults import MUTATIONS
from tests.mutation.mutation import ROOT, Mutation
from tests.mutation.outcome import SECONDS, Outcome, Verdict, broken_tests, try_out
from tests.mutation.tree import copy_tree

NICE = 10


def chosen(pattern: str) -> list[Mutation]:
    """The mutations whose name, file or tests match a regular expression."""
    wanted = re.compile(pattern, re.IGNORECASE)
    return [each for each in MUTATIONS if any(map(wanted.search, (each.name, each.file, *each.tests)))]


def line(mutation: Mutation, outcome: Outcome) -> str:
    """What came out, in one line."""
    label = f"{outcome.verdict.value} by" if outcome.verdict is Verdict.KILLED else outcome.verdict.value
    told = "" if outcome.verdict is Verdict.NOT_BUILT else " ".join(outcome.by.split())
    return f"{mutation.file}: {mutation.name}: {label} {told}".rstrip()


def try_all(mutations: Sequence[Mutation], jobs: int, seconds: float) -> list[Outcome]:
    """Try all, so many at once, each job in a copy of its own; what came out, in order. Tells each as it comes."""
    with tempfile.TemporaryDirectory(prefix="hotplane-mutate-") as scratch:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            tree = Path(scratch) / str(number)
            copy_tree(tree)
            trees.put(tree)
        first = trees.get()
        print("the tests without any fault ...", flush=True)
        broken = broken_tests(first, mutations, seconds * 10)
        trees.put(first)

        def one(mutation: Mutation) -> Outcome:
            tree = trees.get()
            try:
                outcome = try_out(tree, mutation, broken, seconds)
            finally:
                trees.put(tree)
            print(f"{line(mutation, outcome)} ({outcome.seconds:.1f} s)", flush=True)
            if outcome.verdict is Verdict.NOT_BUILT:
                print(outcome.by, flush=True)
            return outcome

        if jobs == 1:  # in this thread, which hears ^C
            return list(map(one, mutations))
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, mutations))


def table(mutations: Sequence[Mutation], outcomes: Sequence[Outcome]) -> str:
    """How many of each folder were killed."""
    of: dict[str, Counter[Verdict]] = {}
    for mutation, outcome in zip(mutations, outcomes, strict=True):
        of.setdefault(mutation.file, Counter())[outcome.verdict] += 1
    of["all"] = Counter(outcome.verdict for outcome in outcomes)
    width = max(map(len, of))
    return "\n".join(
        f"{file:{width}}  {counts.total():3}  " + ", ".join(f"{n} {verdict.value}" for verdict, n in counts.items())
        for file, counts in of.items()
    )


def keep(log: Path, tried: Mapping[Mutation, str]) -> None:
    """Write the lines of what was tried into a log; of other faults of the list those that it has stay."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    found = []
    for each in MUTATIONS:
        before = [text for text in lines if text.startswith(f"{each.file}: {each.name}: ")]
        found += [tried[each]] if each in tried else before[:1]
    log.write_text("\n".join(found) + "\n", encoding="utf-8")


def _commit() -> str:
    said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every fault was noticed; 1: not; 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="tests/mutate")
    parser.add_argument("--only", metavar="PATTERN", default="", help="regular expression: name, file or tests")
    parser.add_argument("--list", action="store_true", help="show what there is, and try nothing")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at once")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="for the tests of one fault")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the result here")
    given = parser.parse_args(arguments)
    mutations = chosen(given.only)
    if not mutations or given.jobs < 1:
        parser.error(f"no mutation matches {given.only!r}" if not mutations else "--jobs must be 1 or more")
    if given.list:
        for each in mutations:
            texts = (f"{each.file}: {each.name}", each.before.strip(), each.after.strip(), " ".join(each.tests))
            print("\n    ".join(texts))
        return 0
    os.nice(NICE)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    when = f"{time.strftime('%Y-%m-%d', time.gmtime())}, {_commit()}"  # of the tree that is copied now
    outcomes = try_all(mutations, given.jobs, given.seconds)
    found = table(mutations, outcomes)
    print(f"\n{found}")
    if given.log is not None:
        keep(given.log, {each: f"{line(each, o)} ({when})" for each, o in zip(mutations, outcomes, strict=True)})
    return int(any(outcome.verdict is not Verdict.KILLED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
