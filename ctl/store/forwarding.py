"""What the running daemon of a network namespace says of forwarding: what this node announces, which others take what
it forwards, and why the rest does not.

It is known to the daemon alone; it writes it down when it is asked for its plan (ctl.store.state).
"""

import os
from pathlib import Path

import msgspec

from ctl.store.files import make_folder, replace_whole
from ctl.store.state import StateError, ask_daemon, plan_path
from dataplane.malformed import MALFORMED


class OtherNode(msgspec.Struct, frozen=True):
    """A node that announces something, was named by hand, or has endpoints of Services that ask for forwarding. why: no
    packet is forwarded to it, "" if they are."""

    name: str
    addresses: tuple[str, ...] = ()
    why: str = ""


class SavedForwarding(msgspec.Struct, frozen=True):
    """mode: of `--lb-mode`. announced: the text on this node's Node object, "" without one. why: this node announces
    nothing though something asks for forwarding, "" otherwise. asked: something does."""

    mode: str = ""
    announced: str = ""
    why: str = ""
    asked: bool = False
    nodes: tuple[OtherNode, ...] = ()


def save(state_dir: Path, saved: SavedForwarding) -> None:
    """Write it down for `load`. Raises StateError."""
    path = _path(state_dir)
    try:
        make_folder(state_dir)
        replace_whole(path, path.with_suffix(f".{os.getpid()}"), msgspec.msgpack.encode(saved))
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror}); give another --state-dir") from error


def load(state_dir: Path) -> SavedForwarding | None:
    """Return what the daemon of this network namespace says now; None if none runs. Raises StateError."""
    if not ask_daemon(state_dir):
        return None
    path = _path(state_dir)
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=SavedForwarding)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror}); run as root") from error
    except MALFORMED as error:
        raise StateError(f"{path}: is not what this version writes ({error}); restart the daemon") from error


def _path(state_dir: Path) -> Path:
    return plan_path(state_dir).with_suffix(".forwarding")
