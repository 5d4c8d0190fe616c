"""Garbage collector of the maps that the programs fill: removes expired entries.

The programs remove a TCP connection when both ends closed it, and the entry of a socket when it is closed. The
collector removes the rest: unanswered and idle flows, connections whose end was not seen, UDP, and expired session
affinity. No live entry is ever evicted, so expired ones must go in time: each map is scanned every SECONDS, in batches,
with pauses in which other threads of this process run.
"""

import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator

from dataplane.faults import Faults, ignore
from dataplane.kernel.ebpf.bpf import BpfError
from dataplane.kernel.ebpf.map_elements import MapElements
from dataplane.planes.answers import Round
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES, Lifetimes, belongs, flow_key, other_tuple
from dataplane.planes.ebpf.maps.layout import constant, fields_of, reason_names, record, size_of
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.resource import Resource

SECONDS = 10.0
"""Pause between two rounds. Including the length of a round, expired entries are removed within 30 s."""
BATCH = 2048
_PAUSE = 0.002
_SECOND_NS = 10**9
_REASSEMBLY_NS = 30 * _SECOND_NS
"""REASSEMBLY_SECONDS in bpf/fragment.h."""
_CONNECTED = constant("PEER_CONNECTED")
_DIRECT_OPEN, _DIRECT_STACK = constant("DIRECT_OPEN"), constant("DIRECT_STACK")
_DIRECT_FINS = constant("DIRECT_FIN_LOW") | constant("DIRECT_FIN_HIGH")
_FULL = "_full"
_NEVER = -(1 << 63)
_AFFINITY_KEY = record("affinity_key", "client", "service")
_LONG = struct.Struct("=q")
_NOTED_CONNECTION_NS = 150 * 10**9
"""Lifetime of a note that the stack has a TCP connection, from its last answer: longer than connection tracking keeps a
closed one (TIME_WAIT, 120 s)."""
_log = logging.getLogger(__name__)


def _column(raw: bytes, struct_name: str, field: str, form: str) -> list[int]:
    """Return one field of an array of structs. form: the field's memoryview format."""
    width = struct.calcsize(form)
    start, stride = fields_of(struct_name)[field] // width, size_of(struct_name) // width
    return memoryview(raw).cast(form)[start::stride].tolist()  # type: ignore[call-overload, no-any-return]


class _Ages(dict[int, int]):
    """Cache of lifetimes of one protocol, in ns, by flags."""

    def __init__(self, protocol: int, lifetimes: Lifetimes) -> None:
        super().__init__()
        self._protocol, self._lifetimes = protocol, lifetimes

    def __missing__(self, flags: int) -> int:
        found = self[flags] = self._lifetimes.of_flags(self._protocol, flags)
        return found


class _DirectAges(dict[int, int]):
    """Cache of lifetimes of flows past the stack, in ns, by flags (enum direct_flags)."""

    def __init__(self, name: str, lifetimes: Lifetimes) -> None:
        super().__init__()
        self._tcp, self._lifetimes = name == "direct_tcp", lifetimes

    def __missing__(self, flags: int) -> int:
        if self._tcp and flags & _DIRECT_STACK:
            self[flags] = _NOTED_CONNECTION_NS
        else:
            self[flags] = self._lifetimes.ns[self._setting(flags)]
        return self[flags]

    def _setting(self, flags: int) -> str:
        """Name of the field of struct node with the lifetime."""
        if not self._tcp:
            return "udp_stream_seconds" if flags & (_DIRECT_OPEN | _DIRECT_STACK) else "udp_seconds"
        if flags & _DIRECT_FINS == _DIRECT_FINS:
            return "tcp_closing_seconds"
        if flags & _DIRECT_FINS:
            return "tcp_half_closed_seconds"
        return "tcp_established_seconds" if flags & _DIRECT_OPEN else "tcp_syn_seconds"


class _Flows:
    """One flow table, in which each flow has two entries, one for each direction."""

    def __init__(self, maps: MapSet, name: str, lifetimes: Lifetimes) -> None:
        self._lifetimes, self._elements, self._protocol = lifetimes, maps.elements(name), FLOW_TABLES[name]
        self._ages = _Ages(self._protocol, lifetimes)
        self._key_size = maps.specs[name].key_size

    def over(self, keys: bytes, values: bytes, now: int) -> Iterator[bytes]:
        """Yield the keys of a batch whose own entry expired; the other direction is not considered."""
        ages, size = self._ages, self._key_size
        columns = zip(
            _column(values, "translation", "last_ns", "q"),
            _column(values, "translation", "flags", "I"),
            _column(values, "translation", "noted", "I"),
            strict=True,
        )
        for index, (last, flags, noted) in enumerate(columns):
            if now - last > ages[flags | noted]:
                yield keys[index * size : (index + 1) * size]

    def remove(self, key: bytes, now: int) -> int:
        """Remove a flow if both directions expired; returns the number of removed entries. Reads both again, since
        a packet or a new flow may have arrived meanwhile, and keeps both when one arrives while it removes them."""
        elements = self._elements
        own = elements.get(key)
        if own is None or not self._over(own, now):
            return 0
        second = flow_key(other_tuple(own))
        other = elements.get(second)
        if other is not None and belongs(own, other) and not self._over(other, now):
            return 0
        taken = elements.remove_if(key, lambda value: self._over(value, now))
        if taken is None:
            return 0
        if elements.remove_if(second, lambda value: belongs(taken, value) and self._over(value, now)) is not None:
            return 2
        other = elements.get(second)
        if other is not None and belongs(taken, other):  # a packet of this direction came after the look above
            elements.put_back(key, taken)
            return 0
        return 1

    def _over(self, value: bytes, now: int) -> bool:
        return self._lifetimes.over(self._protocol, value, now)


def _single(elements: MapElements, key: bytes, last_at: int, since: int) -> int:
    """Remove one entry unless it was used since a batch was read."""
    return int(elements.remove_if(key, lambda value: _LONG.unpack_from(value, last_at)[0] < since) is not None)


def _sweep_flows(maps: MapSet, name: str, lifetimes: Lifetimes, pause: Callable[[], None]) -> tuple[int, int]:
    table = _Flows(maps, name, lifetimes)
    entries = removed = 0
    for keys, values, count in maps.batches(name, BATCH):
        now = time.monotonic_ns()
        entries += count
        removed += sum(table.remove(key, now) for key in table.over(keys, values, now))
        pause()
    return entries, removed


def _since(maps: MapSet, name: str, lifetimes: Lifetimes, now: int) -> Callable[[bytes, bytes, int], list[int]]:
    """Return a function that computes for each entry of a batch the time of last use before which it expires."""
    idle = lifetimes.ns["udp_stream_seconds"]
    if name == "affinity":
        seconds = _column(bytes(maps.memory["services"]), "service", "affinity_seconds", "I")
        return lambda keys, _values, _count: [
            now - seconds[service] * _SECOND_NS for _, service in _AFFINITY_KEY.iter_unpack(keys)
        ]
    if name == "peers":
        oldest = _oldest_connected(maps, lifetimes, now)
        return lambda _keys, values, _count: [
            oldest if flags & _CONNECTED else now - idle for flags in _column(values, "peer", "flags", "B")
        ]
    if name.startswith("direct_"):
        ages = _DirectAges(name, lifetimes)
        return lambda _keys, values, _count: [
            now - ages[flags] for flags in _column(values, "direct_flow", "flags", "I")
        ]
    if name in ("fragments", "held"):
        idle = _REASSEMBLY_NS
    return lambda _keys, _values, count: [now - idle] * count


def _oldest_connected(maps: MapSet, lifetimes: Lifetimes, now: int) -> int:
    """Return the time before which connected sockets' entries expire. Normally none does, since closing the socket
    removes its entry; but no program runs when a kernel socket (MPTCP, a network file system) is closed. Once half of
    the map is used, entries older than the idle lifetime of a connection expire."""
    used = sum(count for _, _, count in maps.batches("peers"))
    if used * 2 < maps.specs["peers"].max_entries:
        return _NEVER
    return now - lifetimes.ns["tcp_established_seconds"]


SINGLE = {
    "affinity": "affinity",
    "peers": "peer",
    "sockets": "socket_peer",
    "answers": "answer",
    "fragments": "fragment",
    "held": "held",
    "direct_tcp": "direct_flow",
    "direct_udp": "direct_flow",
}
"""Maps of single entries with a lifetime, with the struct of their values."""


def _sweep_single(maps: MapSet, name: str, lifetimes: Lifetimes, pause: Callable[[], None]) -> tuple[int, int]:
    spec, elements, kind = maps.specs[name], maps.elements(name), SINGLE[name]
    last_at = fields_of(kind)["last_ns"]
    entries = removed = 0
    for keys, values, count in maps.batches(name, BATCH):
        entries += count
        bounds = _since(maps, name, lifetimes, time.monotonic_ns())(keys, values, count)
        for index, (last, bound) in enumerate(zip(_column(values, kind, "last_ns", "q"), bounds, strict=True)):
            if last < bound:
                key = keys[index * spec.key_size : (index + 1) * spec.key_size]
                removed += _single(elements, key, last_at, bound)
        pause()
    return entries, removed


def sweep(maps: MapSet, pause: Callable[[], None] = lambda: None) -> list[Round]:
    """Remove expired entries from every map that the programs fill. pause: called between batches."""
    lifetimes = Lifetimes.of(maps.node())
    found = []
    for name in (*FLOW_TABLES, *SINGLE):
        start = time.thread_time()
        look = _sweep_flows if name in FLOW_TABLES else _sweep_single
        entries, removed = look(maps, name, lifetimes, pause)
        found.append(Round(name, entries, removed, maps.specs[name].max_entries, time.thread_time() - start))
    return found


def refused(maps: MapSet) -> dict[str, int]:
    """Return the number of insertions refused so far because a map was full, by map name."""
    found: dict[str, int] = {}
    for number, reason in enumerate(reason_names()):
        if reason.endswith(_FULL) and reason != "map_full":
            for hook in range(constant("HOOK_COUNT")):
                values = maps.per_cpu("counters", hook * constant("REASON_COUNT") + number)
                total = sum(int.from_bytes(value, "little") for value in values)
                found[reason.removesuffix(_FULL)] = found.get(reason.removesuffix(_FULL), 0) + total
    return found


class Collector(Resource):
    """Sweeps a set of maps in a thread, until `close`. warn: called for each map that was full, mended: when it has had
    room for all newcomers of a round. rounds: results of the last round, for metrics."""

    def __init__(
        self,
        maps: MapSet,
        warn: Callable[[str], None] = _log.warning,
        seconds: float = SECONDS,
        mended: Callable[[str], None] = ignore,
    ) -> None:
        self.rounds: list[Round] = []
        self._maps, self._seconds = maps, seconds
        self._faults = Faults(warn, mended)
        self._refused = refused(maps)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="collector", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; fine twice. Call it before the maps are closed."""
        self._end.set()
        self._thread.join()

    def _pause(self) -> None:
        if self._end.wait(_PAUSE):
            raise _EndedError

    def _work(self) -> None:
        while not self._end.wait(self._seconds):
            try:
                self.rounds = sweep(self._maps, self._pause)
                self._faults.worked("", "closed flows are collected again")
                self._report()
            except _EndedError:
                return
            except (BpfError, OSError) as error:
                why = f"closed flows could not be collected: {error}; trying again in {self._seconds:.0f} s"
                self._faults.failed("", why)

    def _report(self) -> None:
        """Warn about maps that were full since the last round."""
        now = refused(self._maps)
        for name, count in now.items():
            more = count - self._refused.get(name, 0)
            if more > 0:
                entries = next((r for r in self.rounds if r.name == name), None)
                size = f" ({entries.entries} of {entries.limit} entries after collecting)" if entries else ""
                why = f"map {name} was full{size}: {more} newcomers were left to the slow path, which serves them"
                self._faults.failed(name, why)
            else:
                self._faults.worked(name, f"map {name} has room again: no newcomer was left to the slow path since")
        self._refused = now


class _EndedError(Exception):
    """The thread is to end."""
