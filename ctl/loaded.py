"""The plane of what is loaded, and how one mode gives way to another."""

from pathlib import Path

from ctl.store import state
from dataplane.kernel import sysctl
from dataplane.kernel.rcu import wait_for_packets
from dataplane.plan.change import PlanChange
from dataplane.planes.base import Plane
from dataplane.planes.mode import Making, say
from dataplane.planes.options import LOOKING
from dataplane.planes.registry import DEFAULT_MODE, mode_of, modes


def loaded_plane(asked: str | None, state_dir: str) -> Plane:
    """The plane to look at what is loaded here: of the mode asked for, else last applied, else the default."""
    saved = state.load(Path(state_dir))
    name = asked or (saved.mode if saved else DEFAULT_MODE)
    mine = saved if saved and saved.mode == name else None
    options = (mine.options if mine else None) or LOOKING
    return mode_of(name).make(Making(options, loaded_for=mine.node if mine else None))


def replace_plane(old: Plane, name: str) -> int:
    """Remove what another mode holds here, now that the mode `name` answers, without breaking a connection.

    Where one of the two stands on the other one, what they share stays. Returns how many flows of the old mode go on;
    they end by themselves. A packet that passed the new mode's hook before its rules were there must still meet the old
    ones, so those under way are waited for.
    """
    wait_for_packets()
    routed = sysctl.read(sysctl.ROUTE_LOCALNET)
    left = old.give_way(mode_of(name).planes)
    if routed == "1":  # every mode sets it where node ports answer on 127.0.0.0/8, and takes it back
        mode_of(name).keep_loopback_open()
    return left


def settle(plane: Plane, change: PlanChange) -> tuple[str, ...]:
    """After a load by a process that ends now: wait for what the plane does in the background, say what did not work as
    it should, and let planes of earlier modes drain on. Returns the Services that the plane left out."""
    for other in modes():
        if other.name != plane.name:
            other.drain_on(change)
    for sentence in plane.settle():
        say(sentence)
    return left_out(plane)


def left_out(plane: Plane) -> tuple[str, ...]:
    """Services that a plane could not take, and the one underneath serves alone."""
    return tuple(sorted({key.service for key in plane.left_out}))
