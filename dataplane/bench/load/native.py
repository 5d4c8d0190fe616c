"""The load generator: a C program compiled at first use, or Python where there is no compiler."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent / "native" / "load.c"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hotplane"


class Tool(NamedTuple):
    """How to start the load generator. kind: "c", or "python", whose own time is part of what it measures.
    note: why it is not the C one."""

    argv: tuple[str, ...]
    kind: str
    note: str = ""


def python_tool(note: str = "") -> Tool:
    """The load generator in Python."""
    return Tool((sys.executable, "-m", "dataplane.bench.load.load"), "python", note)


def load_tool(options: tuple[str, ...] = ()) -> Tool:
    """The load generator to use here, compiled if it has not been yet. options: more of them for the compiler."""
    digest = hashlib.sha256(b"\0".join((SOURCE.read_bytes(), *(option.encode() for option in options))))
    target = CACHE / f"load-{digest.hexdigest()[:16]}"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None and not target.exists():
        return python_tool("there is no C compiler: the load generator runs in Python; apt-get install gcc libc6-dev")
    if compiler is not None and not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        half = target.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [compiler, "-O2", *options, "-o", str(half), str(SOURCE)], check=False, capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
            return python_tool(f"the load generator does not compile ({reason}) and runs in Python instead")
        half.rename(target)
    return Tool((str(target),), "c")
