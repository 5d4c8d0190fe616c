"""What the running daemon of a network namespace says of forwarding: what this node announces, which others take what
it forwards, and why the rest does not.

It is known to the daemon alone; see ctl.store.reports.
"""

from pathlib import Path

import msgspec

from ctl.store import reports

SUFFIX = ".forwarding"


class OtherNode(msgspec.Struct, frozen=True):
    """A node that announces something, was named by hand, or has endpoints of Services that ask for forwarding. why: no
    packet is forwarded to it, "" if they are. dispatch: how they are wrapped then, in a word."""

    name: str
    addresses: tuple[str, ...] = ()
    why: str = ""
    dispatch: str = ""


class SavedForwarding(msgspec.Struct, frozen=True):
    """mode: of `--lb-mode`. announced: the text on this node's Node object, "" without one. why: this node announces
    nothing though something asks for forwarding, "" otherwise. asked: something does."""

    mode: str = ""
    announced: str = ""
    why: str = ""
    asked: bool = False
    nodes: tuple[OtherNode, ...] = ()


def save(state_dir: Path, saved: SavedForwarding) -> None:
    """Write it down for `load`. Raises StateError."""
    reports.save(state_dir, SUFFIX, saved)


def load(state_dir: Path) -> SavedForwarding | None:
    """Return what the daemon of this network namespace says now; None if none runs. Raises StateError."""
    return reports.load(state_dir, SUFFIX, SavedForwarding)
