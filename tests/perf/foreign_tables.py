"""What commands cost beside other programs' tables: `python -m tests.perf.foreign_tables [ELEMENTS]`, as root.

For 1,000 Services of five endpoints: each command in turn in a network namespace with a block list of so many networks
(300,000 if no number is given) and in one without, in rounds. Prints a table of medians; megabytes are the most
that a process had in memory.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.kernel.foreign_tables import Ran, foreign_set, hotplane, manifests
from tests.namespaces import namespaces

ROUNDS = 5


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    found: dict[tuple[str, str], list[tuple[float, Ran]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name, namespaces() as make:
        folder = Path(name)
        file = manifests(folder, 1000)
        places = {"with": make("full"), "without": make("bare")}
        foreign_set(places["with"], count)
        commands = {
            "apply": ("apply", "-f", str(file)),
            "apply again": ("apply", "-f", str(file)),
            "check": ("check",),
            "daemon's start": ("run", "--once", "-f", str(file)),
            "cleanup": ("cleanup",),
        }
        for turn in range(ROUNDS + 1):
            for what, arguments in commands.items():
                for where, namespace in places.items():
                    start = time.monotonic()
                    options = ("--state-dir", str(folder / where), "--node-name", "n1")
                    ran = hotplane(namespace, folder / "cache", *options, *arguments)
                    assert ran.status == 0, ran.text
                    if turn:  # the first round compiles
                        found[what, where].append((time.monotonic() - start, ran))
    print(f"| 1000 Services, {count} foreign networks | s by the clock | s of processor time | MB |")
    print("| --- | ---: | ---: | ---: |")
    for (what, where), rounds in found.items():
        wall = statistics.median(seconds for seconds, _ in rounds)
        busy = statistics.median(ran.seconds for _, ran in rounds)
        size = statistics.median(ran.megabytes for _, ran in rounds)
        print(f"| {what}, {where} them | {wall:.2f} | {busy:.2f} | {size:.1f} |")


if __name__ == "__main__":
    main()
