"""Removal of the leftovers of deleted network namespaces: pinned programs and maps, plans, locks.

A namespace is gone if nothing on this machine holds it any more (dataplane.kernel.namespaces.netns_alive). If that
cannot be found out, nothing is removed.
"""

from collections.abc import Collection
from pathlib import Path

from ctl.output import Record
from ctl.store import lock, state
from dataplane.errors import HotplaneError

YOUNG_SECONDS = 300.0
"""Files written to more recently are not removed by `try_sweep`, only on request."""


def sweep(state_dir: Path, *, of: Collection[int] | None = None, age: float = 0.0) -> list[Record]:
    """Remove all leftovers; return one record for each removed thing.

    of: cookies of the network namespaces that it is about, None: all. age: seconds for which nobody has written to
    what goes. Raises HotplaneError where it cannot be known who lives, whether or not anything is found there, or
    something cannot be removed.
    """
    from dataplane.kernel.namespaces.netns_alive import check_sight, living_cookies
    from dataplane.planes.registry import modes

    check_sight()
    folders = [folder for folder in dict.fromkeys((state_dir, lock.DIRECTORY)) if folder.is_dir()]
    files = [state.of_namespaces(folder, of, age) for folder in folders]  # first: later ones belong to somebody
    gone = [name for mode in modes() for name in mode.remove_stale(of=of, age=age)]
    records: list[Record] = [{"kind": "pins", "name": name} for name in gone]
    if any(files):
        living = living_cookies()
        for found in files:
            records += [{"kind": "state", "name": name} for name in state.forget_gone(found, living)]
    return records


def try_sweep(state_dir: Path) -> list[Record]:
    """Sweep what is old enough, as part of another command, which must not fail because of it."""
    try:
        return sweep(state_dir, age=YOUNG_SECONDS)
    except (HotplaneError, OSError):  # without the rights to look at every process, or beside another one that sweeps
        return []


def lab_cookies(name: str) -> frozenset[int]:
    """The network namespaces of a lab's places, as far as they are there. Raises HotplaneError."""
    from dataplane.kernel.namespaces import netns
    from dataplane.kernel.namespaces.netns_cookie import netns_cookie
    from dataplane.lab import state as labs
    from dataplane.lab.spec import topology

    found = labs.load(name)
    cookies = set()
    for place in topology(found.spec).places() if found is not None else ():
        if netns.exists(place.netns):
            try:
                with netns.netns(place.netns):
                    cookies.add(netns_cookie())
            except OSError:  # what a crash left of a name; or no rights, and then nothing else works either
                continue
    return frozenset(cookies)


def sweep_lab(cookies: Collection[int], state_dir: Path) -> None:
    """Remove what a lab's places left, once they are gone; what cannot be removed now is `cleanup --stale`'s."""
    if cookies:
        try:
            sweep(state_dir, of=cookies)
        except (HotplaneError, OSError):
            return
