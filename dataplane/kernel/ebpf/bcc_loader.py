"""Compile the C of `bpf/` with bcc, on kernels with or without a headers package.

bcc compiles; loading is `kernel.bpf`'s work, because the programs refer to maps that another process may have pinned.
Sources are passed to bcc as a single #include, so that the C is plain C: bcc's source rewriter only looks at the
main text. The result is bytecode whose map references are placeholders (`bpf/maps.h`), kept on disk under a digest
of everything that went into it: a daemon that starts again does not need the compiler at all.
"""

import base64
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dataplane.kernel.nft.sealed import read_sealed, write_sealed
from dataplane.kernel.tools import ToolError, run_tool


def _source_dir() -> Path:
    """`bpf/` at the top of a checkout; in an installed package, inside `dataplane` (setup.py)."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "bpf"
    return installed if installed.is_dir() else package.parent / "bpf"


SOURCE_DIR = _source_dir()
DEFAULT_CACHE_DIR = Path("/var/cache/hotplane/bpf")
_COMPILE_SECONDS = 300.0
_FORMAT = "2"
"""Of the cache's files."""

_PACKAGE = str(Path(__file__).resolve().parents[3])
_UAPI = Path("/usr/include")
_KCONFIG = """\
#ifndef __LINUX_KCONFIG_H
#define __LINUX_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#include <linux/types.h>
typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;
typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;
typedef __SIZE_TYPE__ size_t; typedef __UINTPTR_TYPE__ uintptr_t;
#ifndef bool
#define bool _Bool
#define true 1
#define false 0
#endif
#endif
"""


class CompileError(Exception):
    """The C did not compile. The text holds the compiler's messages."""


def _multiarch_include() -> Path:
    """Directory that holds asm/ of this machine's UAPI headers."""
    found = sorted(p.parent for p in _UAPI.glob("*-linux-gnu*/asm"))
    return next((p for p in found if p.name.startswith(os.uname().machine)), found[0] if found else _UAPI)


def make_kernel_tree(directory: Path) -> None:
    """Write into `directory` the least that bcc takes for a kernel source tree, made of the UAPI headers of libc."""
    uapi = directory / "include" / "uapi"
    for folder in (directory / "include" / "linux", directory / "include" / "asm", uapi / "linux"):
        folder.mkdir(parents=True, exist_ok=True)
    (directory / "include/linux/kconfig.h").write_text(_KCONFIG)
    for empty in ("include/linux/log2.h", "include/asm/page.h", "include/uapi/linux/bpf.h"):
        (directory / empty).write_text("")  # bcc brings its own bpf.h; a second one would clash with it
    for header in (_UAPI / "linux").iterdir():
        if header.name != "bpf.h":
            (uapi / "linux" / header.name).symlink_to(header)
    (uapi / "asm").symlink_to(_multiarch_include() / "asm")
    (uapi / "asm-generic").symlink_to(_UAPI / "asm-generic")


def source_digest(source: str, flags: Sequence[str], directory: Path = SOURCE_DIR) -> str:
    """Digest of everything that decides the bytecode: the program, all headers, flags, compiler version."""
    digest = hashlib.sha256()
    for path in (directory / source, *sorted(directory.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("\0".join((*flags, _bcc_version(), os.uname().machine, _FORMAT)).encode())
    return digest.hexdigest()


def _bcc_version() -> str:
    version = Path("/var/lib/dpkg/info/libbpfcc:amd64.md5sums")
    return hashlib.sha256(version.read_bytes()).hexdigest() if version.exists() else "unknown"


def _compile_with_bcc(source: Path, flags: Sequence[str]) -> dict[str, bytes]:
    """Run the compiler in a process of its own, which its faults end instead of this one (see bcc_compile)."""
    with tempfile.TemporaryDirectory(prefix="hotplane-kernel-") as folder:
        make_kernel_tree(Path(folder))
        command = [sys.executable, "-m", "dataplane.kernel.ebpf.bcc_compile", str(source), folder, *flags]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (_PACKAGE, *sys.path)))}
        try:
            done = run_tool(command, env=environment, seconds=_COMPILE_SECONDS)
        except (OSError, ToolError) as error:
            raise CompileError(f"{source.name}: the compiler could not be started: {error}") from error
    if done.returncode or not done.stdout:
        said = done.stderr.decode(errors="replace").strip() or "it said nothing"
        raise CompileError(f"{source.name}: the compiler ended with status {done.returncode}: {said}")
    found: dict[str, str] = json.loads(done.stdout)
    return {name: base64.b64decode(text) for name, text in found.items()}


def compile_programs(
    source: str, flags: Sequence[str] = (), cache: Path | None = DEFAULT_CACHE_DIR, directory: Path = SOURCE_DIR
) -> dict[str, bytes]:
    """Compile one file of `bpf/`.

    in: file name (`connect.c`), compiler flags (`-DNAME=1`), cache directory (None: no cache), folder of the sources.
    out: bytecode by program name, map references still placeholders; hand it to `kernel.bpf.load_program`. A cache that
    cannot be written or read is done without.
    Raises CompileError with the compiler's messages, and on a big-endian machine: neither the sources nor those who
    fill their maps know its byte order.
    """
    if sys.byteorder != "little":
        raise CompileError(
            f"the eBPF programs are written for little-endian machines, and {os.uname().machine} is none here; "
            "use --mode nftables, which does the same"
        )
    stored = cache / f"{Path(source).stem}-{source_digest(source, flags, directory)[:32]}.json" if cache else None
    if stored is not None and (kept := _kept(stored)) is not None:
        return kept
    code = _compile_with_bcc(directory / source, flags)
    if not code:
        raise CompileError(f"{source}: no programs in it; each must be declared with PROGRAM(name)")
    if stored is not None:
        with contextlib.suppress(OSError):  # a read-only or full disk: compiled again next time, which costs seconds
            _keep(stored, code)
    return code


def _kept(stored: Path) -> dict[str, bytes] | None:
    """The bytecode of a cache entry; None where there is none, or none that can be used."""
    content = read_sealed(stored)
    if content is None:
        return None
    kept: dict[str, str] = json.loads(content)
    return {name: base64.b64decode(text) for name, text in kept.items()}


def _keep(stored: Path, code: dict[str, bytes]) -> None:
    """Write a cache entry, whole or not at all. Raises OSError."""
    content = json.dumps({name: base64.b64encode(text).decode() for name, text in code.items()})
    write_sealed(stored, content.encode())
