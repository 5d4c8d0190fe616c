"""Packets that a busy machine had no room for: at times a processor's backlog, or a device's ring, is full."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dataplane.bench.load.generator import End


@contextmanager
def lost_packets(end: End) -> Iterator[Callable[[], int]]:
    """Yields what tells how many packets were lost meanwhile: of what a device was to send, and on their way to any
    network namespace of this machine."""
    before = _lost(end)
    yield lambda: _lost(end) - before


def _lost(end: End) -> int:
    """The device's tx_dropped, and the second column of softnet_stat (net/core/net-procfs.c): dropped, hexadecimal."""
    words = ["ip", "-n", end.namespace, "-s", "-j", "link", "show", end.device]
    [link] = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    backlogs = Path("/proc/net/softnet_stat").read_text().splitlines()
    return int(link["stats64"]["tx"]["dropped"]) + sum(int(line.split()[1], 16) for line in backlogs)
