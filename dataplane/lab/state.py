"""State of a lab on disk, by which other processes find it: its spec, and whether its setup finished.

Process ids are not kept: the lab's cgroup knows who is in it, and a number on disk may be somebody else's by now.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from dataplane.kernel.namespaces import netns
from dataplane.lab.spec import LabError, LabSpec, namespace_name
from dataplane.malformed import MALFORMED

STATE_DIR = Path("/run/hotplane/lab")


class LabState(msgspec.Struct, frozen=True):
    """A lab on disk. `ready`: it was built to the end."""

    spec: LabSpec
    ready: bool = False


def path_of(name: str) -> Path:
    """State file of a lab."""
    return STATE_DIR / f"{name}.json"


def load(name: str) -> LabState | None:
    """State of a lab, None when there is none. Raises LabError when the file is damaged."""
    try:
        return msgspec.json.decode(path_of(name).read_bytes(), type=LabState)
    except FileNotFoundError:
        return None
    except MALFORMED as error:
        raise LabError(f"lab {name}: {path_of(name)} is damaged ({error}): hotplane lab down --name {name}") from error


def store(state: LabState) -> None:
    """Write a lab's state, all or nothing."""
    path = path_of(state.spec.name)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(state))
    fresh.replace(path)


def hosts_path(name: str) -> Path:
    """The /etc/hosts of what `Lab.execute` runs in a lab."""
    return STATE_DIR / f"{name}.hosts"


def store_hosts(name: str, text: str) -> Path:
    """Write a lab's hosts file, all or nothing; return its path. Raises OSError."""
    path = hosts_path(name)
    fresh = path.with_suffix(f".hosts-{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
    return path


def forget(name: str) -> None:
    """Remove a lab's state; fine when there is none."""
    path_of(name).unlink(missing_ok=True)
    path_of(name).with_suffix(".new").unlink(missing_ok=True)
    for path in STATE_DIR.glob(f"{name}.hosts*"):
        path.unlink(missing_ok=True)


def names() -> list[str]:
    """Labs that have state, sorted."""
    return sorted(path.stem for path in STATE_DIR.glob("*.json"))


def is_there(spec: LabSpec) -> bool:
    """True if a lab's namespaces are there: what ended in the middle, and what was ended, may leave its state alone."""
    return netns.exists(namespace_name(spec.name, "node1"))


def up() -> list[str]:
    """Labs that were built to the end and are there, sorted. Those that cannot be read are left out."""
    found = []
    for name in names():
        try:
            state = load(name)
        except (LabError, OSError):  # damaged, or not for this user
            continue
        if state is not None and state.ready and is_there(state.spec):
            found.append(name)
    return found


@contextmanager
def locked() -> Iterator[None]:
    """One process at a time builds or removes labs. Removes the directories afterwards when nothing is left in them."""
    descriptor = _lock()
    try:
        yield
    finally:
        for directory in (STATE_DIR, STATE_DIR.parent):
            _remove_if_empty(directory)
        os.close(descriptor)


def _remove_if_empty(directory: Path) -> None:
    """Other processes, which hold other locks, may put something into it at any time, or remove it."""
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EBUSY):
            raise


def _lock() -> int:
    while True:
        try:
            STATE_DIR.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(STATE_DIR, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # another process removed it just now
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            # The one we waited for may have removed the directory: a lock on that old one protects nothing.
            if os.path.samestat(os.fstat(descriptor), STATE_DIR.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
