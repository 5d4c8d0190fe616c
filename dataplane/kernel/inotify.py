"""Notification of created and deleted directory entries (inotify(7)): only that there were some, not which."""

import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from dataplane.resource import Resource

_IN_CREATE, _IN_DELETE, _IN_MOVED, _IN_ONLYDIR = 0x100, 0x200, 0xC0, 0x01000000
_libc = ctypes.CDLL(None, use_errno=True)


class Inotify(Resource):
    """Watches directories. `fileno` is readable when an entry was created or deleted in one of them."""

    def __init__(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "inotify")
        self._watched: dict[Path, int] = {}

    def fileno(self) -> int:
        return int(self._fd)

    def watch(self, directories: Iterable[Path]) -> None:
        """Watch exactly these directories from now on, except missing ones. Raises OSError if the limit of watches is
        reached."""
        wanted = set(directories)
        for path in [path for path in self._watched if path not in wanted]:
            _libc.inotify_rm_watch(self._fd, self._watched.pop(path))
        for path in wanted:  # again too: a directory that was made anew has another watch
            mask = _IN_CREATE | _IN_DELETE | _IN_MOVED | _IN_ONLYDIR
            number = _libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
            if number >= 0:
                self._watched[path] = number
                continue
            self._watched.pop(path, None)
            if (reason := ctypes.get_errno()) not in (errno.ENOENT, errno.ENOTDIR):
                raise OSError(reason, os.strerror(reason), str(path))

    def drain(self) -> None:
        """Discard pending notifications."""
        try:
            while os.read(self._fd, 65536):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close the descriptor; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
