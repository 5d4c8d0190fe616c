"""Network namespaces for tests and benches: unique names, always removed."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dataplane.kernel.namespaces import netns

_counter = itertools.count()


@contextmanager
def namespaces() -> Iterator[Callable[[str], str]]:
    """Make empty network namespaces, loopback up: a word in, its unique name out. All go at the end."""
    made: list[str] = []

    def make(word: str = "t") -> str:
        name = f"hp-{word}-{os.getpid()}-{next(_counter)}"
        netns.create(name)
        made.append(name)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        return name

    try:
        yield make
    finally:
        for name in filter(netns.exists, made):  # a test may have removed its own
            netns.remove(name)
