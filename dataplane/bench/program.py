"""Cost of one packet in the XDP program: test runs of it on a flow that is established already.

A test run hands the same buffer to the program again and again, so the flow that is measured translates a packet into
itself: every step is taken (connection found, backend still there, both addresses and ports and checksums rewritten,
next hop filled in), and the next run finds the packet as it was but for its hop limit, which a few instructions before
the program set back. Everything else is the node's: its maps with all their Services, its routes, its neighbours.
"""

import os
import socket
import statistics
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import NamedTuple

from dataplane.bench.load.instructions import STORE_BYTE, STORE_HALF, instruction, leave, on_packet, tail_call
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, MapType, ProgramType
from dataplane.kernel.netlink.links import Links
from dataplane.lab.spec import LabError
from dataplane.planes.base import PlaneError
from dataplane.planes.measured import OpenFlow, PacketProgram

RUNS, PACKETS = 30, 20000
"""So many means of so many packets each. Before a test run the kernel waits for all processors: with few packets, what
is measured is a program that nobody used for long."""
_CLIENT_PORT, _SELF_PORT = 41000, 41001
_SYN, _ACK = 0x02, 0x10
_ABORTED, _TX, _REDIRECT = 0, 3, 4
_HOPS = 255


class Way(NamedTuple):
    """From whom to whom. uplink: the device, in `namespace`. neighbour: address of the node that has the backend,
    neighbour_mac: its link-layer address. client, node, backend: addresses; node_port: of a Service with that
    backend."""

    namespace: str
    uplink: str
    neighbour: str
    neighbour_mac: str
    client: str
    node: str
    node_port: int
    backend: str


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp_frame(mac: bytes, addresses: tuple[str, str], ports: tuple[int, int], flags: int) -> bytes:
    """An Ethernet frame with a TCP segment without data, from `mac` to `mac`. Pairs: source, destination."""
    packed = b"".join(ip_address(address).packed for address in addresses)
    tcp = struct.pack("!HHIIBBHHH", *ports, 1, 1, 5 << 4, flags, 65535, 0, 0)
    pseudo = packed + struct.pack("!IHBB", len(tcp), 0, 0, socket.IPPROTO_TCP)
    tcp = tcp[:16] + struct.pack("!H", ~_sum(pseudo + tcp) & 0xFFFF) + tcp[18:]
    if len(packed) > 8:
        header = struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, _HOPS) + packed
        return mac + mac + b"\x86\xdd" + header + tcp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, _HOPS, socket.IPPROTO_TCP, 0) + packed
    header = header[:10] + struct.pack("!H", ~_sum(header) & 0xFFFF) + header[12:]
    return mac + mac + b"\x08\x00" + header + tcp


def _run(program: int, index: int, frame: bytes, repeat: int = 1) -> bpf.ProgramRun:
    return bpf.run_program(program, frame, repeat, struct.pack("=IIIIII", 0, len(frame), 0, index, 0, 0))


@contextmanager
def steady(program: int, frame: bytes) -> Iterator[int]:
    """An XDP program (its descriptor) that sets a packet's hop limit, and its IPv4 header's checksum, to those of
    `frame` and goes on with `program`, so that test runs of a flow into itself can go on for ever."""
    if frame[12:14] == b"\x08\x00":
        (check,) = struct.unpack_from("=H", frame, 24)
        stores = instruction(STORE_BYTE, 2, offset=22, immediate=frame[22])
        stores += instruction(STORE_HALF, 2, offset=24, immediate=check)
    else:
        stores = instruction(STORE_BYTE, 2, offset=21, immediate=frame[21])
    programs = bpf.map_create(MapType.PROG_ARRAY, 4, 4, 1, name="programs")
    try:  # the map forgets its programs when nobody has it open
        bpf.map_update(programs, bytes(4), program.to_bytes(4, sys.byteorder))
        code = on_packet(len(frame), stores, tail_call(programs) + leave(_ABORTED), leave(_ABORTED))
        again = bpf.program_load(code, ProgramType.XDP, AttachType.XDP, "steady")
        try:
            yield again
        finally:
            os.close(again)
    finally:
        os.close(programs)


class ProgramCost:
    """A packet program, and what a packet costs in it on its way."""

    def __init__(self, program: PacketProgram, way: Way) -> None:
        self._program, self._way = program, way

    def measure(self) -> dict[str, float]:
        """ns: median of RUNS means, nanoseconds a packet; least: the smallest of them. Both have the test run's own
        share in them. Raises LabError when the packet does not take the fast path."""
        way, program = self._way, self._program
        with Links(way.namespace) as links:
            index, text = links.index(way.uplink), links.mac(way.uplink)
            mac = bytes.fromhex(text.replace(":", ""))
            # A packet that was sent on must look as if it came to this node, for the next run to take it.
            links.neighbour(way.uplink, way.neighbour, text)
            try:
                ports = (_CLIENT_PORT, way.node_port)
                _run(program.fd, index, tcp_frame(mac, (way.client, way.node), ports, _SYN))
                opened = OpenFlow(way.client, _CLIENT_PORT, way.node, way.node_port, index)
                with program.into_itself(opened, way.backend, _SELF_PORT):
                    return self._means(index, mac)
            except PlaneError as error:
                raise LabError(f"{way.uplink}: {error}") from error
            finally:
                links.neighbour(way.uplink, way.neighbour, way.neighbour_mac)

    def _means(self, index: int, mac: bytes) -> dict[str, float]:
        way, program = self._way, self._program.fd
        frame = tcp_frame(mac, (way.client, way.backend), (_SELF_PORT, _SELF_PORT), _ACK)
        for _ in range(3):
            seen = _run(program, index, frame)
        if seen.result not in (_TX, _REDIRECT):
            raise LabError(f"{way.uplink}: the XDP program leaves an established flow to the stack ({seen.result})")
        with steady(program, frame) as again:
            means = [float(_run(again, index, frame, PACKETS).duration_ns) for _ in range(RUNS)]
        return {
            "ns": statistics.median(means),
            "least": min(means),
            "operations": float(RUNS * PACKETS),
            "seconds": sum(means) * PACKETS / 1e9,
            "failures": 0.0,
        }
