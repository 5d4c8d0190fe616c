"""The planes that exist, by mode, and what the command line needs to know of what is loaded."""

from pathlib import Path

from ctl import state
from ctl.modes import DEFAULT_MODE, MODES
from dataplane.errors import UsageError
from dataplane.planes.base import Plane
from dataplane.policy.node import NodeConfig


def make_plane(mode: str, *, loaded_for: NodeConfig | None = None, tcp_be_liberal: bool = False) -> Plane:
    """The plane of a mode, for this thread's network namespace.

    loaded_for: this node as an earlier run knew it, for reading back what that loaded. tcp_be_liberal: the
    configuration's conntrack.tcpBeLiberal. Raises UsageError for a mode that does not exist.
    """
    if mode == "nftables":
        from dataplane.planes.nftables.plane import NftablesPlane

        return NftablesPlane(loaded_for=loaded_for)
    if mode == "iptables":
        from dataplane.planes.iptables.plane import IptablesPlane

        return IptablesPlane(loaded_for=loaded_for, tcp_be_liberal=tcp_be_liberal)
    raise UsageError(f"there is no mode {mode}; choose one of {', '.join(MODES)}")


def loaded_plane(asked: str | None, state_dir: str) -> Plane:
    """The plane to look at what is loaded here: of the mode asked for, else last applied, else the default."""
    saved = state.load(Path(state_dir))
    mode = asked or (saved.mode if saved else DEFAULT_MODE)
    return make_plane(mode, loaded_for=saved.node if saved and saved.mode == mode else None)
