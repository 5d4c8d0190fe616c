"""Capabilities of this process: looked at before anything else, so that what a mode lacks is named, not some later
errno. Which ones a mode needs is its own to say (planes.mode)."""

from collections.abc import Iterable
from pathlib import Path

from dataplane.errors import HotplaneError
from dataplane.planes.registry import mode_of
from dataplane.planes.rights import SYS_ADMIN, Right


def held_capabilities() -> int:
    """Return this thread's effective capabilities as a bit mask."""
    status = Path("/proc/thread-self/status").read_text(encoding="ascii")
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))


def lacking(rights: Iterable[Right], held: int) -> list[Right]:
    """Return those that are not held."""
    admin = held >> SYS_ADMIN.bit & 1
    return [right for right in rights if not (held >> right.bit & 1 or (right.or_admin and admin))]


def check_rights(name: str, held: int, *, prepared: bool) -> str:
    """Whether a mode can work with these capabilities; prepared: see Mode.is_prepared. Returns what is missing but can
    be done without, as a sentence or "". Raises HotplaneError naming each one that is missing."""
    mode = mode_of(name)
    missing = lacking(mode.needs if prepared else (*mode.needs, *mode.until_prepared), held)
    useful = lacking(mode.uses, held)
    if missing:
        wanted = "; ".join(f"{right.name}, {right.why}" for right in missing)
        raise HotplaneError(f"{name} mode lacks {wanted}. Run as root, or give the process these capabilities")
    if not useful:
        return ""
    return f"without {' and '.join(right.name for right in useful)}, {mode.without_uses}"
