"""Files of a cache that tell when they are not what was written: a digest goes before the content.

A cache may lose power in the middle of a write, or sit on a bad disk. What is read from it goes into the kernel, and a
rule with one wrong bit may be a rule all the same.
"""

import hashlib

_MARK = b"sha256 "


def seal(content: bytes) -> bytes:
    """What to write for a content: a line with its digest, then itself."""
    return _MARK + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unseal(data: bytes) -> bytes | None:
    """The content of what `seal` made; None for anything else."""
    _, _, content = data.partition(b"\n")
    return content if data == seal(content) else None
