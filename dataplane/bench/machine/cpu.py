"""Processor time of the lab's processes and of the packets they cause, and of everybody else on the machine."""

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Processor seconds so far. lab: the lab's processes, the packets they cause included. machine: everybody, with the
    time that a hypervisor took (steal). softirq: the whole machine's in interrupts, and in the kernel's threads that
    carry on with them; on kernels that do not keep interrupts apart most of it is in the interrupted process's too."""

    lab: float
    machine: float
    softirq: float = 0.0


@cache
def _softirqd() -> tuple[Path, ...]:
    """Statistics of the kernel's threads that carry on with packets which were too many to do at once."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text().startswith("ksoftirqd/"):
                found.append(entry / "schedstat")
        except (FileNotFoundError, ProcessLookupError):
            continue  # a process that ended while we looked
    return tuple(found)


@cache
def interrupts_are_apart() -> bool:
    """Whether this kernel leaves packet work in interrupts out of the time of the process it interrupts
    (CONFIG_IRQ_TIME_ACCOUNTING); it must then be added. Unknown counts as no."""
    import gzip

    release = os.uname().release
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{release}")):
        if path.exists():
            data = path.read_bytes()
            text = gzip.decompress(data) if path.suffix == ".gz" else data
            return b"CONFIG_IRQ_TIME_ACCOUNTING=y" in text
    return False


def usage(group: Path) -> Usage:
    """What was used until now. group: the lab's control group (version 2), all groups below it included."""
    fields = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, steal = fields
    lines = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    lab = int(lines["usage_usec"]) / 1e6
    if interrupts_are_apart():
        lab += (irq + softirq) / _TICKS
    threads = sum(int(path.read_text().split()[0]) for path in _softirqd()) / 1e9
    machine = user + nice + system + irq + softirq + steal
    return Usage(lab + threads, machine / _TICKS, (irq + softirq) / _TICKS + threads)


def process_seconds(pids: Iterable[int]) -> float:
    """Processor seconds that processes have used so far, to the nanosecond; ended ones count as nothing."""
    used = 0
    for pid in pids:
        try:
            used += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return used / 1e9
