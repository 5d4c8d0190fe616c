"""Load on several processors: which of them do what, and how a cell says on how many it was measured.

With N processors, clients are on the first ones, one each; servers of a single process each on the second half, so that
up to N/2 clients and the servers do not meet. More clients share the servers' processors. Packet generators take the
first ones, and may take all.
"""

import os
from collections.abc import Sequence

from dataplane.bench.objects import MOST_ENDPOINTS
from dataplane.bench.profiles import Settings
from dataplane.errors import UsageError


def present() -> list[int]:
    """The processors that this process may use, by their numbers."""
    return sorted(os.sched_getaffinity(0))


def refuse_missing(wanted: Sequence[int], machine: int) -> None:
    """Raises UsageError for numbers that a machine of so many processors does not have."""
    missing = [str(count) for count in wanted if count > machine]
    if missing:
        has = f"{machine} processor{'s' if machine > 1 else ''}"
        raise UsageError(f"--processors {','.join(missing)}: this machine has {has}; give numbers up to that")


def position(count: int) -> str:
    """Return the label of a number of processors in the key of a cell: "1 processor", "4 processors"."""
    return f"{count} processor{'s' if count > 1 else ''}"


def count_of(where: str) -> int:
    """The number of processors in a cell's position."""
    return int(where.split()[0])


def servers_of(settings: Settings) -> int:
    """Servers with a processor each, of every mode; 0 where nothing is measured on several processors. As many as are
    asked for, up to half of the processors."""
    if not settings.processors:
        return 0
    return max(1, min(max(settings.processors), len(present()) // 2, MOST_ENDPOINTS))


def client_places(count: int, processors: Sequence[int]) -> list[int]:
    """Where clients go, as indexes of `processors`; generators too."""
    return list(range(min(count, len(processors))))


def server_places(servers: int, processors: Sequence[int]) -> list[int]:
    """Where servers go, as indexes of `processors`: the second half, in turns."""
    half = len(processors) // 2
    room = len(processors) - half
    return [half + number % room for number in range(servers)]
