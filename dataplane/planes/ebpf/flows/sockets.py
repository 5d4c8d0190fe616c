"""UDP sockets that connect-time balancing connected to an endpoint which has gone: disconnect them.

After connect(2) no program sees such a socket's datagrams any more, so it would talk to a dead endpoint for ever. It is
aborted instead: the next call of its owner fails with ECONNABORTED, and whoever connects again gets a live endpoint.
Only sockets that were pointed at the endpoint by the connect programs (map `peers`) are touched, never those that
were connected to the endpoint's own address. They are found in the network namespaces of the control group's processes.
"""

import logging
import os
import queue
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from socket import ntohs

from pyroute2.netns import setns

from dataplane.errors import HotplaneError
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.namespaces import cgroup
from dataplane.kernel.netlink.sockdiag import connected_udp_sockets, destroy
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import constant, size_of, unpack
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.tables import Removed

_COOKIE = struct.Struct("=Q")
_PEER_SIZE = size_of("peer")
_CONNECTED = constant("PEER_CONNECTED")
_log = logging.getLogger(__name__)

Gone = frozenset[tuple[bytes, int]]
"""Addresses (16 bytes) and ports of endpoints."""


def _namespaces(group: Path, own: int) -> tuple[dict[int, str], int]:
    """Network namespaces of the processes of a control group other than the one with the inode `own`, by inode, as
    paths to enter; and the number of processes that may not be looked at (that takes CAP_SYS_PTRACE)."""
    found: dict[int, str] = {}
    hidden = 0
    for path in (f"/proc/{pid}/ns/net" for pid in cgroup.pids(group)):
        try:
            found.setdefault(os.stat(path).st_ino, path)
        except PermissionError:
            hidden += 1
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process ended meanwhile, and its sockets with it
    found.pop(own, None)
    return found, hidden


def disconnect_here(peers_map: int, gone: Gone) -> int:
    """Abort the sockets of the current network namespace that the connect programs put on `gone`. Returns how many."""
    count = 0
    for found in connected_udp_sockets():
        if (found.destination, found.port) not in gone:
            continue
        key = _COOKIE.pack(found.cookie)
        raw = bpf.map_lookup(peers_map, key, _PEER_SIZE)
        if raw is None:
            continue
        peer = unpack("peer", raw)
        mine = (peer["backend"], ntohs(peer["backend_port"])) == (found.destination, found.port)
        if mine and peer["flags"] & _CONNECTED:
            count += destroy(found)
            bpf.map_delete(peers_map, key)
    return count


class SocketCleaner:
    """Disconnects sockets in a thread of its own, since looking through namespaces takes longer than a change may.

    groups: control groups whose processes may have such sockets. `disconnected` counts them.
    """

    def __init__(self, *groups: Path) -> None:
        self._groups = groups
        self._queue: queue.SimpleQueue[tuple[int, Gone, threading.Event]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: threading.Event | None = None
        self._said: set[str] = set()
        self.disconnected = 0

    def disconnect(self, maps: MapSet, gone: Iterable[Removed]) -> None:
        """Ask for the sockets of these endpoints; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="udp-sockets", daemon=True)
            self._thread.start()
        endpoints = frozenset((address_bytes(r.address), r.port) for r in gone)
        self._last = threading.Event()
        self._queue.put((os.dup(maps.fds["peers"]), endpoints, self._last))

    def flush(self, seconds: float) -> bool:
        """Wait until everything asked for so far was done; False when that took longer."""
        return self._last is None or self._last.wait(seconds)

    def _work(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        while True:
            peers_map, gone, done = self._queue.get()
            try:
                self.disconnected += disconnect_here(peers_map, gone)
                for group in self._groups:
                    self._in_group(group, home, peers_map, gone)
            except (HotplaneError, OSError) as error:
                self._say(str(error))
            finally:
                os.close(peers_map)
                done.set()

    def _in_group(self, group: Path, home: int, peers_map: int, gone: Gone) -> None:
        namespaces, hidden = _namespaces(group, os.fstat(home).st_ino)
        if hidden:
            self._say("there are processes that only CAP_SYS_PTRACE may look at")
        for path in namespaces.values():
            try:
                setns(path, 0)
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended since we looked
            except PermissionError:
                self._say("entering the network namespaces of pods takes CAP_SYS_ADMIN")
                return
            try:
                self.disconnected += disconnect_here(peers_map, gone)
            finally:
                setns(f"/proc/self/fd/{home}", 0)

    def _say(self, reason: str) -> None:
        """Once for each reason."""
        if reason not in self._said:
            self._said.add(reason)
            _log.error("UDP sockets on removed endpoints could not all be disconnected: %s", reason)
