"""Disconnects UDP sockets that connect-time balancing connected to an endpoint that was removed.

After connect(2) no program handles such a socket's datagrams, so it would send to the removed endpoint for ever. The
daemon aborts it: the owner's next call fails with ECONNABORTED, and a new connect(2) gets a live endpoint.
Only sockets that were pointed at the endpoint by the connect programs (map `peers`) are touched, never those that
were connected to the endpoint's own address. They are found in the network namespaces of the control group's processes.
"""

import logging
import os
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import eq
from pathlib import Path
from socket import ntohs
from typing import Any

from pyroute2.netns import setns

from dataplane.errors import HotplaneError
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.map_elements import MapElements
from dataplane.kernel.namespaces import cgroup
from dataplane.kernel.netlink.sockdiag import connected_udp_sockets, destroy
from dataplane.planes.ebpf.maps.encode import BACKEND, address_bytes
from dataplane.planes.ebpf.maps.layout import constant, fields_of, size_of, unpack
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.tables import Removed

_COOKIE, _INDEX = struct.Struct("=Q"), struct.Struct("=I")
_PEER_SIZE = size_of("peer")
_CONNECTED, _SERVES = constant("PEER_CONNECTED"), constant("BACKEND_SERVES")
_BACKEND, _BACKEND_PORT = (
    slice(fields_of("peer")[name], fields_of("peer")[name] + size)
    for name, size in (("backend", size_of("address")), ("backend_port", 2))
)
_PAUSES = (0.0, 0.02, 0.2)
"""Seconds before each look, if there is another one."""
_log = logging.getLogger(__name__)

Gone = frozenset[tuple[bytes, int]]
"""Addresses (16 bytes) and ports of endpoints."""


def _namespaces(group: Path, own: int) -> tuple[dict[int, list[str]], int]:
    """Return paths of each network namespace of a control group's processes, by inode, without the one with inode
    `own`, and the number of processes that could not be read (needs CAP_SYS_PTRACE)."""
    found: dict[int, list[str]] = {}
    hidden = 0
    for path in (f"/proc/{pid}/ns/net" for pid in cgroup.pids(group)):
        try:
            found.setdefault(os.stat(path).st_ino, []).append(path)
        except PermissionError:
            hidden += 1
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process ended meanwhile, and its sockets with it
    found.pop(own, None)
    return found, hidden


def _enter(paths: Iterable[str]) -> bool:
    """Move this thread to the network namespace with these paths, as far as their processes have not ended; False if
    all have. Raises PermissionError."""
    for path in paths:
        try:
            setns(path, 0)
        except (FileNotFoundError, ProcessLookupError):
            continue
        return True
    return False


def disconnect_here(peers_map: int, backends_map: int, gone: Gone) -> int:
    """Abort the sockets of this network namespace that the programs connected to `gone`, but those whose choice serves:
    by another Service, or since the endpoint came back. Returns their number. Maps as descriptors."""
    count = 0
    peers = MapElements(peers_map, _COOKIE.size, _PEER_SIZE)
    backends = _backends(backends_map)
    for found in connected_udp_sockets():
        if (found.destination, found.port) not in gone:
            continue
        key = _COOKIE.pack(found.cookie)
        raw = peers.get(key)
        if raw is None:
            continue
        peer = unpack("peer", raw)
        if _goes_to(peer) == (found.destination, found.port) and _is_over(peer, backends):
            count += destroy(found)
            peers.remove_if(key, partial(eq, raw))  # its owner may have connected it again by now
    return count


def is_any_left(peers_map: int, backends_map: int, gone: Gone) -> bool:
    """True if a socket is to be aborted still: in the middle of connect(2), where the programs have chosen, but the
    kernel does not list it yet; or not within reach. Maps as descriptors."""
    backends, ends = _backends(backends_map), {address + port.to_bytes(2, "big") for address, port in gone}
    items = bpf.map_items(peers_map, _COOKIE.size, _PEER_SIZE, bpf.map_info(peers_map).max_entries)
    return any(
        value[_BACKEND] + value[_BACKEND_PORT] in ends and _is_over(unpack("peer", value), backends)
        for _, value in items
    )


def _backends(backends_map: int) -> MapElements:
    return MapElements(backends_map, _INDEX.size, BACKEND.size)


def _goes_to(peer: Mapping[str, Any]) -> tuple[bytes, int]:
    return peer["backend"], ntohs(peer["backend_port"])


def _is_over(peer: Mapping[str, Any], backends: MapElements) -> bool:
    """True if a socket is connected by a choice that does not serve any more."""
    return bool(peer["flags"] & _CONNECTED) and not _serves(peer, backends)


def _serves(peer: Mapping[str, Any], backends: MapElements) -> bool:
    """True if a socket's choice still serves; the same as bpf/lookup.h, live_backend()."""
    raw = backends.get(_INDEX.pack(peer["backend_index"]))
    if raw is None:
        return False
    backend = unpack("backend", raw)
    return backend["generation"] == peer["backend_generation"] and bool(backend["flags"] & _SERVES)


class SocketCleaner:
    """Disconnects sockets in a thread, since searching the namespaces takes longer than a change of the plan may.

    groups: control groups whose processes may have such sockets. `disconnected` counts them.
    """

    def __init__(self, *groups: Path) -> None:
        self._groups = groups
        self._queue: queue.SimpleQueue[tuple[int, int, Gone, threading.Event]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: threading.Event | None = None
        self._logged: set[str] = set()
        self.disconnected = 0

    def disconnect(self, maps: MapSet, gone: Iterable[Removed]) -> None:
        """Queue the sockets of these endpoints for disconnection; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="udp-sockets", daemon=True)
            self._thread.start()
        endpoints = frozenset((address_bytes(r.address), r.port) for r in gone)
        self._last = threading.Event()
        self._queue.put((os.dup(maps.fds["peers"]), os.dup(maps.fds["backends"]), endpoints, self._last))

    def flush(self, seconds: float) -> bool:
        """Wait until the queue so far is processed; False if that takes longer than `seconds`."""
        return self._last is None or self._last.wait(seconds)

    def _work(self) -> None:
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        while True:
            peers, backends, gone, done = self._queue.get()
            here = partial(disconnect_here, peers, backends, gone)
            try:
                for pause in _PAUSES:
                    time.sleep(pause)
                    self.disconnected += here()
                    for group in self._groups:
                        self._in_group(group, home, here)
                    if not is_any_left(peers, backends, gone):
                        break
            except (HotplaneError, OSError) as error:
                self._log_once(str(error))
            finally:
                os.close(peers)
                os.close(backends)
                done.set()

    def _in_group(self, group: Path, home: int, here: Callable[[], int]) -> None:
        namespaces, hidden = _namespaces(group, os.fstat(home).st_ino)
        if hidden:
            self._log_once("there are processes that only CAP_SYS_PTRACE may look at")
        for paths in namespaces.values():
            try:
                if not _enter(paths):
                    continue
            except PermissionError:
                self._log_once("entering the network namespaces of pods takes CAP_SYS_ADMIN")
                return
            try:
                self.disconnected += here()
            finally:
                setns(f"/proc/self/fd/{home}", 0)

    def _log_once(self, reason: str) -> None:
        """Log a reason unless it was logged before."""
        if reason not in self._logged:
            self._logged.add(reason)
            _log.error("UDP sockets on removed endpoints could not all be disconnected: %s", reason)
