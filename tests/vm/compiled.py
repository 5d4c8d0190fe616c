"""The programs that machines will load, compiled here beforehand: an emulated processor takes half a minute for one."""

import os
import time
from pathlib import Path

from dataplane.kernel.ebpf.bcc_loader import compile_programs, source_digest
from dataplane.planes.ebpf.attach.kernel_features import FEATURES
from dataplane.planes.ebpf.attach.packet_hooks import (
    FORWARD_SOURCE,
    HOST_SOURCE,
    TC_SOURCE,
    XDP_FORWARD_SOURCE,
    XDP_SOURCE,
)
from dataplane.planes.ebpf.attach.programs import CONNECT_SOURCE

_DAY = 86400
_DEFINES = {
    TC_SOURCE: ("", "NO_XDP_TX", "RAW_IP"),
    HOST_SOURCE: ("",),
    XDP_SOURCE: ("", "NO_XDP_TX", "ONLY_GENERAL"),
    FORWARD_SOURCE: ("",),
    XDP_FORWARD_SOURCE: ("", "NO_XDP_TX"),
}
_OLD = [f"-D{feature.define}=1" for feature in FEATURES]
_LACKING: tuple[list[str], ...] = ([], _OLD[:1], _OLD[:-1])  # the last one came with the oldest kernel of all
"""Every kernel lacks what came after something that it lacks: features are listed newest first."""


def _variants() -> list[tuple[str, list[str]]]:
    """Sources with the flags that hooks and tests compile them with."""
    found: list[tuple[str, list[str]]] = [(CONNECT_SOURCE, [])]
    for source, defines in _DEFINES.items():
        for define in defines:
            own = [f"-D{define}=1"] if define else []
            found += [(source, own + lacking) for lacking in _LACKING]
    # Of tests that have a kernel lack more than it does: all of it, and what the doctor tells.
    found += [(source, _OLD) for source in (TC_SOURCE, XDP_SOURCE, FORWARD_SOURCE, XDP_FORWARD_SOURCE)]
    found += [(source, _OLD[:2]) for source in (TC_SOURCE, XDP_SOURCE)]
    for lacking in _LACKING:
        found.append((XDP_SOURCE, ["-DONLY_GENERAL=1", "-DNO_XDP_TX=1", *lacking]))
    return found


def compile_for_all(cache: Path) -> None:
    """Fill a folder with everything that any kernel asks for, and take out what has not been of use for a day: other
    checkouts may be at work with sources of their own."""
    cache.mkdir(parents=True, exist_ok=True)
    variants = _variants()
    wanted = {f"{Path(s).stem}-{source_digest(s, flags)[:32]}.json" for s, flags in variants}
    missing = wanted - {path.name for path in cache.iterdir()}
    if missing:
        print(f"kernels: compiling {len(missing)} variants of the programs", flush=True)
    for source, flags in variants:
        compile_programs(source, flags, cache)
    now = time.time()
    for path in cache.iterdir():
        if path.name in wanted:
            os.utime(path)
        elif now - path.stat().st_mtime > _DAY:
            path.unlink(missing_ok=True)
