"""Keeps the map `connect_off`, the targets without connect-time balancing, current as cgroups and namespaces change."""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from dataplane.backoff import longer
from dataplane.errors import HotplaneError
from dataplane.faults import Faults, ignore
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
"""Interval of full checks: the kernel sends no notification when a network namespace is deleted."""

_FIRST_SECONDS, _WARN_SECONDS = 0.2, 5.0
"""First retry interval for missing targets; time after which they are reported."""


class ConnectOff:
    """Writes the map `connect_off`. root: of the cgroup v2 hierarchy. selection: of the command line. warn: called for
    each target that is not found, and when they cannot be looked for; mended: when they can again. watch: check again
    whenever control groups change, in a thread."""

    def __init__(
        self,
        root: Path,
        selection: OffSelection | None = None,
        *,
        warn: Callable[[str], None],
        watch: bool = False,
        mended: Callable[[str], None] = ignore,
    ) -> None:
        self._faults = Faults(warn, mended)
        self._root, self._selection, self._warn, self._wants_watch = root, selection or OffSelection(), warn, watch
        self._pods: Mapping[tuple[str, str], OffPod] = {}
        self._maps: MapSet | None = None
        self._found = Found((), frozenset())
        self._warned: set[Target] = set()
        self._lock = threading.RLock()
        self._watch: _Watch | None = None

    def begin(self, maps: MapSet, pods: Mapping[tuple[str, str], OffPod]) -> None:
        """Write the targets to new or adopted maps, before programs are attached. Raises PlaneError."""
        with self._lock:
            self._maps, self._pods = maps, dict(pods)
            self._refresh()
        self._follow()

    def use(self, pods: Mapping[tuple[str, str], OffPod]) -> None:
        """Replace the Pods for which connect time is off. With `watch` the thread resolves them, since that may take
        long for Pods known by address alone; else this call does. Raises PlaneError."""
        with self._lock:
            self._pods = dict(pods)
        self._follow()
        if self._watch is None:
            self.refresh()

    def refresh(self) -> Found:
        """Resolve all targets and update the map. Raises PlaneError."""
        with self._lock:
            self._refresh()
            return self._found

    def _refresh(self) -> None:
        """Add entries before the setting that makes programs look them up; remove entries after it."""
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
        self._warned.intersection_update(found.missing)
        if not self._wants_watch:
            self.warn_missing()

    def warn_missing(self) -> None:
        """Warn about each missing target, once."""
        with self._lock:
            news = [target for target in self._found.missing if target not in self._warned]
            self._warned.update(news)
        for target in news:
            self._warn(f"connect time is not off for {target.what} ({target.why}): {target.where}")

    def _follow(self) -> None:
        """Run the watching thread while there are targets, and wake it."""
        wanted = self._wants_watch and bool(self._pods or self._selection.cgroups or self._selection.netns)
        if wanted and self._watch is None:
            self._watch = _Watch(self, self._faults)
        elif not wanted:
            self._end_watch()
        if self._watch is not None:
            self._watch.wake()

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """Stop watching; the map keeps its entries."""
        self._end_watch()
        with self._lock:
            self._maps = None


class _Watch(Resource):
    """A thread that calls ConnectOff.refresh, in the network namespace in which this object was made."""

    def __init__(self, owner: ConnectOff, faults: Faults) -> None:
        self._owner, self._faults = owner, faults
        self._groups = Inotify()
        self._end, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._work, daemon=True, name="connect-off")
        self._thread.start()

    def wake(self) -> None:
        """Make the thread refresh at once, since targets changed."""
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
            if waited >= _WARN_SECONDS:
                self._owner.warn_missing()
            wait = longer(wait, _FIRST_SECONDS, _LOOK_SECONDS)

    def _look(self) -> Found | None:
        """Refresh, watch the directories found, and refresh again, so that no change in between is missed."""
        try:
            found = self._owner.refresh()
            self._groups.watch(found.directories)
            found = self._owner.refresh()
        except (HotplaneError, OSError) as error:
            text = f"control groups cannot be watched: {error}" if isinstance(error, OSError) else str(error)
            self._faults.failed("", text)
            return None
        self._faults.worked("", "for whom connect time is off is followed again")
        return found
