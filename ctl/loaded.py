"""The plane of the loaded mode, and the replacement of one mode by another."""

from pathlib import Path

from ctl.store import state
from dataplane.errors import HotplaneError
from dataplane.faults import ignore
from dataplane.kernel import sysctl
from dataplane.kernel.rcu import wait_for_packets
from dataplane.plan.change import PlanChange
from dataplane.planes.base import Plane
from dataplane.planes.mode import Making, print_warning
from dataplane.planes.options import LOOKING
from dataplane.planes.registry import DEFAULT_MODE, mode_of, modes

_LABS = 5
"""As many labs are named."""


def loaded_plane(asked: str | None, state_dir: str) -> Plane:
    """Return a plane to read what is loaded here: of the mode `asked`, else the last one applied, else the default.
    Raises StateError."""
    return plane_of(asked, state.load(Path(state_dir)))


def plane_of(asked: str | None, saved: state.Saved | None) -> Plane:
    """Return the same where the saved state has been read. saved: None if there is none. What its features lack is
    not told: who only looks has asked for something else, and doctor and the daemon's log tell it."""
    name = asked or (saved.mode if saved else DEFAULT_MODE)
    mine = saved if saved and saved.mode == name else None
    options = (mine.options if mine else None) or LOOKING
    return mode_of(name).make(Making(options, loaded_for=mine.node if mine else None, warn=ignore))


def why_default(asked: str | None, state_dir: str) -> str:
    """Return why answers are about the default mode, as the beginning of a sentence, where nobody asked for it and
    nothing is known to be loaded; "" elsewhere. Raises StateError."""
    if asked or state.load(Path(state_dir)) is not None:
        return ""
    return f"nothing was applied in this network namespace (no state in {state_dir}), so the default mode is asked: "


def last_loaded(asked: str | None, state_dir: str) -> state.Saved:
    """Return what was loaded last here. Raises HotplaneError if nothing was, or in another mode than `asked`."""
    saved = state.load(Path(state_dir))
    if saved is None or (asked and asked != saved.mode):
        where = f"in {asked} mode" if asked else "in this network namespace"
        raise HotplaneError(
            f"nothing was applied {where} (no state in {state_dir}); name the manifests with -f{_lab_hint()}"
        )
    return saved


def _lab_hint() -> str:
    """Return where to ask instead, for who is in no place of a lab while labs are up."""
    from dataplane.kernel.namespaces import netns
    from dataplane.lab import state as labs
    from dataplane.lab.spec import DEFAULT_NAME

    names = labs.up() if netns.is_first() else []
    if not names:
        return ""
    if DEFAULT_NAME in names or len(names) == 1:
        option = "" if DEFAULT_NAME in names else f" --name {names[0]}"
        return f", or ask on a node of the lab: hotplane lab exec{option} node1 -- hotplane ..."
    up = f"{', '.join(names[:_LABS])}{' and others' if len(names) > _LABS else ''}"
    return (
        f", or ask on a node of one of the labs that are up ({up}): hotplane lab exec --name LAB node1 -- hotplane ..."
    )


def replace_plane(old: Plane, name: str) -> int:
    """Remove another mode's rules, now that the mode `name` handles the traffic, without breaking a connection.

    If one of the two builds on the other, what they share stays. Returns how many flows of the old mode go on; they end
    by themselves. A packet that passed the new mode's hook before its rules were there still needs the old ones, so the
    function waits until the kernel has processed such packets (an RCU grace period).
    """
    wait_for_packets()
    routed = sysctl.read(sysctl.ROUTE_LOCALNET)
    left = old.give_way(mode_of(name).planes)
    if routed == "1":  # every mode sets it where node ports answer on 127.0.0.0/8, and takes it back
        mode_of(name).keep_loopback_open()
    return left


def finish_load(plane: Plane, change: PlanChange) -> tuple[str, ...]:
    """Wait for the plane's background work before the process ends, print its warnings, and let the planes of earlier
    modes drain. Returns the Services that the plane left out."""
    for other in modes():
        if other.name != plane.name:
            other.drain_on(change)
    for warning in plane.finish_load():
        print_warning(warning)
    return left_out(plane)


def left_out(plane: Plane) -> tuple[str, ...]:
    """Return the Services that a plane could not hold; the plane underneath handles them alone."""
    return tuple(sorted({key.service for key in plane.left_out}))
