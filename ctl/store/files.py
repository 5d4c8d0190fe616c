"""Files that only their owner may read or change, whatever the umask of the process that was started."""

import os
import stat
from pathlib import Path

PRIVATE = 0o600
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_folder(path: Path) -> None:
    """A directory that nobody else can change anything in; one of ours that others could write to is mended.
    Raises OSError."""
    before = os.umask(0o022)
    try:
        path.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)
    found = path.stat()
    if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX and found.st_uid == os.geteuid():
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)


def opener(path: str, flags: int) -> int:
    """For open(): a file that is made is private, and is not somebody's link to another place."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, PRIVATE)
    try:
        os.fchmod(descriptor, PRIVATE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def replace_whole(path: Path, fresh: Path, data: bytes) -> None:
    """Have `path` hold `data`, whole or not at all, by way of `fresh` beside it. Raises OSError."""
    try:
        with open(fresh, "wb", buffering=0, opener=opener) as file:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)  # half of it only takes room
        raise
