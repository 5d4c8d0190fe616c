"""Modes whose rules a process has begun to load and not come to the end with: it may have been killed in between.

Written before anything is loaded, taken away once the state says the same (ctl.state), so that whoever comes next knows
of rules that no state tells of, and removes them when it brings another mode.
"""

from pathlib import Path

from ctl.modes import MODES
from ctl.state import StateError, plan_path


def _path(state_dir: Path) -> Path:
    return plan_path(state_dir).with_suffix(".begun")


def begin(state_dir: Path, mode: str) -> frozenset[str]:
    """This network namespace gets a mode's rules now; returns the modes that were begun before and never ended.

    Raises StateError.
    """
    path = _path(state_dir)
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        before = frozenset(path.read_text().split()) if path.exists() else frozenset()
        path.write_text(" ".join(sorted({*before, mode})))
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror}); give another --state-dir") from error
    return before & frozenset(MODES)


def end(state_dir: Path) -> None:
    """What was begun is written down, or removed. Raises StateError."""
    try:
        _path(state_dir).unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"{_path(state_dir)}: cannot be removed: {error.strerror}") from error
