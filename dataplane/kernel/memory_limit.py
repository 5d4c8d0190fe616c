"""How much memory the control groups of this process let it use."""

from collections.abc import Iterator
from pathlib import Path

from dataplane.kernel.release import is_since

_UNLIMITED = 1 << 60
"""Version 1 has no word for "no limit", but a number close to this one and above."""


def memory_limit(proc: Path = Path("/proc/self")) -> int | None:
    """Return the smallest limit in bytes of the control groups that this process is in, as far as its mounts show
    them; None without one. proc: the process's directory."""
    found = [limit for path in _files(proc) if (limit := _limit(path)) is not None]
    return min(found, default=None)


def counts_maps() -> bool:
    """Return whether maps of eBPF programs count there: Linux 5.11 and later. Before, they were locked memory."""
    return is_since((5, 11), unknown=True)


def anonymous_memory() -> int:
    """Return the bytes that this process has and cannot give back; 0 if the kernel does not tell."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # not mounted, the root, or a group of the host that a container does not see
        return None
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None


def _files(proc: Path) -> Iterator[Path]:
    """Yield the files that may hold a limit: of the process's group, and of each one above it."""
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mounts").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, group in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        kind, name = ("cgroup", "memory.limit_in_bytes") if controllers else ("cgroup2", "memory.max")
        for _, where, fstype, options, *_ in mounts:
            if fstype == kind and (kind == "cgroup2" or "memory" in options.split(",")):
                inside = Path(group.lstrip("/"))
                yield from (Path(where) / part / name for part in (inside, *inside.parents))
