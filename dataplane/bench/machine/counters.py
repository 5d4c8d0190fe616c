"""Hardware counters of the whole machine: cycles and instructions, by perf_event_open(2).

Work for an operation in instructions hardly depends on what else the machine does, where its processors have counters;
many virtual machines have none. One group of events a processor, so that all are counted over the same time; a group
that had to share the counters with others is scaled up to the whole time. Needs root, or kernel.perf_event_paranoid 0.
"""

import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cffi import FFI

from dataplane.resource import Resource

_ffi = FFI()
_ffi.cdef("long syscall(long number, ...);")
_libc: Any = _ffi.dlopen(None)

_SYSCALL_NUMBERS = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "s390x": 331, "ppc64le": 319}
_CLOSE_ON_EXEC = 8
_ATTRIBUTES = struct.Struct("=IIQQQQQ")
_SIZE_VERSION_1 = 72
_READ_TIMES_AND_GROUP = 1 | 2 | 8
_DISABLED = 1
_ENABLE, _WHOLE_GROUP = 0x2400, 1


class Event(NamedTuple):
    """kind, number: perf_type_id and its configuration, of linux/perf_event.h."""

    kind: int
    number: int


HARDWARE = {"cycles": Event(0, 0), "instructions": Event(0, 1)}


class CountersError(OSError):
    """This machine does not count these events; errno as usual (ENOENT, EOPNOTSUPP: no such counter)."""


def _open(event: Event, processor: int, leader: int) -> int:
    attributes = _ATTRIBUTES.pack(
        event.kind, _SIZE_VERSION_1, event.number, 0, 0, _READ_TIMES_AND_GROUP, _DISABLED if leader < 0 else 0
    ).ljust(_SIZE_VERSION_1, b"\0")
    buffer = _ffi.from_buffer(attributes)
    number = _SYSCALL_NUMBERS[os.uname().machine]
    arguments = (_ffi.cast("int", value) for value in (-1, processor, leader))
    found = int(_libc.syscall(number, buffer, *arguments, _ffi.cast("unsigned long", _CLOSE_ON_EXEC)))
    if found < 0:
        raise CountersError(_ffi.errno, f"perf_event_open on processor {processor}: {os.strerror(_ffi.errno)}")
    return found


class Counters(Resource):
    """Events counted on all processors that this process may use, from its making on."""

    def __init__(self, events: Mapping[str, Event], processors: Sequence[int] = ()) -> None:
        """Raises CountersError where one of the events cannot be counted."""
        import fcntl

        self._names, self._leaders, self._open = tuple(events), list[int](), list[int]()
        try:
            for processor in processors or sorted(os.sched_getaffinity(0)):
                leader = -1
                for event in events.values():
                    self._open.append(_open(event, processor, leader))
                    leader = self._open[-1] if leader < 0 else leader
                self._leaders.append(leader)
            for leader in self._leaders:
                fcntl.ioctl(leader, _ENABLE, _WHOLE_GROUP)
        except OSError:
            self.close()
            raise

    def read(self) -> dict[str, float]:
        """Return the counts so far, by name."""
        found = dict.fromkeys(self._names, 0.0)
        for leader in self._leaders:
            values = struct.unpack(f"={3 + len(self._names)}Q", os.read(leader, 8 * (3 + len(self._names))))
            _, enabled, running = values[:3]
            for name, count in zip(self._names, values[3:], strict=True):
                found[name] += count * enabled / running if running else 0.0
        return found

    def close(self) -> None:
        """Count no longer."""
        while self._open:
            os.close(self._open.pop())


def hardware() -> Counters | None:
    """Counters of HARDWARE; None where the machine has none, or keeps them from us."""
    try:
        return Counters(HARDWARE)
    except CountersError:
        return None
