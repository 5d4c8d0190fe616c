"""Access to the original mount namespace, since tools that enter network namespaces use one of their own."""

import os
from pathlib import Path


def outer_process() -> int | None:
    """Return the topmost accessible ancestor process if its mount namespace differs from this process's, else None.

    Not process 1, which may be inaccessible in containers and sandboxes.
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
    """Return a directory as named, or as the process outside of this mount namespace sees it."""
    outer = None if Path(directory).is_dir() else outer_process()
    return Path(f"/proc/{outer}/root") / directory.lstrip("/") if outer else Path(directory)
