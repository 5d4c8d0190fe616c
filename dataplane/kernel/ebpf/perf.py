"""Records that eBPF programs write to a map of perf events, with bytes of the packet (perf_event_open(2)).

A buffer for each processor; the map has its descriptor at the processor's number.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cffi import FFI

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.wait import readable
from dataplane.resource import Resource

_ffi = FFI()
_ffi.cdef("long syscall(long number, ...);")
_libc: Any = _ffi.dlopen(None)
_NUMBERS = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "s390x": 331, "ppc64le": 319}
_SYS_PERF_EVENT_OPEN = _NUMBERS.get(os.uname().machine, -1)  # -1: ENOSYS
_ATTRIBUTES = struct.Struct("=IIQQQQQI68x")
"""perf_event_attr: type, size, config, sample_period, sample_type, read_format, flags, wakeup_events, and the rest."""

_SOFTWARE, _BPF_OUTPUT, _RAW = 1, 10, 1 << 10  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_BPF_OUTPUT, PERF_SAMPLE_RAW
_FLAG_CLOEXEC, _ENABLE = 8, 0x2400  # PERF_FLAG_FD_CLOEXEC, PERF_EVENT_IOC_ENABLE
_LOST, _SAMPLE = 2, 9  # PERF_RECORD_*
_HEAD, _TAIL = 1024, 1032
"""Where perf_event_mmap_page has data_head and data_tail."""

_PAGES = 16
"""Of a processor's buffer: a power of two."""


def _online() -> Iterator[int]:
    for part in Path("/sys/devices/system/cpu/online").read_text().strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


class _Buffer(Resource):
    """One processor's. Raises OSError."""

    def __init__(self, cpu: int) -> None:
        size = _ATTRIBUTES.size
        attributes = _ffi.new("char[]", _ATTRIBUTES.pack(_SOFTWARE, size, _BPF_OUTPUT, 1, _RAW, 0, 0, 1))
        numbers = (-1, cpu, -1, _FLAG_CLOEXEC)  # of every process, on this processor, in no group
        self.fd = int(_libc.syscall(_SYS_PERF_EVENT_OPEN, attributes, *(_ffi.cast("long", n) for n in numbers)))
        if self.fd < 0:
            raise OSError(_ffi.errno, os.strerror(_ffi.errno))
        self._size = _PAGES * mmap.PAGESIZE
        try:
            self._memory = mmap.mmap(self.fd, mmap.PAGESIZE + self._size)
            fcntl.ioctl(self.fd, _ENABLE, 0)
        except BaseException:
            os.close(self.fd)
            raise

    def take(self) -> Iterator[tuple[int, bytes]]:
        """Yield type and content of each record that has come."""
        (head,) = struct.unpack_from("=Q", self._memory, _HEAD)
        (tail,) = struct.unpack_from("=Q", self._memory, _TAIL)
        while tail < head:
            kind, _, length = struct.unpack("=IHH", self._bytes(tail, 8))
            yield kind, self._bytes(tail + 8, length - 8)
            tail += length
        struct.pack_into("=Q", self._memory, _TAIL, tail)

    def _bytes(self, position: int, length: int) -> bytes:
        at = position % self._size
        first = min(length, self._size - at)
        begin = mmap.PAGESIZE
        return self._memory[begin + at : begin + at + first] + self._memory[begin : begin + length - first]

    def close(self) -> None:
        """Give the buffer back."""
        self._memory.close()
        os.close(self.fd)


class PerfReader(Resource):
    """Reads what programs write to a map of type PERF_EVENT_ARRAY while it is open. lost: records for which there was
    no room. Raises OSError."""

    def __init__(self, map_fd: int) -> None:
        self.lost = 0
        self._map = map_fd
        self._buffers: dict[int, _Buffer] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            for cpu in _online():
                self._buffers[cpu] = _Buffer(cpu)
                bpf.map_update(map_fd, struct.pack("=I", cpu), struct.pack("=I", self._buffers[cpu].fd))
            undo.pop_all()

    def take(self, seconds: float) -> list[bytes]:
        """What was written, waiting up to `seconds` for the first. The kernel may have padded it at the end."""
        readable([buffer.fd for buffer in self._buffers.values()], seconds)
        found: list[bytes] = []
        for buffer in self._buffers.values():
            for kind, content in buffer.take():
                if kind == _SAMPLE:
                    (length,) = struct.unpack_from("=I", content)
                    found.append(content[4 : 4 + length])
                elif kind == _LOST:
                    self.lost += struct.unpack_from("=QQ", content)[1]
        return found

    def close(self) -> None:
        """Take the buffers out of the map, and give them back; fine twice."""
        for cpu, buffer in self._buffers.items():
            bpf.map_delete(self._map, struct.pack("=I", cpu))
            buffer.close()
        self._buffers = {}
