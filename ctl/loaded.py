"""The planes that exist, by mode, and what the command line needs to know of what is loaded."""

from pathlib import Path

from ctl import state
from ctl.modes import DEFAULT_MODE, MODES
from dataplane.errors import UsageError
from dataplane.planes.base import Plane


def make_plane(mode: str, *, tcp_be_liberal: bool = False) -> Plane:
    """The plane of a mode, for this thread's network namespace. Raises UsageError for a mode that does not exist."""
    if mode == "nftables":
        from dataplane.planes.nftables.plane import NftablesPlane

        return NftablesPlane()
    if mode == "iptables":
        from dataplane.planes.iptables.plane import IptablesPlane

        return IptablesPlane(tcp_be_liberal=tcp_be_liberal)
    raise UsageError(f"there is no mode {mode}; choose one of {', '.join(MODES)}")


def loaded_mode(asked: str | None, state_dir: str) -> str:
    """The mode that a command about what is loaded means: asked for, else last applied, else the default."""
    if asked:
        return asked
    saved = state.load(Path(state_dir))
    return saved.mode if saved else DEFAULT_MODE
