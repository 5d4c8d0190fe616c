"""Waits for an RCU grace period: until all packets that the kernel was processing have left its hooks."""

import ctypes
import os
import platform
import time

_NUMBERS = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}  # membarrier(2)
_GLOBAL = 1  # MEMBARRIER_CMD_GLOBAL, linux/membarrier.h
_FALLBACK_SECONDS = 0.05
_libc = ctypes.CDLL(None, use_errno=True)


def wait_for_packets() -> None:
    """Return once every packet that was in a netfilter hook when this was called has left it.

    A packet goes through all rules of a hook in one RCU read section, and membarrier(2) waits for all such sections of
    all processors (`synchronize_rcu`). It does not where there is one processor, on which nothing else can be at work
    unless the kernel is preempted within a packet, nor where processors run without a clock tick (nohz_full). There a
    moment must do.
    """
    number = _NUMBERS.get(platform.machine())
    if number is None or os.cpu_count() == 1 or _libc.syscall(number, _GLOBAL, 0, 0) != 0:
        time.sleep(_FALLBACK_SECONDS)
