"""What the running daemon of a network namespace alone knows, in files beside its plan.

It writes them when it is asked for its plan (ctl.store.state), whose removal removes them, too (`state.forget`).
"""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from ctl.store.files import make_folder, replace_whole
from ctl.store.state import StateError, ask_daemon, plan_path
from dataplane.malformed import MALFORMED

_Report = TypeVar("_Report", bound=msgspec.Struct)


def report_path(state_dir: Path, suffix: str) -> Path:
    """Return where the report with this suffix (with its dot) is."""
    return plan_path(state_dir).with_suffix(suffix)


def save(state_dir: Path, suffix: str, report: msgspec.Struct) -> None:
    """Write a report for `load`, whole or not at all. Raises StateError."""
    path = report_path(state_dir, suffix)
    try:
        make_folder(state_dir)
        replace_whole(path, path.with_suffix(f".{os.getpid()}"), msgspec.msgpack.encode(report))
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror}); give another --state-dir") from error


def load(state_dir: Path, suffix: str, kind: type[_Report]) -> _Report | None:
    """Return what the daemon of this network namespace reports now; None if none runs. Raises StateError."""
    if not ask_daemon(state_dir):
        return None
    path = report_path(state_dir, suffix)
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror}); run as root") from error
    except MALFORMED as error:
        raise StateError(f"{path}: is not what this version writes ({error}); restart the daemon") from error
