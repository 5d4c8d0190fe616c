"""Keeping the map `connect_off` true: for whom connect time is off, while groups and namespaces come and go."""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from dataplane.backoff import longer
from dataplane.errors import HotplaneError
from dataplane.kernel.inotify import Inotify
from dataplane.kernel.wait import readable
from dataplane.plan.types import OffPod
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.connect_time.off_targets import Found, OffSelection, Target, find_targets
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.node_settings import write_connect_off
from dataplane.resource import Resource

_ON = (1).to_bytes(4, "little")
_LOOK_SECONDS = 30.0
"""A namespace that goes tells nobody."""

_FIRST_SECONDS, _TOLD_SECONDS = 0.2, 5.0
"""How soon what is missing is looked for again, at first; after how long it is told."""


class ConnectOff:
    """root: of the cgroup v2 hierarchy. selection: of the command line. tell: hears what cannot be found. watch: this
    process lives on, and looks again whenever control groups come or go."""

    def __init__(
        self, root: Path, selection: OffSelection | None = None, *, tell: Callable[[str], None], watch: bool = False
    ) -> None:
        self._root, self._selection, self._tell, self._wants_watch = root, selection or OffSelection(), tell, watch
        self._pods: Mapping[tuple[str, str], OffPod] = {}
        self._maps: MapSet | None = None
        self._found = Found((), frozenset())
        self._told: set[Target] = set()
        self._lock = threading.RLock()
        self._watch: _Watch | None = None

    def begin(self, maps: MapSet, pods: Mapping[tuple[str, str], OffPod]) -> None:
        """Bring these maps to it, whatever an earlier run left in them, before the programs work."""
        with self._lock:
            self._maps, self._pods = maps, dict(pods)
            self._refresh()
        self._follow()

    def use(self, pods: Mapping[tuple[str, str], OffPod]) -> None:
        """The Pods for which connect time is off are these from now on. Where somebody watches, that thread looks for
        them, at once: it may take long where they are known by their address alone. Raises PlaneError."""
        with self._lock:
            self._pods = dict(pods)
        self._follow()
        if self._watch is None:
            self.refresh()

    def refresh(self) -> Found:
        """Look again. Raises PlaneError."""
        with self._lock:
            self._refresh()
            return self._found

    def _refresh(self) -> None:
        """Entries come before the setting that has the programs look at them."""
        maps = self._maps
        if maps is None:
            return
        try:
            self._found = found = find_targets(self._root, self._selection, self._pods)
        except OSError as error:
            raise PlaneError(f"for whom connect time is off cannot be looked at: {error}") from error
        held = {key for key, _ in maps.items("connect_off")}
        for key in found.keys - held:
            maps.put("connect_off", key, _ON)
        write_connect_off(maps, found.levels)
        maps.remove("connect_off", held - found.keys)
        self._told.intersection_update(found.missing)
        if not self._wants_watch:
            self.tell_missing()

    def tell_missing(self) -> None:
        """Tell of each that is not there, once."""
        with self._lock:
            news = [target for target in self._found.missing if target not in self._told]
            self._told.update(news)
        for target in news:
            self._tell(f"connect time is not off for {target.what} ({target.why}): {target.where}")

    def _follow(self) -> None:
        """Watch as long as anything is asked for."""
        wanted = self._wants_watch and bool(self._pods or self._selection.cgroups or self._selection.netns)
        if wanted and self._watch is None:
            self._watch = _Watch(self, self._tell)
        elif not wanted:
            self._end_watch()
        if self._watch is not None:
            self._watch.wake()

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """Look no more; what is off stays off."""
        self._end_watch()
        with self._lock:
            self._maps = None


class _Watch(Resource):
    """A thread that has a ConnectOff look again, in the network namespace in which this object was made."""

    def __init__(self, owner: ConnectOff, tell: Callable[[str], None]) -> None:
        self._owner, self._tell = owner, tell
        self._groups = Inotify()
        self._end, self._wake = os.pipe()
        self._failed = ""
        self._thread = threading.Thread(target=self._work, daemon=True, name="connect-off")
        self._thread.start()

    def wake(self) -> None:
        """Look soon: there is something new to look for."""
        os.write(self._wake, b"w")

    def close(self) -> None:
        """End the thread; fine twice."""
        if self._thread.is_alive():
            os.write(self._wake, b"x")
            self._thread.join()
            self._groups.close()
            os.close(self._wake)
            os.close(self._end)

    def _work(self) -> None:
        wait = waited = 0.0
        while True:
            if self._end in readable([self._groups.fileno(), self._end], wait):
                if b"x" in os.read(self._end, 4096):
                    return
                wait = waited = 0.0
            self._groups.drain()
            found = self._look()
            if found is None or not found.missing:
                wait, waited = _LOOK_SECONDS, 0.0
                continue
            waited += wait
            if waited >= _TOLD_SECONDS:
                self._owner.tell_missing()
            wait = longer(wait, _FIRST_SECONDS, _LOOK_SECONDS)

    def _look(self) -> Found | None:
        """Watch where something may come up, then look, so that nothing comes in between unseen."""
        try:
            found = self._owner.refresh()
            self._groups.watch(found.directories)
            found = self._owner.refresh()
        except (HotplaneError, OSError) as error:
            text = f"control groups cannot be watched: {error}" if isinstance(error, OSError) else str(error)
            if text != self._failed:
                self._failed = text
                self._tell(text)
            return None
        self._failed = ""
        return found
