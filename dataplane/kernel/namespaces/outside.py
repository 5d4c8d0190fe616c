"""The mount namespace that this process came from, where tools that enter network namespaces made one of their own."""

import os
from pathlib import Path


def outer_process() -> int | None:
    """The furthest ancestor that can be looked at, if it lives in another mount namespace than this process.

    Not simply process 1: in containers and sandboxes it may be out of reach.
    """
    here, pid, outer = os.readlink("/proc/self/ns/mnt"), os.getppid(), None
    while pid > 0:
        try:
            if os.readlink(f"/proc/{pid}/ns/mnt") != here:
                outer = pid
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            break
    return outer


def visible(directory: str) -> Path:
    """A directory as it was named, or the one that the process outside of this mount namespace has there."""
    outer = None if Path(directory).is_dir() else outer_process()
    return Path(f"/proc/{outer}/root") / directory.lstrip("/") if outer else Path(directory)
