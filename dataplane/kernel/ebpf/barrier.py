"""A memory barrier for stores into memory that is shared with programs in the kernel.

x86 keeps stores in order by itself. Other processors (arm64) may let a store be seen before an earlier one, also across
a system call that publishes something: that has release semantics, which hold earlier stores before it, not later ones
after it.
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
"""Number of futex(2) where stores are not kept in order. FUTEX_WAKE has a full barrier, whether or not anybody waits
(kernel/futex/futex.h, futex_hb_waiters_pending)."""


def full_barrier() -> None:
    """Every store before is seen before any after, by all processors. Costs nothing where the processor sees to it."""
    number = _FUTEX.get(os.uname().machine)
    if number is not None:
        _libc.syscall(number, _WORD, _ffi.cast("long", _FUTEX_WAKE_PRIVATE), _ffi.cast("long", 1))
