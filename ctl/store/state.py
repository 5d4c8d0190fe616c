"""The saved state: the loaded plan, which `check` compares with the kernel, and its mode, for `show` and `cleanup`.

One file per network namespace in the state directory, because one directory serves all namespaces of a machine.
"""

import contextlib
import os
import re
import socket
import time
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec

from ctl.store.files import make_folder, replace_whole
from ctl.store.journal import drop, replay
from dataplane.errors import HotplaneError
from dataplane.malformed import MALFORMED
from dataplane.model.forwarding import Dispatch
from dataplane.plan.types import HealthCheck, OffPod, Plan, PlanEntry
from dataplane.planes.options import PlaneOptions
from dataplane.policy.node import NodeConfig

_DAEMON_SECONDS = 15.0
_READ_ATTEMPTS = 10
"""How often a plan is read that a daemon saves meanwhile, as when a command asks for it."""

_OF_COOKIE = re.compile(r"netns-c(\d+)\.")
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14 and later; unique until the machine restarts


class StateError(HotplaneError):
    """The state directory cannot be written, or a file in it cannot be read."""


class Saved(msgspec.Struct, frozen=True):
    """The plan that was last loaded in a network namespace, and its mode.

    options: the user's options of its plane, written under the name of the mode that was the first to have any.
    left_out: Services that the plane could not hold; the one below handles them alone. journal: number of the first
    journal with changes since (ctl.store.journal), 0 = none.
    """

    mode: str
    node: NodeConfig
    service_cidrs: tuple[str, ...] = ()
    entries: tuple[PlanEntry, ...] = ()
    health_checks: tuple[HealthCheck, ...] = ()
    options: PlaneOptions | None = msgspec.field(name="ebpf", default=None)
    left_out: tuple[str, ...] = ()
    journal: int = 0
    connect_off: tuple[OffPod, ...] = ()
    tunnel_peers: frozenset[str] = frozenset()
    tunnel_formats: dict[str, Dispatch] = msgspec.field(default_factory=dict)
    tunnel_moves: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        mode: str,
        plan: Plan,
        options: PlaneOptions | None = None,
        left_out: tuple[str, ...] = (),
        journal: int = 0,
    ) -> "Saved":
        """Make the state of a plan."""
        return cls(
            mode,
            plan.node,
            plan.service_cidrs,
            tuple(plan.entries.values()),
            tuple(plan.health_checks.values()),
            options,
            left_out,
            journal,
            tuple(plan.connect_off.values()),
            plan.tunnel_peers,
            plan.tunnel_formats,
            plan.tunnel_moves,
        )

    def plan(self) -> Plan:
        """Return the saved plan."""
        return Plan(
            node=self.node,
            entries={entry.key: entry for entry in self.entries},
            service_cidrs=self.service_cidrs,
            health_checks={(check.namespace, check.name): check for check in self.health_checks},
            connect_off={(pod.namespace, pod.name): pod for pod in self.connect_off},
            tunnel_peers=self.tunnel_peers,
            tunnel_formats=self.tunnel_formats,
            tunnel_moves=self.tunnel_moves,
        )


def namespace_id() -> str:
    """Return the name of this thread's network namespace: its cookie, or on an older kernel its inode number."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            return f"c{int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), 'little')}"
    except OSError:  # ENOPROTOOPT before 5.14; an inode number may come back after the namespace is gone
        return f"i{os.stat('/proc/thread-self/ns/net').st_ino}"


def plan_path(state_dir: Path) -> Path:
    """Return the path of this network namespace's plan; its journals are beside it."""
    return state_dir / f"netns-{namespace_id()}.msgpack"


def socket_path(state_dir: Path) -> Path:
    """Return the path of the daemon's socket; the daemon saves its plan before it closes a connection to it."""
    return plan_path(state_dir).with_suffix(".sock")


def ask_daemon(state_dir: Path) -> bool:
    """Have the daemon of this network namespace save its plan now; false if there is none."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_DAEMON_SECONDS)
            sock.connect(str(socket_path(state_dir)))
            sock.recv(1)
    except OSError:  # nobody listens: no daemon, or one that was killed; or it is too busy and the last plan must do
        return False
    return True


def _drop_dead_socket(path: Path) -> None:
    """Remove the socket of a daemon that was killed; that of a running one stays."""
    if not path.is_socket():
        return
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_DAEMON_SECONDS)
            sock.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        path.unlink(missing_ok=True)


def save(state_dir: Path, saved: Saved) -> None:
    """Save the state of this network namespace, atomically. Raises StateError."""
    path = plan_path(state_dir)
    try:
        make_folder(state_dir)
        replace_whole(path, path.with_suffix(f".{os.getpid()}"), msgspec.msgpack.encode(saved))
        drop(path, saved.journal or None)
        _stale_path(path).unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror}); give another --state-dir") from error


def _stale_path(path: Path) -> Path:
    return path.with_suffix(".stale")


def mark_stale(state_dir: Path) -> None:
    """Mark the saved plan as older than what the kernel holds, by renaming its file: that works on a full file system,
    too. Does nothing if no plan is saved. Raises StateError."""
    path = plan_path(state_dir)
    try:
        path.replace(_stale_path(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StateError(f"{path}: cannot be renamed ({error.strerror})") from error


def is_stale(state_dir: Path) -> bool:
    """True if the saved plan is older than what the kernel holds (see `mark_stale`). Raises StateError."""
    path = plan_path(state_dir)
    try:
        return not path.exists() and _stale_path(path).exists()
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror}); run as root") from error


def load(state_dir: Path, *, current: bool = True) -> Saved | None:
    """Return the saved state of this network namespace, or None. Raises StateError.

    current: have a running daemon save its plan first.
    """
    if current:
        ask_daemon(state_dir)
    path = plan_path(state_dir)
    for _ in range(_READ_ATTEMPTS):
        before = _versions(path)
        found = _read(path)
        if _versions(path) == before:
            break
    if isinstance(found, StateError):
        raise found
    return found


def _versions(path: Path) -> list[tuple[int, int] | None]:
    """What tells whether a plan's file, or the one of a stale plan, is another one than before."""
    found: list[tuple[int, int] | None] = []
    for each in (path, _stale_path(path)):
        try:
            info = each.stat()
            found.append((info.st_ino, info.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def _read(path: Path) -> Saved | StateError | None:
    """Read the plan as `load` does, or why it cannot be read. Wrong if a daemon saves it meanwhile, which removes the
    journals of the plan before."""
    try:
        file = _stale_path(path) if is_stale(path.parent) else path
        saved = msgspec.msgpack.decode(file.read_bytes(), type=Saved)
        return _with_journals(path, saved) if saved.journal else saved
    except (FileNotFoundError, NotADirectoryError):
        return None
    except StateError as error:
        return error
    except OSError as error:
        return _because(error, f"{path}: cannot be read ({error.strerror}); run as root")
    except MALFORMED as error:
        return _because(error, f"{path}: is not what this version writes ({error}); apply the manifests again")
    except ValueError as error:
        return _because(error, f"{path}: does not hold what it says ({error}); apply the manifests again")


def _because(cause: Exception, text: str) -> StateError:
    error = StateError(text)
    error.__cause__ = cause
    return error


def _with_journals(path: Path, saved: Saved) -> Saved:
    """Return the plan with the changes since it was saved."""
    plan = saved.plan()
    if not replay(path, saved.journal, plan):
        return saved
    return Saved.of(saved.mode, plan, saved.options, saved.left_out, saved.journal)


def forget(state_dir: Path) -> bool:
    """Remove the state of this network namespace, and the directory if it is empty then; true if there was any.

    Raises StateError.
    """
    path = plan_path(state_dir)
    try:
        existed = path.exists()
        existed |= _stale_path(path).exists()
        path.unlink(missing_ok=True)
        _stale_path(path).unlink(missing_ok=True)
        drop(path)
        for suffix in (".routes", ".forwarding"):
            path.with_suffix(suffix).unlink(missing_ok=True)
        for half in (each for each in state_dir.glob(f"{path.stem}.*") if each.suffix[1:].isdigit()):
            half.unlink(missing_ok=True)  # of a process that was killed while it saved
        _drop_dead_socket(socket_path(state_dir))
        with contextlib.suppress(OSError):  # something is in it, it is gone, or it is mounted there, as in a container
            state_dir.rmdir()
    except OSError as error:
        raise StateError(f"{path}: cannot be removed: {error.strerror}") from error
    return existed


def of_namespaces(state_dir: Path, of: Collection[int] | None = None, age: float = 0.0) -> list[Path]:
    """Return the files of network namespaces in a directory. of: cookies, None for any. age: seconds since the last
    write to any of a namespace's files. Raises StateError."""
    found: dict[int, list[Path]] = {}
    youngest: dict[int, float] = {}
    try:
        for path in sorted(state_dir.glob("netns-c*")) if state_dir.is_dir() else ():
            match = _OF_COOKIE.match(path.name)
            if match and (of is None or int(match[1]) in of):
                try:
                    written = path.lstat().st_mtime
                except FileNotFoundError:  # the lock of a command that has just ended
                    continue
                found.setdefault(int(match[1]), []).append(path)
                youngest[int(match[1])] = max(youngest.get(int(match[1]), 0.0), written)
    except OSError as error:
        raise StateError(f"{state_dir}: cannot be looked through: {error.strerror}") from error
    since = time.time() - age
    return [path for cookie, paths in found.items() if not age or youngest[cookie] < since for path in paths]


def forget_gone(files: Iterable[Path], living: Collection[int]) -> list[str]:
    """Remove those of `of_namespaces` whose cookies are not among `living`; returns the removed files' names.

    Raises StateError.
    """
    gone = []
    for path in files:
        match = _OF_COOKIE.match(path.name)
        if match and int(match[1]) not in living:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StateError(f"{path}: cannot be removed: {error.strerror}") from error
            gone.append(path.name)
    return gone
