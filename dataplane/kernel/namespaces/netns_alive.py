"""Lists the network namespaces of this machine that are in use: by a thread, a name or another bind mount, or an open
descriptor. A namespace that only sockets keep is not found, since no process can enter it; nor is one of a process
that even root may not inspect (in a sandbox).
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dataplane.errors import HotplaneError
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.namespaces.netns_cookie import netns_cookie

_PROC = Path("/proc")
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, linux/proc_ns.h
_NS_GET_NSTYPE, _CLONE_NEWNET = 0xB703, 0x40000000  # linux/nsfs.h, linux/sched.h
_LOOKS = 5
_NEEDED = {  # bits of linux/capability.h, any of which will do
    "CAP_SYS_ADMIN": 1 << 21,
    "CAP_SYS_PTRACE": 1 << 19,
    "CAP_DAC_READ_SEARCH": 1 << 1 | 1 << 2,  # CAP_DAC_OVERRIDE allows more
}
_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
_OUT_OF_REACH = (*_GONE, PermissionError)


def check_sight() -> None:
    """Raise HotplaneError, naming the missing right, unless this process may inspect all processes of the machine:
    namespaces of hidden processes may be in use."""
    if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
        raise HotplaneError(
            "not all processes of this machine can be seen from here, so nobody knows which network namespaces are in "
            "use; run this in the machine's first pid namespace (hostPID)"
        )
    status = Path("/proc/thread-self/status").read_text(encoding="ascii")
    held = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    lacking = [name for name, bits in _NEEDED.items() if not held & bits]
    if lacking:
        raise HotplaneError(
            f"not every process may be looked at without {', '.join(lacking)}, so nobody knows which network "
            "namespaces are in use; run this as root"
        )


def living_cookies() -> frozenset[int]:
    """Return the cookies of all network namespaces in use.

    One that is gone before it can be entered may have changed hands meanwhile, so there is another look at who has it.
    New ones that are gone as soon do not matter: on a busy machine some always come and go. Raises HotplaneError if
    not all of the machine's processes can be seen, or a namespace cannot be entered.
    """
    check_sight()
    cookies, doubtful = set[int](), set[int]()
    for number in range(_LOOKS):
        missed = {inode for inode, paths in _holders().items() if not _look_into(inode, paths, cookies)}
        if not missed or (number and not missed & doubtful):
            return frozenset(cookies)
        doubtful |= missed
    raise HotplaneError("network namespaces come and go faster than they can be looked at; try again")


def _look_into(inode: int, paths: list[str], cookies: set[int]) -> bool:
    """Add the cookie of the namespace with these paths; False if none of them exists any more."""
    for path in paths:
        try:
            if os.stat(path).st_ino != inode:
                continue  # something else is mounted over it
            if _is_network(path):
                with netns(path):
                    cookies.add(netns_cookie())
            return True
        except _GONE:
            continue
        except PermissionError as error:
            raise HotplaneError(f"the network namespace {path} cannot be entered: {error.strerror}; be root") from error
    return False


def _is_network(path: str) -> bool:
    """True if a namespace file is of a network namespace."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
    finally:
        os.close(descriptor)


def _holders() -> dict[int, list[str]]:
    """Return the paths of each network namespace, by inode."""
    found: dict[int, list[str]] = {}
    mounts_seen: set[int] = set()
    for process in _PROC.iterdir():
        if not process.name.isdigit():
            continue
        try:
            for inode, path in _of_process(process, mounts_seen):
                found.setdefault(inode, []).append(path)
        except _OUT_OF_REACH:
            continue  # it ended meanwhile; other users of its namespace are found, too
    return found


def _inode(text: str) -> int:
    """Return the number in `net:[4026531833]`; 0 for any other text."""
    return int(text[5:-1]) if text.startswith("net:[") else 0


def _opened(link: Path) -> int:
    """Return the inode of the network namespace that a link in /proc names, else 0. Raises FileNotFoundError."""
    text = os.readlink(link)
    if text != "/":
        return _inode(text)
    there = os.stat(link)  # a namespace file looks so once its mount was detached; others are among the mounts
    return there.st_ino if there.st_dev == os.stat("/proc/self/ns/net").st_dev else 0


def _of_process(process: Path, mounts_seen: set[int]) -> Iterator[tuple[int, str]]:
    """Yield (inode, namespace file) of a process: of its threads, descriptors and mounts."""
    links = [thread / "ns" / "net" for thread in (process / "task").iterdir()]
    for link in [*links, *(process / "fd").iterdir()]:
        try:
            inode = _opened(link)
        except FileNotFoundError:
            continue  # the thread ended, or it was closed meanwhile
        if inode:
            yield inode, str(link)
    mount_namespace = (process / "ns" / "mnt").stat().st_ino
    if mount_namespace not in mounts_seen:
        lines = (process / "mountinfo").read_text().splitlines()
        mounts_seen.add(mount_namespace)  # not before: a process that ends now has told nothing
        for line in lines:
            fields = line.split(" ")
            if _inode(fields[3]):
                point = fields[4].encode().decode("unicode_escape")  # octal escapes stand for blanks
                yield _inode(fields[3]), f"{process}/root{point}"
