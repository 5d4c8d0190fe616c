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


def why_nobody(state_dir: Path) -> str:
    """What to say where it is off for nobody in particular: nothing balances at connect time here at all, or it is on
    for everyone. Raises StateError."""
    saved = state.load(state_dir)
    if saved is None:
        return f"nothing was applied in this network namespace (no state in {state_dir}), so nothing balances there"
    mode = mode_of(saved.mode)
    if not mode.connect_time:
        return f"the {saved.mode} mode never balances at connect time"
    if saved.options is not None and not mode.at_connect(mode.in_effect(saved.options)):
        return (
            "connect time is off for everybody in this network namespace: the connect hook is not loaded; unless "
            "--hooks or --cgroup left it out, doctor says why"
        )
    return "connect time is off for nobody in this network namespace"
