"""The load generator: a C program compiled at first use, or Python where there is no compiler."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent / "native" / "load.c"
WATCH_SOURCE = SOURCE.with_name("watch.c")
HEADERS = tuple(sorted(SOURCE.parent.glob("*.h")))
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
    target, why = _compiled(SOURCE, options)
    if target is None and not why:
        return python_tool("there is no C compiler: the load generator runs in Python; apt-get install gcc libc6-dev")
    if target is None:
        return python_tool(f"the load generator does not compile ({why}) and runs in Python instead")
    return Tool((str(target),), "c")


def watch_tool() -> Path | None:
    """The program of watch.c, compiled if it has not been yet; None where it cannot be."""
    return _compiled(WATCH_SOURCE, ())[0]


def _compiled(source: Path, options: tuple[str, ...]) -> tuple[Path | None, str]:
    """A C program, compiled at its first use; else None and what the compiler says, "" where there is none."""
    texts = [path.read_bytes() for path in (source, *HEADERS)]
    digest = hashlib.sha256(b"\0".join((*texts, *(option.encode() for option in options))))
    target = CACHE / f"{source.stem}-{digest.hexdigest()[:16]}"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if target.exists():
        return target, ""
    if compiler is None:
        return None, ""
    CACHE.mkdir(parents=True, exist_ok=True)
    half = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [compiler, "-O2", *options, "-o", str(half), str(source)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["it says nothing"])[0]
    half.rename(target)
    return target, ""
