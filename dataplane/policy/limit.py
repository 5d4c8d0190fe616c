"""Limit a set of backends: choose those that a node uses if a Service has more than a plane can hold.

Each node ranks backends by a hash of its name and the backend, so that together the nodes use all of them, and adding
or removing a backend replaces at most one other.
"""

from bisect import bisect_left
from hashlib import blake2b

from dataplane.policy.difference import Backends, difference, spliced
from dataplane.policy.endpoints import Backend

_Ranked = tuple[bytes, Backend]


class Limit:
    """Keeps a set within a limit while it changes. most: 0 = no limit. node: this node's name."""

    def __init__(self, most: int, node: str) -> None:
        self._most, self._key = most, node.encode()[:64]
        self._whole: Backends = ()
        self._kept: Backends = ()
        self._ranked: list[_Ranked] = []  # all of `_whole` in order of preference, if above the limit

    @property
    def reached(self) -> bool:
        """True if the set is above the limit."""
        return bool(self._ranked)

    def keep(self, whole: Backends) -> Backends:
        """Return the part of a sorted set that is used, sorted. O(what changed since the last call) for small
        changes."""
        if not self._most or len(whole) <= self._most:
            self._ranked, self._whole, self._kept = [], (), whole
            return whole
        removed, added = difference(self._whole, whole) if self._ranked else ([], [])
        if not self._ranked or len(removed) + len(added) > len(whole) // 8:
            self._ranked = sorted((self._rank(backend), backend) for backend in whole)
            self._kept = tuple(sorted([backend for _, backend in self._ranked[: self._most]]))
        else:
            self._follow(removed, added)
        self._whole = whole
        return self._kept

    def _rank(self, backend: Backend) -> bytes:
        return blake2b(f"{backend.address} {backend.port}".encode(), digest_size=8, key=self._key).digest()

    def _follow(self, removed: list[Backend], added: list[Backend]) -> None:
        """Apply a small change to the ranking and the kept part."""
        came: set[Backend] = set()
        went: set[Backend] = set()

        def enter(backend: Backend) -> None:
            if backend in went:
                went.remove(backend)
            else:
                came.add(backend)

        def leave(backend: Backend) -> None:
            if backend in came:
                came.remove(backend)
            else:
                went.add(backend)

        ranked, most = self._ranked, self._most
        for backend in added:
            item = (self._rank(backend), backend)
            at = bisect_left(ranked, item)
            ranked.insert(at, item)
            if at < most:
                enter(backend)
                leave(ranked[most][1])
        for backend in removed:
            item = (self._rank(backend), backend)
            at = bisect_left(ranked, item)
            del ranked[at]
            if at < most:
                leave(backend)
                enter(ranked[most - 1][1])
        self._kept = spliced(self._kept, sorted(went), sorted(came))
