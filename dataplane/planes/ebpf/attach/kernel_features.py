"""Probes for BPF features of the running kernel. Distributions backport features, so a version number is no proof. The
programs are compiled for the features found (bpf/fib.h, bpf/helpers.h)."""

import errno
import os
import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError, ProgramType

_FIB_LOOKUP, _REDIRECT_PEER, _KTIME_GET_COARSE_NS, _CHECK_MTU = 69, 155, 160, 163  # enum bpf_func_id
_FIB_SOURCE = 16  # BPF_FIB_LOOKUP_SRC
_FIB_SIZE = 64  # sizeof(struct bpf_fib_lookup)
_FRAME = bytes(14) + b"\x45" + bytes(63)
_EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)


class Feature(NamedTuple):
    """A kernel feature that may be missing. define: macro that programs are compiled with if it is.

    name: for messages; since: first Linux version with it; instead: what the programs do without it.
    """

    name: str
    since: str
    define: str
    works: Callable[[], bool]
    instead: str


def _call(helper: int) -> bytes:
    return struct.pack("<BBhi", 0x85, 0, 0, helper)


def _runs(code: bytes) -> int | None:
    """Run a tc program on a frame and return its result; None if the kernel refuses it. Raises BpfError if nothing can
    be loaded (EPERM, ENOSYS)."""
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
    """True if bpf_fib_lookup accepts a BPF_FIB_LOOKUP_* flag. The kernel checks flags first: an unknown one is EINVAL,
    a known one another error, since the lookup has no address family."""
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
    """True if packet programs may call a helper without arguments, by its number in enum bpf_func_id."""
    return _runs(_call(helper) + _EXIT) is not None


def fib_returns_mtu() -> bool:
    """True if bpf_fib_lookup returns the MTU of a route. Linux 5.12 added that together with the helper bpf_check_mtu,
    whose presence this probes: context, device 0, size by pointer, no difference, no flags."""
    arguments = (
        struct.pack("<BBhi", 0x7A, 10, -8, 0)  # u64 [r10 - 8] = 0
        + struct.pack("<BBhi", 0xB7, 2, 0, 0)
        + struct.pack("<BBhi", 0xBF, 10 << 4 | 3, 0, 0)  # r3 = r10
        + struct.pack("<BBhi", 0x07, 3, 0, -8)
        + struct.pack("<BBhi", 0xB7, 4, 0, 0)
        + struct.pack("<BBhi", 0xB7, 5, 0, 0)
    )
    return _runs(arguments + _call(_CHECK_MTU) + _EXIT) is not None


def redirects_to_peers() -> bool:
    """True if a packet can be handed to the other end of a veth in another network namespace: device 0, no flags."""
    arguments = struct.pack("<BBhi", 0xB7, 1, 0, 0) + struct.pack("<BBhi", 0xB7, 2, 0, 0)
    return _runs(arguments + _call(_REDIRECT_PEER) + _EXIT) is not None


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
    Feature(
        "redirect into pods",
        "5.10",
        "NO_REDIRECT_PEER",
        redirects_to_peers,
        "no host routing: packets to pods of the node go by its stack",
    ),
)


@cache
def missing() -> tuple[Feature, ...]:
    """Features that this kernel lacks. Raises BpfError if nothing can be probed (EPERM, ENOSYS)."""
    return tuple(feature for feature in FEATURES if not feature.works())


def packet_flags() -> tuple[str, ...]:
    """Compiler flags for packet programs on this kernel. Raises BpfError as `missing` does."""
    return tuple(f"-D{feature.define}=1" for feature in missing())
