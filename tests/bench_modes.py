"""The benchmark's modes while peers come and go: each peer of a test is a mode of its own, which only that test has."""

from collections.abc import Iterator
from contextlib import contextmanager

from dataplane.bench.modes import MODES


@contextmanager
def own_modes() -> Iterator[None]:
    """Afterwards the benchmark has the modes that it had before."""
    before = dict(MODES)
    try:
        yield
    finally:
        MODES.clear()
        MODES.update(before)
