"""Modes whose load was started but never finished: the process may have been killed in between.

The record is written before anything is loaded and removed once the mode is saved in the state (ctl.store.state). A
later process reads in it of which modes there may be rules that no state names, and removes them when it loads another.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ctl.store.files import make_folder, replace_whole
from ctl.store.state import Saved, StateError, plan_path
from dataplane.planes.base import Plane
from dataplane.planes.mode import Making
from dataplane.planes.options import LOOKING
from dataplane.planes.registry import MODES, mode_of, modes


def _path(state_dir: Path) -> Path:
    return plan_path(state_dir).with_suffix(".begun")


def unfinished_modes(state_dir: Path) -> frozenset[str]:
    """Return the modes whose load was started in this network namespace and never finished. Raises StateError."""
    path = _path(state_dir)
    try:
        return frozenset(path.read_text(errors="replace").split()) & frozenset(MODES)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror}); run as root") from error


def record(state_dir: Path, mode: str) -> frozenset[str]:
    """Record that the load of a mode starts in this network namespace; return the modes that were unfinished before.

    Raises StateError.
    """
    path, before = _path(state_dir), unfinished_modes(state_dir)
    try:
        make_folder(state_dir)
        fresh = path.with_suffix(f".begun-{os.getpid()}")
        text = " ".join(sorted({*before, mode}))
        replace_whole(path, fresh, text.encode())  # with the modes that were unfinished before
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror}); give another --state-dir") from error
    return before


def clear(state_dir: Path) -> None:
    """Remove the record: the loaded mode is saved in the state, or its rules are removed. Raises StateError."""
    try:
        _path(state_dir).unlink(missing_ok=True)
        for fresh in state_dir.glob(f"{_path(state_dir).name}-*"):
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"{_path(state_dir)}: cannot be removed: {error.strerror}") from error


def other_modes(mode: str, previous: Saved | None, unfinished: frozenset[str]) -> list[str]:
    """Return the other modes of which there may be rules here, in the order in which they can be removed.

    These are the mode of the state, those of unfinished loads, and those whose rules are hotplane's by name: chains
    with kube-proxy's names may be kube-proxy's own.
    """
    known = {*unfinished, *([previous.mode] if previous else ()), *(each.name for each in modes() if each.is_here())}
    return [each for each in reversed(MODES) if each in known and each != mode]  # first what builds on others


def replace_others(others: Iterable[str], replace: Callable[[Plane], object], live: Iterable[Plane] = ()) -> str:
    """Replace the planes of other modes, once this mode handles the traffic; return their names, "" for none.

    live: planes that this process already has; they are used for their modes. Raises PlaneError.
    """
    planes = {plane.name: plane for plane in live}
    for each in others:
        replace(planes.get(each) or mode_of(each).make(Making(LOOKING)))
    return ", ".join(others)
