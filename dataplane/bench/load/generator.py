"""Packets made and dropped by the kernel itself, for rates that no process could send: XDP test runs with live frames.

The frames enter a node at its uplink: a test run (Linux 5.18) of a small program in the node's own namespace, with the
uplink as the device that they come in by. That program writes the same packet each time and tail-calls the XDP program
that the uplink carries, whose verdict then happens; where there is none, the frame becomes a socket buffer and the
kernel goes on with it. The far end of the uplink drops what comes out of the node and so counts it.

Included in every rate, and alike for all: a page from the pool, the writing of the packet, the tail call, and the far
end's work for a frame that it drops. A frame that passes on becomes a socket buffer, without GRO, and reaches the stack
in batches of BATCH, as from a driver. All of it on one processor, in the context of the caller. Not included: a network
card and its driver.
"""

import contextlib
import ipaddress
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

from pyroute2 import IPRoute

from dataplane.bench.load.instructions import (
    STORE_HALF,
    STORE_WORD,
    instruction,
    leave,
    on_packet,
    store_by_processor,
    tail_call,
    with_processor,
)
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, BpfError, MapType, ProgramType
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.spec import LabError, Node
from dataplane.model.net import Family

FRAME_BYTES = 64
RUN_PACKETS, BATCH = 65536, 64
_SETTLE_SECONDS = 0.01
_MOST_PACKETS = 1 << 30
_LIVE_FRAMES = 2
_PORT_AT, _CHECKSUM_AT = 34, 40
"""Of an IPv4 UDP datagram's frame."""
XDP_DROP, XDP_PASS = 1, 2
DRIVER_MODE = 4


class GeneratorError(LabError):
    """This kernel does not run live frames, or the device does not take them."""


def writer_code(frame: bytes, programs: int) -> bytes:
    """A program that writes `frame` (whole 4-byte words) over the packet and goes on with the first of `programs`, a
    map of them, or passes the packet on when that is empty. It writes every time, since the kernel uses a frame's page
    again as the last user left it."""
    return _writer(frame, programs)


def _writer(frame: bytes, programs: int, more: bytes = b"") -> bytes:
    """more: instructions after the stores of the frame."""
    first, *words, last = struct.unpack(f"=h{len(frame) // 4 - 1}ih", frame)
    stores = instruction(STORE_HALF, 2, immediate=first)
    for at, word in enumerate(words):  # in step with the fields behind the link-layer header: a read of one finds it
        stores += instruction(STORE_WORD, 2, offset=2 + 4 * at, immediate=word)  # in the store buffer as a whole
    stores += instruction(STORE_HALF, 2, offset=len(frame) - 2, immediate=last)
    return on_packet(len(frame), stores + more, tail_call(programs) + leave(XDP_PASS), leave(XDP_DROP))


def port_writer_code(frame: bytes, programs: int) -> bytes:
    """The same, with the number of the processor added to the source port of `frame`, an IPv4 UDP datagram whose port
    and checksum leave room for that."""
    return with_processor(_writer(frame, programs, _by_port(frame)))


def _by_port(frame: bytes) -> bytes:
    port, checksum = (int.from_bytes(frame[at : at + 2]) for at in (_PORT_AT, _CHECKSUM_AT))
    return store_by_processor(_PORT_AT, port) + store_by_processor(_CHECKSUM_AT, checksum, down=True)


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(macs: tuple[str, str], addresses: tuple[str, str], ports: tuple[int, int]) -> bytes:
    """An Ethernet frame of FRAME_BYTES with a UDP datagram in IPv4 or IPv6. Each pair: source, destination."""
    source_mac, destination_mac = (bytes.fromhex(mac.replace(":", "")) for mac in macs)
    source, destination = map(ipaddress.ip_address, addresses)
    ends, four = source.packed + destination.packed, source.version == 4
    size = FRAME_BYTES - 14 - (20 if four else 40)
    if four:
        header = struct.pack("!BBHHHBBH", 0x45, 0, size + 20, 0, 0x4000, 64, socket.IPPROTO_UDP, 0) + ends
        header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    else:
        header = struct.pack("!IHBB", 6 << 28, size, socket.IPPROTO_UDP, 64) + ends
    payload = bytes(size - 8)
    pseudo = ends + struct.pack("!HHHHHH", socket.IPPROTO_UDP, size, *ports, size, 0) + payload
    datagram = struct.pack("!HHHH", *ports, size, _checksum(pseudo) or 0xFFFF) + payload
    return destination_mac + source_mac + (b"\x08\x00" if four else b"\x86\xdd") + header + datagram


class End(NamedTuple):
    """A device in a network namespace."""

    namespace: str
    device: str


def uplink_ends(switch: str, node: Node) -> tuple[End, End]:
    """Return both ends of a node's uplink: the node's, and the one in the switch's network namespace."""
    return End(node.netns, node.uplink), End(switch, node.name)


def uplink_macs(near: End, far: End) -> tuple[str, str]:
    """Return the link-layer addresses of a frame that enters a node by its uplink: source, destination."""
    with Links(far.namespace) as outer, Links(near.namespace) as inner:
        return outer.mac(far.device), inner.mac(near.device)


def take_frames(node: Node, remote: Node, family: Family) -> None:
    """Make the uplink take frames that never were packets of a process, and know the way to the remote node, which it
    cannot ask for while the generator drops what it sends."""
    with Links(node.netns) as links, Links(remote.netns) as other:
        links.set_gro(node.uplink, True)
        links.neighbour(node.uplink, remote.addresses[family], other.mac(remote.uplink))


class Generator:
    """Lets one packet enter a node over and over by its `uplink`, and counts what comes out to `far`, the other end of
    that veth. As a context manager. The uplink must take frames (GRO on, or native XDP), which goes on as it is.
    by_port: each processor's packets are a flow of their own, see `port_writer_code`."""

    def __init__(self, uplink: End, far: End, frame: bytes, *, by_port: bool = False) -> None:
        self._uplink, self._far, self._frame, self._by_port = uplink, far, frame, by_port
        self._open: list[int] = []

    def __enter__(self) -> Self:
        try:
            self._prepare()
        except BpfError as error:
            self._close()
            raise GeneratorError(f"{self._uplink.device}: no packet generator here: {error.strerror}") from error
        return self

    def _keep(self, descriptor: int) -> int:
        self._open.append(descriptor)
        return descriptor

    def _prepare(self) -> None:
        programs = self._keep(bpf.map_create(MapType.PROG_ARRAY, 4, 4, 1, name="programs"))
        write = port_writer_code if self._by_port else writer_code
        code = write(self._frame, programs)
        self._writer = self._keep(bpf.program_load(code, ProgramType.XDP, AttachType.XDP, "writer"))
        with netns(self._uplink.namespace), IPRoute() as ipr:
            self._index = ipr.link_lookup(ifname=self._uplink.device)[0]
            carried = ipr.get_links(self._index)[0].get_nested("IFLA_XDP", "IFLA_XDP_PROG_ID")
        if carried:
            program = self._keep(bpf.program_by_id(carried))
            bpf.map_update(programs, bytes(4), program.to_bytes(4, sys.byteorder))
        with netns(self._far.namespace), Links(self._far.namespace) as links:
            self._far_index = links.index(self._far.device)
            sink = self._keep(bpf.program_load(leave(XDP_DROP), ProgramType.XDP, name="sink"))
            self._keep(bpf.link_create(sink, self._far_index, AttachType.XDP, DRIVER_MODE))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def _came_out(self, ipr: IPRoute) -> int:
        received: int = ipr.get_links(self._far_index)[0].get_attr("IFLA_STATS64")["rx_packets"]
        return received

    def _settled(self, ipr: IPRoute, expected: int) -> int:
        """The same once so many have come out, or once nothing is on its way any more: a busy processor gets round to
        what lies in a device's ring a little later."""
        while (before := self._came_out(ipr)) < expected:
            time.sleep(_SETTLE_SECONDS)
            if self._came_out(ipr) == before:
                break
        return before

    def run(self, seconds: float) -> dict[str, float]:
        """Send for so long. operations: packets that came out of the node; sent; seconds: of sending, by the kernel's
        own clock. It stands while other processes run, and leaves out what surrounds a test run (the kernel waits for
        all processors before and after one, which takes longer than the packets)."""
        with netns(self._far.namespace):
            ipr = IPRoute()
        with ipr, netns(self._uplink.namespace):
            before, sent, took = self._came_out(ipr), 0, 0.0
            end = time.monotonic() + seconds
            while not sent or time.monotonic() < end:
                took += self._test_run(RUN_PACKETS)
                sent += RUN_PACKETS
            came = self._settled(ipr, before + sent) - before
        return {"operations": float(came), "sent": float(sent), "seconds": took, "failures": 0.0}

    def run_on(self, processors: Sequence[int], seconds: float) -> dict[str, float]:
        """The same on several processors at once, one long run of each after a short one that tells how many packets
        take so long. rate: the sum of what each sends in a second of its own sending, times the share that came out.
        together: the share of the time in which they sent. They share one program: the kernel waits for all processors
        only when the first run of a program begins and when the last one ends."""
        barrier = threading.Barrier(len(processors) + 1)

        def send(processor: int) -> tuple[int, float]:
            os.sched_setaffinity(0, {processor})  # of this thread
            try:
                with netns(self._uplink.namespace):
                    packets = int(seconds / self._test_run(RUN_PACKETS) * RUN_PACKETS)
                    packets = min(_MOST_PACKETS, max(RUN_PACKETS, packets))
                    barrier.wait()  # everybody is ready
                    barrier.wait()  # what came before has been counted
                    return packets, self._test_run(packets)
            except GeneratorError:
                barrier.abort()
                raise

        with netns(self._far.namespace):
            ipr = IPRoute()
        with ipr, ThreadPoolExecutor(len(processors)) as threads:
            futures = [threads.submit(send, processor) for processor in processors]
            before, started = 0, 0.0
            with contextlib.suppress(threading.BrokenBarrierError):  # somebody failed, which is told below
                barrier.wait()
                before, started = self._came_out(ipr), time.perf_counter()
                barrier.wait()
            senders = _results(futures)
            wall = time.perf_counter() - started
            sent, took = sum(sent for sent, _ in senders), sum(took for _, took in senders)
            came = self._settled(ipr, before + sent) - before
        return {
            "operations": float(came),
            "sent": float(sent),
            "seconds": took / len(senders),
            "rate": sum(sent / took for sent, took in senders) * came / sent,
            "together": took / len(senders) / wall,
            "failures": 0.0,
        }

    def _test_run(self, packets: int) -> float:
        """Let the frame enter so often, in this thread and namespace; the seconds of sending."""
        context = struct.pack("=IIIIII", 0, len(self._frame), 0, self._index, 0, 0)
        try:
            done = bpf.run_program(self._writer, self._frame, packets, context, _LIVE_FRAMES, BATCH)
        except BpfError as error:
            raise GeneratorError(f"{self._uplink.device}: live frames do not run: {error.strerror}") from error
        return max(1, done.duration_ns) * packets / 1e9


def _results(futures: "Sequence[Future[tuple[int, float]]]") -> list[tuple[int, float]]:
    """What all of them found. Raises the failure that others broke off for."""
    failures = [error for future in futures if (error := future.exception()) is not None]
    for error in failures:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
