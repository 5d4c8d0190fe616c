"""Source that watches a directory (or files) of manifests and turns changes into events."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from ctl.daemon.log import Log
from ctl.daemon.sync.inbox import Inbox
from ctl.daemon.sync.names import Names
from ctl.sources.manifests import NODE_PORTS, SUFFIXES, PortRange, SourceError, read_manifests
from dataplane.model.decode import DecodedObject
from dataplane.model.objects import SOURCE, ObjectRef, Problem

POLL_SECONDS = 0.5
AGAIN_SECONDS = 5.0
"""Interval of retries of unreadable files that have not changed: the system may have caused the error."""
SETTLE_SECONDS = 0.05
"""For so long nothing may change before files are read: a look may come while somebody writes."""


class DirectorySource:
    """Reads the paths again whenever a file in them changes. A file that cannot be read changes nothing: what was
    read last stays, as with an API server that is away."""

    def __init__(self, paths: Sequence[str], inbox: Inbox, log: Log, node_ports: PortRange = NODE_PORTS) -> None:
        self._paths, self._inbox, self._log, self._node_ports = list(paths), inbox, log, node_ports
        self._seen: frozenset[tuple[str, int, int]] | None = None
        self._again = 0.0  # time.monotonic; 0: all was read
        self._reported: frozenset[str] = frozenset()

    def read(self) -> None:
        """Read everything into the inbox. Raises SourceError for a path that cannot be read at all."""
        self._seen, self._again = self._stamp(), time.monotonic() + AGAIN_SECONDS
        found = read_manifests(self._paths, self._node_ports)
        broken = [problem for problem in found.problems if problem.ref.kind == SOURCE]
        self._again = self._again if broken else 0.0
        reported, self._reported = self._reported, frozenset(map(str, broken))
        for reason in sorted(self._reported - reported):
            self._log.warning("a manifest cannot be read", reason=reason)
        if broken and self._reported == reported:
            return
        if reported and not broken:
            self._log.info("every manifest can be read again")
        if broken and self._inbox.complete_once:
            self._log.warning("nothing changes until every manifest can be read", broken=len(broken))
            return
        faults: dict[ObjectRef, list[Problem]] = {}
        for problem in found.problems:
            if problem.ref.kind in self._inbox.kinds:
                faults.setdefault(problem.ref, []).append(problem)
            elif problem.ref.kind != SOURCE:
                self._log.warning("in the manifests", problem=problem)
        notes: dict[ObjectRef, list[Problem]] = {}
        for note in found.notes:
            if note.ref.kind not in self._inbox.kinds:
                self._log.warning("in the manifests", note=note)
            notes.setdefault(note.ref, []).append(note)
        present = {kind: Names() for kind in self._inbox.kinds}
        for value in found.objects:
            ref = value.ref
            if ref.kind not in present:
                continue
            present[ref.kind].add(ref.namespace, ref.name)
            self._inbox.put(DecodedObject(value, ref, tuple(faults.pop(ref, ())), tuple(notes.get(ref, ()))))
        for ref, problems in faults.items():
            present[ref.kind].add(ref.namespace, ref.name)
            self._inbox.put(DecodedObject(None, ref, tuple(problems)))
        for kind, names in present.items():
            self._inbox.complete(kind, names)

    async def run(self) -> None:
        """Look for changes, for ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._stamp() == self._seen and not (self._again and time.monotonic() >= self._again):
                continue
            await self._settle()
            try:
                self.read()
            except SourceError as error:
                if str(error) not in self._reported:
                    self._log.warning("the manifests cannot be read, nothing changes", reason=error)
                self._reported = frozenset((str(error),))

    async def _settle(self) -> None:
        """Wait until nobody writes, AGAIN_SECONDS at most. A file that is empty and was not before is still being
        written, as most programs write a file anew; who wants it to be empty waits longest."""
        started = time.monotonic()
        end, before = started + AGAIN_SECONDS, self._stamp()
        pause = max(SETTLE_SECONDS, 10 * (time.monotonic() - started))  # looks take at most a tenth of the time
        had = {name for name, _, size in self._seen or () if size}
        while time.monotonic() < end:
            await asyncio.sleep(pause)
            now = self._stamp()
            if now == before and all(size or name not in had for name, _, size in now):
                return
            before = now

    def _stamp(self) -> frozenset[tuple[str, int, int]]:
        """Every file with its time and size."""
        files: list[Path] = []
        for text in self._paths:
            path = Path(text)
            files += [file for file in path.rglob("*") if file.suffix in SUFFIXES] if path.is_dir() else [path]
        found = set()
        for file in files:
            try:
                info = file.stat()
            except OSError:
                continue  # it went while we looked; the next look tells
            found.add((str(file), info.st_mtime_ns, info.st_size))
        return frozenset(found)
