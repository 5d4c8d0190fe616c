"""Network namespaces: make, enter, look into and remove them, in this process and without a helper program.

Named the way iproute2 names them: a file under /run/netns that a namespace is bind-mounted on, so that `ip netns`
sees them too. Entering is per thread (setns(2)): other threads of the process stay where they are.
"""

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

NETNS_DIR = Path("/run/netns")

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWUTS = 0x04000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SLAVE = 0x80000
_MS_SHARED = 0x100000
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, fstype: str = "", flags: int = 0) -> None:
    """mount(2). Raises OSError with the target in its text."""
    _check(_libc.mount(source.encode(), os.fsencode(target), fstype.encode(), flags, None), f"mount on {target}")


def unmount(target: Path) -> None:
    """Detach the mount at `target` (lazily: it goes when its last user does). Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"unmount {target}")


def _setns(descriptor: int, what: str) -> None:
    _check(_libc.setns(descriptor, _CLONE_NEWNET), f"enter network namespace {what}")


def _open_current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _prepare_directory() -> None:
    """Make /run/netns a shared mount of its own, as `ip netns add` does, so other mount namespaces see new entries go.

    Whether it is a mount already is asked of the kernel: comparing device numbers (os.path.ismount) misses a bind mount
    on the same file system, and binding a shared directory on itself again doubles all mounts below it.
    """
    NETNS_DIR.mkdir(parents=True, exist_ok=True)
    try:
        mount("", NETNS_DIR, flags=_MS_SHARED | _MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: not a mount point
            raise
        mount(str(NETNS_DIR), NETNS_DIR, flags=_MS_BIND | _MS_REC)
        mount("", NETNS_DIR, flags=_MS_SHARED | _MS_REC)


def is_first() -> bool:
    """True if this thread is in the initial network namespace, the only one that has the machine-wide settings."""
    return Path("/proc/sys/net/core/netdev_budget").exists()


def exists(name: str) -> bool:
    """True if a namespace, or a stale file of one, has this name."""
    return (NETNS_DIR / name).exists()


def is_current(name: str) -> bool:
    """True if this thread is in the namespace of this name; False also if there is none."""
    try:
        return os.path.samestat(os.stat(NETNS_DIR / name), os.stat("/proc/thread-self/ns/net"))
    except OSError:
        return False


def names() -> list[str]:
    """Return the names of all namespaces, sorted."""
    return sorted(entry.name for entry in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []


def create(name: str) -> None:
    """Create an empty namespace. Raises FileExistsError if the name is taken, OSError if the kernel refuses."""
    _prepare_directory()
    path = NETNS_DIR / name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))

    def make() -> None:
        _check(_libc.unshare(_CLONE_NEWNET), f"make network namespace {name}")
        mount(f"/proc/self/task/{threading.get_native_id()}/ns/net", path, flags=_MS_BIND)

    try:
        with _back_afterwards():
            make()
    except OSError:
        path.unlink()
        raise


def remove(name: str) -> None:
    """Remove a name; the namespace itself is deleted with its last process. No error if there is none."""
    path = NETNS_DIR / name
    if not path.exists():
        return
    while _is_namespace(path):  # not so when a crash came between making the file and mounting on it
        unmount(path)
    path.unlink()


def _is_namespace(path: Path) -> bool:
    """True for a bind-mounted namespace, which is a file on nsfs; os.path.ismount only detects directories."""
    return path.stat().st_dev == os.stat("/proc/self/ns/net").st_dev


@contextmanager
def _back_afterwards() -> Iterator[None]:
    origin = _open_current()
    try:
        yield
    finally:
        try:
            _setns(origin, "this thread came from")
        finally:
            os.close(origin)


@contextmanager
def netns(name: str) -> Iterator[None]:
    """Run the body of a `with` inside a namespace: this thread only, put back exactly afterwards; nests.

    name: its name, or the full path of any file that stands for one (/proc/1/ns/net).
    Sockets, and processes started, inside the body belong to the namespace for good.
    Raises FileNotFoundError when there is no namespace of that name.
    """
    target = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _back_afterwards():
            _setns(target, name)
            yield
    finally:
        os.close(target)


def in_netns(name: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function inside a namespace, in this thread, and return what it returns."""
    with netns(name):
        return function(*args, **kwargs)


def enter(name: str) -> None:
    """Move this thread into a namespace for good (before exec). Raises FileNotFoundError, OSError."""
    target = os.open(NETNS_DIR / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(target, name)
    finally:
        os.close(target)


def leave() -> None:
    """Move this process, which has one thread, into a new, empty and nameless namespace, for good.

    Without CAP_SYS_ADMIN by way of a user namespace of its own, where the machine lets everybody make one. Raises
    OSError.
    """
    try:
        _check(_libc.unshare(_CLONE_NEWNET), "make a network namespace")
    except PermissionError:
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET), "make a user and a network namespace")


def call_host(name: str) -> None:
    """Give this thread a host name of its own for good (before exec). Raises OSError."""
    _check(_libc.unshare(_CLONE_NEWUTS), f"make a UTS namespace for {name}")
    socket.sethostname(name)


def lay_over(file: Path, target: Path) -> None:
    """Show this process, which has one thread, another file in the place of `target`, for good (before exec): a bind
    mount in a mount namespace of its own, as `ip netns exec` makes for files of /etc/netns. Raises OSError."""
    _check(_libc.unshare(_CLONE_NEWNS), "make a mount namespace")
    mount("", Path("/"), flags=_MS_SLAVE | _MS_REC)  # what is mounted in here stays in here
    mount(str(file), target, flags=_MS_BIND)


def pids(inside: Iterable[str]) -> dict[int, str]:
    """Return the processes whose main thread is in one of these namespaces: pid -> namespace name."""
    by_inode: dict[int, str] = {}
    for name in inside:
        path = NETNS_DIR / name
        try:
            if _is_namespace(path):
                by_inode[path.stat().st_ino] = name
        except FileNotFoundError:
            continue  # there is none, or no longer
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            inode = (entry / "ns" / "net").stat().st_ino
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, is a zombie, or is beyond our reach and so never was ours
        if inode in by_inode:
            found[int(entry.name)] = by_inode[inode]
    return found
