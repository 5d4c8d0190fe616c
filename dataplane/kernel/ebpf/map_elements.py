"""Single elements of a hash map, fast, and removed only if nobody uses them meanwhile."""

import ctypes
import errno
import os
import struct
from collections.abc import Callable

from dataplane.kernel.ebpf.bpf import ENOTSUPP, SYSTEM_CALL, Command

_NOEXIST = 1
_ATTR = struct.Struct("=IxxxxQQQ")
_NOT_SUPPORTED = {errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP}
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
"""Keeps the interpreter's lock, unlike most foreign calls: between two of these calls no other thread of this process,
which may run for milliseconds, has its turn."""
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong)


class MapElements:
    """One hash map. The buffers for the system calls are made once: about a microsecond a call. For one thread."""

    def __init__(self, fd: int, key_size: int, value_size: int) -> None:
        self._key, self._value = ctypes.create_string_buffer(key_size), ctypes.create_string_buffer(value_size)
        places = (fd, ctypes.addressof(self._key), ctypes.addressof(self._value))
        self._with_value, self._insert, self._only_key = (
            ctypes.create_string_buffer(attr, _ATTR.size)
            for attr in (_ATTR.pack(*places, 0), _ATTR.pack(*places, _NOEXIST), _ATTR.pack(*places[:2], 0, 0))
        )
        self._takes = True

    def get(self, key: bytes) -> bytes | None:
        """The value under a key, or None."""
        self._key.raw = key
        return None if self._call(Command.MAP_LOOKUP, self._with_value) else self._value.raw

    def remove_if(self, key: bytes, over: Callable[[bytes], bool]) -> bytes | None:
        """Remove an element whose value is `over`; returns that value, None where nothing was removed.

        Programs of other processors, which use elements at any time, cannot be kept from it. So what was taken out is
        looked at again, and what was used since it was read is put back, unless there is a new one by then. Before
        Linux 5.14, which cannot read and delete in one step, what is used within this microsecond is lost.
        """
        value = self.get(key)
        if value is None or not over(value):
            return None
        taken = self._take(key)
        if taken is None or over(taken):
            return taken
        self.put_back(key, taken)
        return None

    def put(self, key: bytes, value: bytes) -> None:
        """Store an element in place of what is there; in a full map there is no room for a new one."""
        self._key.raw, self._value.raw = key, value
        self._call(Command.MAP_UPDATE, self._with_value)

    def put_back(self, key: bytes, value: bytes) -> None:
        """Store an element again that was removed. What came in its place stays; in a full map there is no room."""
        self._key.raw, self._value.raw = key, value
        self._call(Command.MAP_UPDATE, self._insert)

    def _take(self, key: bytes) -> bytes | None:
        """Delete an element; returns its last value, None where there was none."""
        self._key.raw = key
        if self._takes:
            number = self._call(Command.MAP_LOOKUP_AND_DELETE, self._with_value)
            if number not in _NOT_SUPPORTED:
                return None if number else self._value.raw
            self._takes = False
        value = self.get(key)
        return None if self._call(Command.MAP_DELETE, self._only_key) else value

    def _call(self, command: Command, attr: "ctypes.Array[ctypes.c_char]") -> int:
        """Call bpf(2); returns its errno, 0 for success. Raises OSError for what is no answer about an element."""
        if _syscall(SYSTEM_CALL, command, attr, _ATTR.size) == 0:
            return 0
        number = ctypes.get_errno()
        if number in (errno.ENOENT, errno.EEXIST, errno.E2BIG, errno.ENOMEM, errno.EBUSY) or number in _NOT_SUPPORTED:
            return number
        raise OSError(number, f"{command.name.lower()} element: {os.strerror(number)}")
