"""Cache files with a digest before the content, so that a damaged file is detected.

A cache may lose power in the middle of a write, or sit on a bad disk. What is read from it goes into the kernel, and a
rule with one wrong bit may be a rule all the same.
"""

import contextlib
import hashlib
import os
from pathlib import Path

_MARK = b"sha256 "


def seal(content: bytes) -> bytes:
    """The bytes to write for a content: a line with its digest, then the content."""
    return _MARK + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unseal(data: bytes) -> bytes | None:
    """The content of what `seal` made; None for anything else."""
    _, _, content = data.partition(b"\n")
    return content if data == seal(content) else None


def read_sealed(path: Path) -> bytes | None:
    """The content of a file; None where there is none, none that may be read, or not what was written."""
    try:
        return unseal(path.read_bytes())
    except OSError:
        return None


def write_sealed(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, with the directories above it. Raises OSError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(seal(content))
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # where there is nothing, or nothing can be removed
            partial.unlink()
        raise
