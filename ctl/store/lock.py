"""One process at a time changes the rules of a network namespace: the one that holds this lock.

The lock is a file of root's in one directory for the whole machine, whatever --state-dir says, named after the network
namespace and locked by fcntl(2). The kernel takes such a lock away when its holder ends, however that happens; forked
children do not have it; and F_GETLK tells the holder as a process of whoever asks, also across pid namespaces. An
abstract socket would belong to the network namespace by itself, but any user's process in it could take the name.
"""

import argparse
import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from ctl.store.files import PRIVATE, make_folder
from ctl.store.state import namespace_id
from dataplane.errors import HotplaneError
from dataplane.malformed import MALFORMED
from dataplane.planes.mode import say

DIRECTORY = Path("/run/hotplane")
GAVE_WAY = 4
"""Exit status of a daemon that ended because another process asked it to (--takeover)."""

COMMAND_SECONDS = 60.0
"""How long to wait for another command, which ends by itself, and for a daemon that was asked to give way."""

_LOOK_SECONDS = 0.05
_FLOCK = "hhqqi4x"  # struct flock of fcntl(2) where a long has 64 bits
_REQUEST = b"give way\n"
_MOST = 4096


class LockError(HotplaneError):
    """Another process has this network namespace, or nobody can know whether one has."""


class Holder(msgspec.Struct, frozen=True):
    """Who holds the lock. command: of the command line. since: seconds since 1970. daemon: it stays until it is ended.
    pid: 0 where the asking process cannot see it."""

    pid: int = 0
    command: str = "?"
    mode: str = ""
    since: float = 0.0
    daemon: bool = False

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if self.since else "?"
        words = [f"pid {self.pid}" if self.pid else "in another pid namespace"]
        words += [f"{self.mode} mode"] if self.mode else []
        return f"hotplane {self.command} ({', '.join([*words, f'since {since}'])})"


def lock_path() -> Path:
    """The lock of this thread's network namespace."""
    return DIRECTORY / f"netns-{namespace_id()}.lock"


def door_path() -> Path:
    """The socket on which the daemon of this thread's network namespace hears that it should give way."""
    return lock_path().with_suffix(".door")


def add_takeover_option(parser: argparse.ArgumentParser) -> None:
    """Add `--takeover` to a command that changes rules."""
    parser.add_argument(
        "--takeover",
        action="store_true",
        help=f"have a hotplane daemon that runs here give way first: it ends with status {GAVE_WAY} and leaves its "
        "rules, which serve on until this command's are there",
    )


class Lock:
    """The lock of a network namespace, held from `hold` on until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int | None, holder: Holder) -> None:
        self.path, self._descriptor, self._holder = path, descriptor, holder
        self.describe(holder.mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def describe(self, mode: str) -> None:
        """Say which mode is served from now on, for whoever asks who holds the lock."""
        if self._descriptor is None:
            return
        self._holder = msgspec.structs.replace(self._holder, mode=mode)
        with contextlib.suppress(OSError):  # a full file system: the lock holds all the same, its holder has no name
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, msgspec.json.encode(self._holder), 0)

    def release(self) -> None:
        """Let others have it, and leave no file behind; fine twice."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            self.path.with_suffix(".door").unlink(missing_ok=True)  # of a daemon that was killed
            self.path.unlink()  # while it is held: whoever opened it meanwhile finds that it is not the one any more
            DIRECTORY.rmdir()  # fails where anything else is in it
        os.close(self._descriptor)
        self._descriptor = None


def hold(
    command: str,
    mode: str = "",
    *,
    daemon: bool = False,
    takeover: bool = False,
    tell: Callable[[str], None] = say,
    seconds: float = COMMAND_SECONDS,
) -> Lock:
    """Take the lock of this thread's network namespace.

    Another command is waited for, at most `seconds`; a daemon only with `takeover`, which asks it to end. Raises
    LockError naming the holder. Where the directory cannot be written a daemon says so to `tell` and goes on, since a
    node without Services is worse; a command raises LockError then, too.
    """
    holder = Holder(os.getpid(), command, mode, time.time(), daemon)
    path, end, asked, told = lock_path(), time.monotonic() + seconds, False, False
    while True:
        try:
            found = _take(path)
        except OSError as error:
            hint = "run as root" if isinstance(error, PermissionError) and os.geteuid() else "make it writable"
            text = f"{path}: this network namespace cannot be locked ({error.strerror}); {hint}"
            if not daemon:
                raise LockError(text) from error
            tell(f"{text}, or another hotplane process may undo what this one does")
            return Lock(path, None, holder)
        if isinstance(found, int):
            return Lock(path, found, holder)
        if found.daemon and not takeover:
            raise LockError(f"{found} has this network namespace: end it first, or let it give way with --takeover")
        if found.daemon and not asked:
            asked = _ask_to_give_way(path.with_suffix(".door"), holder)
        if time.monotonic() > end:
            state = "was asked to give way and still has" if asked else "has"
            raise LockError(f"{found} {state} this network namespace after {seconds:.0f} s; end it first")
        if not told:
            told = True
            tell(f"waiting for {found}" + (", which was asked to give way" if asked else ""))
        time.sleep(_LOOK_SECONDS)


def _take(path: Path) -> int | Holder:
    """The locked file's descriptor, or who has it. Raises OSError."""
    while True:
        try:
            make_folder(DIRECTORY)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
        except FileNotFoundError:
            continue  # the last holder removed the directory in between
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(descriptor)
            if mine.st_uid not in (0, os.geteuid()):
                raise PermissionError(errno.EPERM, f"it belongs to user {mine.st_uid}; remove it")
            if stat.S_IMODE(mine.st_mode) != PRIVATE:
                os.fchmod(descriptor, PRIVATE)
            if path.stat().st_ino == mine.st_ino:
                return descriptor
        except FileNotFoundError:
            pass  # its last holder has just removed it
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                raise
            holder = _holder(descriptor)
            os.close(descriptor)
            if holder is not None:
                return holder
            continue  # it has just ended
        os.close(descriptor)


def _holder(descriptor: int) -> Holder | None:
    """Who holds the lock on an open file; None for nobody."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    if kind == fcntl.F_UNLCK:
        return None
    try:
        said = msgspec.json.decode(os.pread(descriptor, _MOST, 0), type=Holder)
    except MALFORMED:  # it has taken the lock and not said who it is yet
        said = Holder()
    return msgspec.structs.replace(said, pid=max(pid, 0))


def _ask_to_give_way(door: Path, asking: Holder) -> bool:
    """Whether a daemon has heard it; one that has only just started may not yet."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(str(door))
            connection.sendall(_REQUEST + msgspec.json.encode(asking) + b"\n")
            return connection.recv(1) != b""
    except OSError:
        return False


def asks_to_give_way(request: bytes) -> Holder | None:
    """Who asks, where what a door received is a request to give way. request: two lines."""
    first, _, second = request.partition(b"\n")
    if first + b"\n" != _REQUEST:
        return None
    try:
        return msgspec.json.decode(second, type=Holder)
    except MALFORMED:
        return Holder()
