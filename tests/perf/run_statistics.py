"""The kernel's own count of how often and how long eBPF programs run, which costs some nanoseconds a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from dataplane.kernel import sysctl

_SWITCH = "kernel/bpf_stats_enabled"


@contextmanager
def run_statistics() -> Iterator[None]:
    """Has the kernel count runs and time of every program meanwhile."""
    before = sysctl.read(_SWITCH)
    sysctl.write(_SWITCH, 1)
    try:
        yield
    finally:
        sysctl.write(_SWITCH, before)
