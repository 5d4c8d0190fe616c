"""The lock of a network namespace: only the process that holds it may change the namespace's rules.

The lock is a file owned by root in one directory for the whole machine, independent of --state-dir, named after the
network namespace and locked with fcntl(2). The kernel drops such a lock when its holder ends, however that happens;
forked children do not inherit it; and F_GETLK returns the holder's pid as seen from the caller's pid namespace. An
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
from dataplane.planes.mode import print_warning

DIRECTORY = Path("/run/hotplane")
TAKEOVER_SUFFIX, EARLIER_SUFFIX = ".takeover", ".door"
"""Of the socket beside the lock file on which a daemon receives takeover requests; the second is that of earlier
versions' daemons, which an upgrade may meet."""

TAKEN_OVER_STATUS = 4
"""Exit status of a daemon that ended because another process took over (--takeover)."""

COMMAND_SECONDS = 60.0
"""How long to wait for another command, which ends by itself, and for a daemon that was asked to end."""

_POLL_SECONDS = 0.05
_FLOCK = "hhqqi4x"  # struct flock of fcntl(2) where a long has 64 bits
_REQUEST = b"give way\n"
_MAX_BYTES = 4096


class LockError(HotplaneError):
    """Another process holds the lock of this network namespace, or the lock file cannot be used."""


class Holder(msgspec.Struct, frozen=True):
    """The process that holds the lock. command: of the command line. since: seconds since 1970. daemon: it runs
    until it is stopped. pid: 0 if it is not in this process's pid namespace."""

    pid: int = 0
    command: str = "?"
    mode: str = ""
    since: float = 0.0
    daemon: bool = False

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if self.since else "?"
        details = [f"pid {self.pid}" if self.pid else "in another pid namespace"]
        details += [f"{self.mode} mode"] if self.mode else []
        return f"hotplane {self.command} ({', '.join([*details, f'since {since}'])})"


def lock_path() -> Path:
    """Return the lock file of this thread's network namespace."""
    return DIRECTORY / f"netns-{namespace_id()}.lock"


def takeover_socket_path() -> Path:
    """Return the socket on which the daemon of this thread's network namespace receives takeover requests."""
    return lock_path().with_suffix(TAKEOVER_SUFFIX)


def add_takeover_option(parser: argparse.ArgumentParser) -> None:
    """Add `--takeover` to a command that changes rules."""
    parser.add_argument(
        "--takeover",
        action="store_true",
        help="have a hotplane daemon that runs here give way first: it ends with status "
        f"{TAKEN_OVER_STATUS} and leaves its rules, which serve on until this command's are there",
    )


class Lock:
    """The lock of a network namespace, held until `release` or the end of the process (see `hold`)."""

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
        """Write the mode that is served from now on to the lock file, for other processes to read."""
        if self._descriptor is None:
            return
        self._holder = msgspec.structs.replace(self._holder, mode=mode)
        with contextlib.suppress(OSError):  # a full file system: the lock is held, the file does not name the holder
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, msgspec.json.encode(self._holder), 0)

    def release(self) -> None:
        """Release the lock and remove its files; may be called twice."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            for suffix in (TAKEOVER_SUFFIX, EARLIER_SUFFIX):  # of a daemon that was killed
                self.path.with_suffix(suffix).unlink(missing_ok=True)
            self.path.unlink()  # while held: a process that has it open finds another inode at the path
            DIRECTORY.rmdir()  # fails if anything else is in it
        os.close(self._descriptor)
        self._descriptor = None


def hold(
    command: str,
    mode: str = "",
    *,
    daemon: bool = False,
    takeover: bool = False,
    warn: Callable[[str], None] = print_warning,
    seconds: float = COMMAND_SECONDS,
) -> Lock:
    """Take the lock of this thread's network namespace.

    Waits for another command, at most `seconds`; for a daemon only with `takeover`, which asks it to end. Raises
    LockError naming the holder. If the directory cannot be written, a daemon reports that through `warn` and goes on,
    since a node without Services is worse; a command raises LockError.
    """
    holder = Holder(os.getpid(), command, mode, time.time(), daemon)
    path, end, requested, warned = lock_path(), time.monotonic() + seconds, False, False
    while True:
        try:
            found = _take(path)
        except OSError as error:
            hint = "run as root" if isinstance(error, PermissionError) and os.geteuid() else "make it writable"
            text = f"{path}: this network namespace cannot be locked ({error.strerror}); {hint}"
            if not daemon:
                raise LockError(text) from error
            warn(f"{text}, or another hotplane process may undo what this one does")
            return Lock(path, None, holder)
        if isinstance(found, int):
            return Lock(path, found, holder)
        if found.daemon and not takeover:
            raise LockError(f"{found} has this network namespace: end it first, or let it give way with --takeover")
        if found.daemon and not requested:
            sockets = (path.with_suffix(suffix) for suffix in (TAKEOVER_SUFFIX, EARLIER_SUFFIX))
            requested = any(_request_takeover(each, holder) for each in sockets)
        if time.monotonic() > end:
            state = "was asked to give way and still has" if requested else "has"
            raise LockError(f"{found} {state} this network namespace after {seconds:.0f} s; end it first")
        if not warned:
            warned = True
            warn(f"waiting for {found}" + (", which was asked to give way" if requested else ""))
        time.sleep(_POLL_SECONDS)


def _take(path: Path) -> int | Holder:
    """Lock the file and return its descriptor, or return the process that holds it. Raises OSError."""
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
    """Return the process that holds the lock on an open file; None if it is not locked."""
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, request))
    if kind == fcntl.F_UNLCK:
        return None
    try:
        holder = msgspec.json.decode(os.pread(descriptor, _MAX_BYTES, 0), type=Holder)
    except MALFORMED:  # it has the lock but has not written its description yet
        holder = Holder()
    return msgspec.structs.replace(holder, pid=max(pid, 0))


def _request_takeover(path: Path, sender: Holder) -> bool:
    """Ask a daemon to end; true if it has received the request. One that has just started may not listen yet."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(str(path))
            connection.sendall(_REQUEST + msgspec.json.encode(sender) + b"\n")
            return connection.recv(1) != b""
    except OSError:
        return False


def parse_takeover_request(request: bytes) -> Holder | None:
    """Return the process that sent a takeover request of two lines; None if it is no such request."""
    first, _, second = request.partition(b"\n")
    if first + b"\n" != _REQUEST:
        return None
    try:
        return msgspec.json.decode(second, type=Holder)
    except MALFORMED:
        return Holder()
