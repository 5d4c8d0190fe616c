"""What the running kernel lets programs do, found by trying: distributions carry features back to older kernels, so a
version number says little. The programs are compiled accordingly (bpf/fib.h, bpf/helpers.h)."""

import errno
import os
import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError, ProgramType

_FIB_LOOKUP, _KTIME_GET_COARSE_NS, _CHECK_MTU = 69, 160, 163  # enum bpf_func_id
_FIB_SOURCE = 16  # BPF_FIB_LOOKUP_SRC
_FIB_SIZE = 64  # sizeof(struct bpf_fib_lookup)
_FRAME = bytes(14) + b"\x45" + bytes(63)
_EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


class Feature(NamedTuple):
    """Something that not every kernel has. define: what programs are compiled with where it is missing.

    name: for people; since: the Linux that it came with; instead: what is done without it.
    """

    name: str
    since: str
    define: str
    works: Callable[[], bool]
    instead: str


def _call(helper: int) -> bytes:
    return struct.pack("<BBhi", 0x85, 0, 0, helper)


def _runs(code: bytes) -> int | None:
    """What a tc program returns for a frame; None when the kernel refuses it, or has no right for us."""
    try:
        program = bpf.program_load(code, ProgramType.SCHED_CLS, name="hotplane_probe")
    except BpfError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            raise
        return None
    try:
        return bpf.run_program(program, _FRAME).result
    finally:
        os.close(program)


def fib_flag_works(flag: int) -> bool:
    """Whether bpf_fib_lookup takes a BPF_FIB_LOOKUP_* flag. Flags are looked at before anything else: one that is
    unknown is EINVAL, while the lookup itself, of no address family, is refused otherwise."""
    zero = b"".join(struct.pack("<BBhi", 0x7A, 10, -at, 0) for at in range(8, _FIB_SIZE + 8, 8))  # u64 [r10 - at] = 0
    arguments = (
        struct.pack("<BBhi", 0xBF, 10 << 4 | 2, 0, 0)  # r2 = r10
        + struct.pack("<BBhi", 0x07, 2, 0, -_FIB_SIZE)  # r2 -= 64
        + struct.pack("<BBhi", 0xB7, 3, 0, _FIB_SIZE)  # r3 = 64
        + struct.pack("<BBhi", 0xB7, 4, 0, flag)  # r4 = flag
    )
    result = _runs(zero + arguments + _call(_FIB_LOOKUP) + _EXIT)
    return result is not None and result != (-errno.EINVAL) & 0xFFFFFFFF


def helper_works(helper: int) -> bool:
    """Whether packet programs may call a helper without arguments, by its number in enum bpf_func_id."""
    return _runs(_call(helper) + _EXIT) is not None


def fib_returns_mtu() -> bool:
    """Whether bpf_fib_lookup tells the MTU of a route. It began to together with the helper bpf_check_mtu (Linux 5.12),
    which can be asked for: context, device 0, size by pointer, no difference, no flags."""
    arguments = (
        struct.pack("<BBhi", 0x7A, 10, -8, 0)  # u64 [r10 - 8] = 0
        + struct.pack("<BBhi", 0xB7, 2, 0, 0)
        + struct.pack("<BBhi", 0xBF, 10 << 4 | 3, 0, 0)  # r3 = r10
        + struct.pack("<BBhi", 0x07, 3, 0, -8)
        + struct.pack("<BBhi", 0xB7, 4, 0, 0)
        + struct.pack("<BBhi", 0xB7, 5, 0, 0)
    )
    return _runs(arguments + _call(_CHECK_MTU) + _EXIT) is not None


FEATURES = (
    Feature(
        "source-address lookup",
        "6.7",
        "NO_FIB_SOURCE",
        lambda: fib_flag_works(_FIB_SOURCE),
        "masqueraded flows leave with the primary address of the device they leave by, or the node's own",
    ),
    Feature(
        "coarse clock",
        "5.11",
        "NO_COARSE_CLOCK",
        lambda: helper_works(_KTIME_GET_COARSE_NS),
        "the exact clock, which costs more",
    ),
    Feature(
        "route MTU",
        "5.12",
        "NO_FIB_MTU",
        fib_returns_mtu,
        "packets are held against the MTU of the device that they leave by, not the route's own",
    ),
)


@cache
def missing() -> tuple[Feature, ...]:
    """Features that this kernel lacks. Raises BpfError when nothing can be tried (EPERM, ENOSYS)."""
    return tuple(feature for feature in FEATURES if not feature.works())


def packet_flags() -> tuple[str, ...]:
    """Compiler flags for packet programs on this kernel. Raises BpfError as `missing` does."""
    return tuple(f"-D{feature.define}=1" for feature in missing())
