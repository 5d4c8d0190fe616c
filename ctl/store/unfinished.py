"""Modes whose load was started but never finished: the process may have been killed in between.

The record is written before anything is loaded and removed once the state says the same (ctl.store.state). A later
process learns from it of rules that no state mentions, and removes them when it loads another mode.
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


def begun(state_dir: Path) -> frozenset[str]:
    """The modes that were begun in this network namespace and never ended. Raises StateError."""
    path = _path(state_dir)
    try:
        return frozenset(path.read_text(errors="replace").split()) & frozenset(MODES) if path.exists() else frozenset()
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror}); run as root") from error


def begin(state_dir: Path, mode: str) -> frozenset[str]:
    """This network namespace gets a mode's rules now; returns the modes that were begun before and never ended.

    Raises StateError.
    """
    path, before = _path(state_dir), begun(state_dir)
    try:
        make_folder(state_dir)
        fresh = path.with_suffix(f".begun-{os.getpid()}")
        words = " ".join(sorted({*before, mode}))
        replace_whole(path, fresh, words.encode())  # what was begun before must not be forgotten
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror}); give another --state-dir") from error
    return before


def end(state_dir: Path) -> None:
    """What was begun is written down, or removed. Raises StateError."""
    try:
        _path(state_dir).unlink(missing_ok=True)
        for fresh in state_dir.glob(f"{_path(state_dir).name}-*"):
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"{_path(state_dir)}: cannot be removed: {error.strerror}") from error


def other_modes(mode: str, previous: Saved | None, unfinished: frozenset[str]) -> list[str]:
    """Modes of which rules may be here beside those of `mode`, in the order in which they can go.

    Only what the state says was ours, or was begun by a process that did not come to its end, or tells of itself:
    chains of kube-proxy's names may be kube-proxy's own.
    """
    known = {*unfinished, *([previous.mode] if previous else ()), *(each.name for each in modes() if each.is_here())}
    return [each for each in reversed(MODES) if each in known and each != mode]  # first what stands on others


def replace_others(others: Iterable[str], replace: Callable[[Plane], object], live: Iterable[Plane] = ()) -> str:
    """Have the planes of other modes give way, now that this mode answers; the modes, or "" for none.

    live: planes that this process has worked with so far, used where one is of such a mode. Raises PlaneError.
    """
    planes = {plane.name: plane for plane in live}
    for each in others:
        replace(planes.get(each) or mode_of(each).make(Making(LOOKING)))
    return ", ".join(others)
