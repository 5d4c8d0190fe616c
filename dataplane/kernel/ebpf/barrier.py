"""A memory barrier for stores into memory that is shared with programs in the kernel.

x86 keeps stores in order. Other processors (arm64) may make a store visible before an earlier one, also across a system
call that publishes a value: its release semantics order earlier stores before it, but not later ones after it.
"""

import os
from typing import Any

from cffi import FFI

_ffi = FFI()
_ffi.cdef("long syscall(long number, ...);")
_libc: Any = _ffi.dlopen(None)
_WORD = _ffi.new("int *", 0)
_FUTEX_WAKE_PRIVATE = 1 | 128
_FUTEX = {"aarch64": 98, "riscv64": 98, "ppc64le": 221}
"""Number of futex(2) on processors that may reorder stores. FUTEX_WAKE has a full barrier, whether or not anybody waits
(kernel/futex/futex.h, futex_hb_waiters_pending)."""


def full_barrier() -> None:
    """Make all processors see stores before this call before stores after it. Free on x86."""
    number = _FUTEX.get(os.uname().machine)
    if number is not None:
        _libc.syscall(number, _WORD, _ffi.cast("long", _FUTEX_WAKE_PRIVATE), _ffi.cast("long", 1))
