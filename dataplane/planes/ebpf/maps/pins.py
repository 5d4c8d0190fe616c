"""Pinned maps and links, in a bpffs of hotplane's own, with one directory for each network namespace.

The file system is mounted at /run/hotplane/bpf, whether or not /sys/fs/bpf is mounted: tools that enter network
namespaces (`ip netns exec`) replace /sys in a mount namespace of their own, and a mount made in there would be gone
with that command. So it is made in, and reached through, the mount namespace of the outermost ancestor.

Layout: <bpffs>/<instance>/maps-<layout version>/<map>, programs/<program>-<digest> beside the maps that they refer to,
and <bpffs>/<instance>/links/<program>[-<device>].
"""

import ctypes
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from dataplane.kernel.ebpf.bpf import BPF_FS_MAGIC
from dataplane.kernel.namespaces.netns_cookie import netns_cookie
from dataplane.kernel.namespaces.outside import outer_process
from dataplane.kernel.tools import ToolError, run_tool
from dataplane.planes.base import PlaneError

MOUNT_POINT = Path("/run/hotplane/bpf")
_MAPS, _PROGRAMS = "maps-", "programs"
DRAINING = "draining"
"""Directory beside the pins of a draining instance (see flows/drain.py)."""


class PinsHidden(PlaneError):
    """This process's user may not read the pins, so none of them is its own."""


def default_instance() -> str:
    """Return the name of this network namespace's directory."""
    return f"netns-{netns_cookie():x}"


def _is_bpffs(path: Path) -> bool:
    """True if a directory is in a bpffs, by statfs(2), whose first field is the magic number."""
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return int.from_bytes(buffer.raw[:4], "little") == BPF_FS_MAGIC


def _run_outside(outer: int | None, *command: str) -> None:
    """Run a command in the mount namespace of a process (None: in this one)."""
    prefix = ("nsenter", f"--mount=/proc/{outer}/ns/mnt") if outer else ()
    try:
        done = run_tool((*prefix, *command), seconds=30)
    except (OSError, ToolError) as error:
        raise PlaneError(f"{' '.join(command)}: {error}; a bpffs is needed to keep eBPF state") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise PlaneError(f"{' '.join(command)}: {said}; a bpffs is needed to keep eBPF state")


@contextmanager
def _locked() -> Iterator[None]:
    """Lock against other processes that mount or unmount. The lock is on a directory that always exists, so that no
    lock file remains."""
    lock = os.open(MOUNT_POINT.parents[1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@cache
def _held(path: str, device: int) -> Path:
    """Return a path of a directory that stays valid when the process through which it was found ends. device: st_dev of
    its file system, since after an unmount another one may be in its place."""
    return Path(f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}")


def find_root() -> Path | None:
    """Return the bpffs if it is mounted: in this mount namespace or the original one (see outside.py)."""
    if _is_bpffs(MOUNT_POINT):
        return MOUNT_POINT
    outer = outer_process()
    outside = Path(f"/proc/{outer}/root") / MOUNT_POINT.relative_to("/")
    return _held(str(outside), outside.stat().st_dev) if outer and _is_bpffs(outside) else None


def ensure_root() -> Path:
    """Return the bpffs, mounting it if necessary (CAP_SYS_ADMIN). Raises PlaneError."""
    root = find_root()
    if root is None:
        outer = outer_process()
        _run_outside(outer, "mkdir", "-p", str(MOUNT_POINT))
        _run_outside(outer, "mount", "-t", "bpf", "-o", "mode=0700", "hotplane", str(MOUNT_POINT))
        root = find_root()
    if root is None:
        raise PlaneError(f"{MOUNT_POINT}: a bpffs was mounted there but cannot be seen; is /proc mounted?")
    return root


@contextmanager
def _looking_into(root: Path | None) -> Iterator[None]:
    """Raise PinsHidden for a PermissionError below the root."""
    try:
        yield
    except PermissionError as error:
        raise PinsHidden(f"{root}: cannot be looked into: {error.strerror}; it is root's, be root") from error


def instance_names() -> list[str]:
    """Return the names of all instances with pins, sorted."""
    root = find_root()
    try:
        with _looking_into(root):
            return sorted(path.name for path in root.iterdir() if path.is_dir()) if root else []
    except FileNotFoundError:  # who removed the last instance has unmounted it meanwhile
        return []


class PinDirectory:
    """Everything pinned for one instance of the plane."""

    def __init__(self, instance: str) -> None:
        if not instance or "/" in instance or "." in instance:
            raise PlaneError(f"{instance!r} cannot name a pin directory: bpffs takes neither '/' nor '.'")
        self.instance = instance
        self.wanted_links: set[str] = set()
        self.wanted_programs: set[str] = set()

    @property
    def path(self) -> Path | None:
        """The directory, or None if nothing is pinned."""
        root = find_root()
        with _looking_into(root):
            return root / self.instance if root and (root / self.instance).is_dir() else None

    @property
    def draining(self) -> bool:
        """True if this instance is draining."""
        path = self.path
        return path is not None and (path / DRAINING).is_dir()

    @property
    def abandoned(self) -> bool:
        """True if there are pins and no drain was started: of a mode in use, or of a process that was killed while it
        loaded or removed them."""
        return self.path is not None and not self.draining

    def ensure(self) -> Path:
        """Return the directory; creates it, and mounts the bpffs, if necessary."""
        with _locked():
            path = ensure_root() / self.instance
            (path / "links").mkdir(parents=True, exist_ok=True)
            return path

    def map_versions(self) -> list[str]:
        """Return the layout versions with pinned maps."""
        path = self.path
        return sorted(p.name.removeprefix(_MAPS) for p in path.glob(f"{_MAPS}*")) if path else []

    def maps(self, version: str) -> Path:
        """Return the directory for the maps of one layout version; creates it if necessary."""
        path = self.ensure() / f"{_MAPS}{version}"
        path.mkdir(exist_ok=True)
        return path

    def directories(self, version: str) -> list[Path]:
        """Return the directories of links and of one layout version's maps, as far as there are any pins."""
        path = self.path
        return [path / "links", path / f"{_MAPS}{version}"] if path else []

    def pinned_maps(self, version: str) -> set[str]:
        """Return the names of the pins of one layout version's maps."""
        path = self.path
        folder = path / f"{_MAPS}{version}" if path else None
        return {each.name for each in folder.iterdir()} - {_PROGRAMS} if folder and folder.is_dir() else set()

    def program(self, version: str, name: str) -> Path:
        """Return the path of a program's pin beside its maps and add it to `wanted_programs`, so that unwanted ones can
        be removed."""
        self.wanted_programs.add(name)
        folder = self.maps(version) / _PROGRAMS
        folder.mkdir(exist_ok=True)
        return folder / name

    def remove_unwanted_programs(self, version: str) -> None:
        """Unpin the programs beside these maps that nobody asked for since `wanted_programs` was cleared: those of an
        earlier version."""
        folder = self.maps(version) / _PROGRAMS
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in self.wanted_programs:
                path.unlink()

    def remove_maps(self, version: str) -> None:
        """Unpin the maps of one layout version; programs that use them keep them."""
        if self.path and (self.path / f"{_MAPS}{version}").is_dir():
            _remove_tree(self.path / f"{_MAPS}{version}")

    def link(self, name: str) -> Path:
        """Return the path of a link's pin and add it to `wanted_links`, so that unwanted links can be removed."""
        self.wanted_links.add(name)
        return self.ensure() / "links" / name

    def links(self) -> dict[str, Path]:
        """Return the pinned links, by name."""
        path = self.path
        return {p.name: p for p in sorted((path / "links").iterdir())} if path and (path / "links").is_dir() else {}

    def remove(self) -> None:
        """Unpin everything of this instance, and unmount the bpffs after the last instance."""
        if find_root() is None:
            return
        with _locked():
            if self.path:
                _remove_tree(self.path)
            root = find_root()
            if root is not None and not any(entry.is_dir() for entry in root.iterdir()):
                outer = outer_process()
                _run_outside(outer, "umount", "--lazy", str(MOUNT_POINT))  # other users may hold it open for a moment
                _run_outside(outer, "rmdir", str(MOUNT_POINT))
                _run_outside(outer, "rmdir", "--ignore-fail-on-non-empty", str(MOUNT_POINT.parent))
                _held.cache_clear()


def _remove_tree(path: Path) -> None:
    """Like shutil.rmtree, which does not work on bpffs (no directory descriptors for special files)."""
    for entry in path.iterdir():
        if entry.is_dir():
            _remove_tree(entry)
        else:
            entry.unlink()
    path.rmdir()
