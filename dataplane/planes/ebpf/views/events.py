"""The event stream of the programs: who asked for what at which hook, and what came of it.

The programs report only while somebody watches (map `monitor`); a watcher that dies is forgotten after a second. One
watcher at a time: a second one takes the filter over, and both read from the same ring.
"""

import mmap
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from dataplane.planes.ebpf.maps.encode import MAPPED, address_text
from dataplane.planes.ebpf.maps.layout import constant, hook_names, reason_names, record
from dataplane.planes.ebpf.maps.mapset import NODE_KEY, MapSet
from dataplane.resource import Resource

EVENT = record(
    "event",
    *("ns", "tuple", "backend", "backend_port", "hook", "reason", "service", "ifindex", "length"),
)
TUPLE = record("tuple", "source", "destination", "source_port", "destination_port", "protocol", "pad")
MONITOR = record("monitor", "until_ns", "service", "has_service", "protocol", "hooks")
WATCH_NS = 5_000_000_000
"""How long packets are told of after the last look, so that a watcher who gets no processor for a while misses nothing.
Who is killed leaves them told of for so long."""
NO_SERVICE = 0xFFFFFFFF
ALL_HOOKS = {
    "connect": ("connect", "sendmsg", "recvmsg", "getpeername"),
    "tc": ("tc_ingress", "tc_egress"),
    "xdp": ("xdp",),
}
"""What reports at each hook of planes.options.HOOKS, by its name in maps.layout.hook_names."""

_NAMESPACE_PREFIX = b"\x01" + bytes(7)
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEADER = 8


class Event(NamedTuple):
    """One report. Addresses are text; a socket's source at connect time is `netns:<cookie>`, port 0. backend: None when
    none was chosen. service: index of the Service, None when no frontend has the destination. ns: CLOCK_MONOTONIC.
    ifindex: of the device, 0 at connect time. length: of the packet, in bytes; 0 at connect time, too."""

    ns: int
    hook: str
    reason: str
    protocol: int
    source: tuple[str, int]
    destination: tuple[str, int]
    backend: tuple[str, int] | None
    service: int | None
    ifindex: int
    length: int


def client_text(raw: bytes) -> str:
    """An address, or the network namespace that stands for a socket's unknown one (100::<cookie>)."""
    if raw.startswith(_NAMESPACE_PREFIX):
        return f"netns:{int.from_bytes(raw[8:], 'big')}"
    return address_text(raw)


def decode_event(raw: bytes) -> Event:
    """One record of the ring."""
    ns, flow, backend, backend_port, hook, reason, service, ifindex, length = EVENT.unpack_from(raw)
    source, destination, source_port, destination_port, protocol, *_ = TUPLE.unpack(flow)
    chosen = None if backend in (bytes(16), MAPPED + bytes(4)) else (address_text(backend), socket.ntohs(backend_port))
    return Event(
        ns,
        hook_names()[hook],
        reason_names()[reason],
        protocol,
        (client_text(source), socket.ntohs(source_port)),
        (address_text(destination), socket.ntohs(destination_port)),
        chosen,
        None if service == NO_SERVICE else service,
        ifindex,
        length,
    )


class EventStream(Resource):
    """Watches while it is open. protocol: 0 = all; service: index or None = all; hooks: names, empty = all."""

    def __init__(self, maps: MapSet, protocol: int = 0, service: int | None = None, hooks: Sequence[str] = ()) -> None:
        self._maps = maps
        wanted = sum(1 << constant(f"HOOK_{name.upper()}") for name in hooks)
        self._filter = (service or 0, int(service is not None), protocol, wanted)
        fd, self._size = maps.fds["events"], maps.specs["events"].max_entries
        self._consumer = mmap.mmap(fd, mmap.PAGESIZE)
        # After the producer's page the kernel maps the data twice in a row, so that no record is ever cut in two.
        self._ring = mmap.mmap(fd, mmap.PAGESIZE + 2 * self._size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)
        self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)
        self.watch()
        self._position = self._produced()  # what lies there is of earlier watchers

    def watch(self) -> None:
        """Ask for events for five more seconds (WATCH_NS); `poll` does it by itself."""
        self._maps.put("monitor", NODE_KEY, MONITOR.pack(time.monotonic_ns() + WATCH_NS, *self._filter))

    def _produced(self) -> int:
        (position,) = struct.unpack_from("=Q", self._ring)
        return int(position)

    def fileno(self) -> int:
        """For poll and the like."""
        return self._poll.fileno()

    def poll(self, seconds: float) -> list[Event]:
        """Events that came in, waiting up to `seconds` for the first."""
        deadline = time.monotonic() + seconds
        while True:
            self.watch()
            events = self._take()
            left = deadline - time.monotonic()
            if events or left <= 0:
                return events
            self._poll.poll(min(left, WATCH_NS / 1e10))

    def _take(self) -> list[Event]:
        events, end = [], self._produced()
        while self._position < end:
            at = mmap.PAGESIZE + self._position % self._size
            (header,) = struct.unpack_from("=I", self._ring, at)
            if header & _BUSY:
                break
            length = header & ~(_BUSY | _DISCARDED)
            if not header & _DISCARDED:
                events.append(decode_event(self._ring[at + _HEADER : at + _HEADER + length]))
            self._position += (length + _HEADER + 7) & ~7
        struct.pack_into("=Q", self._consumer, 0, self._position)
        return events

    def close(self) -> None:
        """Stop watching."""
        self._maps.put("monitor", NODE_KEY, bytes(MONITOR.size))
        self._poll.close()
        self._consumer.close()
        self._ring.close()
