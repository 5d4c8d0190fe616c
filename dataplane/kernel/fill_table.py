"""Calls the C function of fill_table.c, compiled at its first use where there is a compiler.

What was compiled is kept on disk under a digest of source and machine. It is loaded from memory after its own digest
was checked, so a damaged file is compiled again and never run.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from array import array
from functools import cache
from pathlib import Path
from typing import Any

from cffi import FFI

from dataplane.kernel.nft.sealed import read_sealed, write_sealed
from dataplane.kernel.tools import ToolError, run_tool

SOURCE = Path(__file__).with_suffix(".c")
CACHE_DIRS = (Path("/var/cache/hotplane/native"), Path("/run/hotplane/native"))
"""Where compiled code is looked for; new is kept in the first that can be written."""

_LOG = logging.getLogger(__name__)
_SECONDS = 60.0
_FLAGS = ("-O2", "-shared", "-fPIC", "-std=gnu11")
_ffi = FFI()
_ffi.cdef(
    "void fill_table(uint64_t *table, uint32_t size, uint32_t count, uint32_t *next, const uint32_t *skips,"
    " const uint32_t *places, uint32_t *credit, uint32_t most, const uint64_t *values);"
)


def fill_table(
    size: int, offsets: "array[int]", skips: "array[int]", places: "array[int]", values: "array[int]"
) -> "array[int] | None":
    """Return a Maglev table (see policy.maglev.fill), or None where the function cannot be had.

    size: slots of the table. offsets, skips, places: by turn, at least one, 32 bits each. values: what stands in the
    table for each turn, 64 bits, as in the table. All in the byte order of this machine.
    """
    library = _library()
    if library is None:
        return None
    table = array("Q", bytes(8 * size))
    working = [_ffi.from_buffer("uint32_t *", array("I", each)) for each in (offsets, bytes(4 * len(offsets)))]
    taken = [_ffi.from_buffer("uint32_t *", each) for each in (skips, places)]
    wide = [_ffi.from_buffer("uint64_t *", each) for each in (table, values)]
    library.fill_table(wide[0], size, len(offsets), working[0], *taken, working[1], max(places), wide[1])
    return table


@cache
def _library() -> Any:
    """Return the library, None (said once) where there is none."""
    try:
        code = _kept() or _compiled()
        fd = os.memfd_create("hotplane-fill-table")
        with open(fd, "wb") as file:  # closed with the last reference: the loader has its own
            file.write(code)
            file.flush()
            return _ffi.dlopen(f"/proc/self/fd/{fd}")
    except (OSError, ToolError, _CompileError) as error:
        _LOG.warning("Maglev tables are made in Python, twenty times slower: %s", error)
        return None


class _CompileError(Exception):
    """The source cannot be compiled here."""


def _name() -> str:
    text = b"\0".join((SOURCE.read_bytes(), " ".join(_FLAGS).encode(), os.uname().machine.encode()))
    return f"{SOURCE.stem}-{hashlib.sha256(text).hexdigest()[:32]}.so"


def _kept() -> bytes | None:
    return next(filter(None, (read_sealed(folder / _name()) for folder in CACHE_DIRS)), None)


def _compiled() -> bytes:
    """Compile, and keep the result where that can be. Raises _CompileError, ToolError, OSError."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise _CompileError("there is no C compiler; apt-get install gcc")
    with tempfile.TemporaryDirectory(prefix="hotplane-native-") as folder:
        out = Path(folder) / "fill_table.so"
        done = run_tool([compiler, *_FLAGS, "-o", str(out), str(SOURCE)], seconds=_SECONDS)
        if done.returncode:
            raise _CompileError((done.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"])[0])
        code = out.read_bytes()
    for target in CACHE_DIRS:
        with contextlib.suppress(OSError):  # a read-only or full disk: the next place, or compiled again next time
            write_sealed(target / _name(), code)
            break
    return code
