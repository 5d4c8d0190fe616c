"""Memory of a control plane and of what it has put into the kernel."""

import time
from pathlib import Path

_KERNEL = ("SUnreclaim", "VmallocUsed", "Percpu")
_SETTLE_SECONDS, _LOOK_SECONDS, _STEADY_BYTES = 1.0, 0.05, 256 << 10


def process_memory() -> dict[str, float]:
    """Resident memory of this process in bytes: now (`rss`), and at most so far (`rss_peak`)."""
    lines = _lines("/proc/self/status")
    return {"rss": lines["VmRSS"], "rss_peak": lines["VmHWM"]}


def kernel_memory() -> float:
    """Memory in bytes of which the kernel's tables, maps and programs are made: slabs that cannot be reclaimed, vmalloc
    areas, per-CPU memory. Of the whole machine: only a difference means anything, and only if nobody else is at work.

    There is no account of less than that which every kernel keeps: nftables sets have none at all, and the memory
    controller, which would have one, is not everywhere mounted where it shows it (cgroup version 2).
    """
    lines = _lines("/proc/meminfo")
    return sum(lines[name] for name in _KERNEL)


def settled_kernel_memory() -> float:
    """`kernel_memory` once it has stopped falling, since what was removed is given back a while later. Waits a second
    at most."""
    end, last = time.monotonic() + _SETTLE_SECONDS, kernel_memory()
    while time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        now = kernel_memory()
        if abs(now - last) <= _STEADY_BYTES:
            return now
        last = now
    return last


def _lines(path: str) -> dict[str, float]:
    """Lines `name: number kB` in bytes."""
    found = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) * 1024.0
    return found
