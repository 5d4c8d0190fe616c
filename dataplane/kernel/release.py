"""The kernel's version, for what only its number tells."""

import platform
import re


def is_since(version: tuple[int, int], unknown: bool, release: str = "") -> bool:
    """Return whether a kernel is of this version or later. release: as `uname -r` has it, by default the running one's.
    unknown: the answer where a release does not begin with two numbers."""
    found = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return unknown if found is None else (int(found[1]), int(found[2])) >= version
