"""Control groups, version 2: find the hierarchy, make groups, put processes in, end and remove them.

Only membership matters here (eBPF connect-time programs attach to a group), so no controller is ever enabled.
"""

import errno
import os
import signal
import time
from pathlib import Path

from dataplane.errors import HotplaneError
from dataplane.kernel.namespaces.netns import mount, unmount

PRIVATE_ROOT = Path("/run/hotplane/cgroup2")
"""Mount point of the hierarchy if it is not mounted yet."""

_WITHOUT_PROCESSES = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP)
"""Of a group that was removed, before or after its file was opened, and of one of threads: a group above it has their
processes."""


class CgroupError(HotplaneError):
    """A group cannot be created, or its processes do not end. The text names it and says what to do."""


def mount_points() -> list[Path]:
    """Return the mount points of cgroup v2 in this mount namespace, in mount order."""
    lines = (line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines())
    # Octal escapes stand for blanks in mount points; cgroup mounts never have any in practice, but be exact.
    return [Path(fields[1].encode().decode("unicode_escape")) for fields in lines if fields[2] == "cgroup2"]


def root() -> Path:
    """Return the root directory of the cgroup v2 hierarchy. Raises CgroupError if it is not mounted."""
    mounted = mount_points()
    if not mounted:
        raise CgroupError("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
    return mounted[0]


def is_hierarchy_root(group: Path) -> bool:
    """True if a group is the root of the machine's hierarchy; a container's mount may show only a part of it."""
    return (group / "cgroup.procs").exists() and not (group / "cgroup.type").exists()


def ensure_root() -> Path:
    """Return `root()`, mounting the hierarchy at PRIVATE_ROOT if it is not mounted. Raises CgroupError."""
    if not mount_points():
        PRIVATE_ROOT.mkdir(parents=True, exist_ok=True)
        try:
            mount("none", PRIVATE_ROOT, "cgroup2")
        except OSError as error:
            raise CgroupError(f"cgroup v2: {error}; this kernel or container does not allow it") from error
    return root()


def release_private_root(prefix: str) -> None:
    """Undo the mount of `ensure_root`, if there is one and no group named `prefix`* is left in it."""
    if PRIVATE_ROOT in mount_points() and not any(PRIVATE_ROOT.glob(prefix + "*")):
        unmount(PRIVATE_ROOT)
        PRIVATE_ROOT.rmdir()


def pids(group: Path) -> list[int]:
    """Return the processes in a group and the groups below it; none of a group that is not there, or goes meanwhile."""
    found: set[int] = set()
    for directory, _, _ in os.walk(group):
        try:
            found.update(map(int, (Path(directory) / "cgroup.procs").read_text().split()))
        except OSError as error:
            if error.errno not in _WITHOUT_PROCESSES:
                raise
    return sorted(found)


def enter(group: Path) -> None:
    """Move this process into a group."""
    (group / "cgroup.procs").write_text("0")


def remove(group: Path, patience: float = 60.0) -> None:
    """Kill all processes in a group and below, then remove the groups; no error if there is none.

    If this very process is inside, it leaves for the root first. Raises CgroupError when processes do not end
    within `patience` seconds.
    """
    if not group.is_dir():
        return
    if os.getpid() in pids(group):
        enter(root())
    deadline = time.monotonic() + patience
    while not _try_remove(group):
        if time.monotonic() > deadline:
            raise CgroupError(
                f"cgroup {group}: processes {pids(group)} do not end after SIGKILL, or new ones keep coming; "
                "end what starts them and try again"
            )
        time.sleep(0.005)


def _try_remove(group: Path) -> bool:
    """Kill the processes, then remove empty groups; False if a group is left. A process may enter in between, and one
    that has left cgroup.procs may still be exiting, so the caller tries again."""
    kill = group / "cgroup.kill"
    if kill.exists():  # Linux 5.14
        kill.write_text("1")
    else:
        end_processes(pids(group))
    below = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
    for directory in [*below, group]:
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            return False
    return True


def end_processes(targets: list[int]) -> None:
    """Send SIGKILL to each process but this one; processes that have ended are ignored."""
    for pid in targets:
        if pid == os.getpid():
            continue
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
