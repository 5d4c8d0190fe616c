"""For whom connect time is off in this network namespace, as a running node has it: what was asked for, and what the
kernel knows of it."""

from collections.abc import Collection, Iterator
from pathlib import Path

from ctl.output import Record
from ctl.store import state
from dataplane.planes.answers import OffTarget
from dataplane.planes.mode import Mode
from dataplane.planes.registry import mode_of

COLUMNS = ("what", "why", "where", "inEffect")


def switched_off(state_dir: Path, mode: Mode | None = None) -> Collection[OffTarget]:
    """Everyone for whom connect time is to be off by what was last loaded here; nobody in modes that do not balance
    then. mode: only where it is the one that is loaded. Raises StateError, and what Mode.off_targets does."""
    saved = state.load(state_dir)
    if saved is None or saved.options is None or (mode is not None and mode.name != saved.mode):
        return ()
    return mode_of(saved.mode).off_targets(saved.options, saved.plan().connect_off)


def records(state_dir: Path) -> Iterator[Record]:
    """One record each."""
    for off in switched_off(state_dir):
        yield {"what": off.what, "why": off.why, "where": off.where, "inEffect": off.in_effect}
