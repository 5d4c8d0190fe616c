"""Faults for a process: which call of a kind fails, and how many calls there have been (see faults.c)."""

import mmap
import os
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

KINDS = ("fork", "write", "send", "open", "map", "bpf")
"""fork: EAGAIN; write to a file: ENOSPC; send by netlink: ENOBUFS; open, socket or pipe: EMFILE; map memory, bpf(2):
ENOMEM."""

ALL = -1
_SOURCE = Path(__file__).with_name("faults.c")


class Faults:
    """Shared with the processes that are started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._library, self._path = folder / "faults.so", folder / "faults"
        if not self._library.exists():
            command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(self._library), str(_SOURCE)]
            subprocess.run([*command, "-ldl"], check=True)
        self._path.write_bytes(bytes(16 * len(KINDS)))
        descriptor = os.open(self._path, os.O_RDWR)
        self._shared = mmap.mmap(descriptor, 16 * len(KINDS))
        os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shared.close()

    @property
    def environment(self) -> dict[str, str]:
        """For processes whose calls count, and may fail."""
        return {**os.environ, "LD_PRELOAD": str(self._library), "HOTPLANE_FAULTS": str(self._path)}

    def count(self, kind: str) -> int:
        """Calls of a kind since the last `fail`."""
        found: int = struct.unpack_from("=q", self._shared, 8 * KINDS.index(kind))[0]
        return found

    def fail(self, kind: str, number: int) -> None:
        """From now on the call with this number fails, counted from 1; ALL, or 0 for none."""
        at = KINDS.index(kind)
        struct.pack_into("=q", self._shared, 8 * (len(KINDS) + at), 0)
        struct.pack_into("=q", self._shared, 8 * at, 0)
        struct.pack_into("=q", self._shared, 8 * (len(KINDS) + at), number)
