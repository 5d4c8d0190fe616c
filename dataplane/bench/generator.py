"""Packets made and dropped by the kernel itself, for rates that no process could send: XDP test runs with live frames.

A tiny program on the switch's side of a node's uplink writes the same packet again and again and sends it to the node
(XDP_TX of a live frame, Linux 5.18); another one drops and so counts whatever the node sends back out. What lies
between is the node's own work, all of it on one processor, in the context of the caller.
"""

import os
import socket
import struct
import time
from types import TracebackType
from typing import Self

from pyroute2 import IPRoute

from dataplane.kernel import bpf
from dataplane.kernel.bpf import AttachType, BpfError, ProgramType
from dataplane.kernel.links import Links
from dataplane.kernel.netns import netns
from dataplane.lab.spec import LabError

FRAME_BYTES = 64
RUN_PACKETS, BATCH = 16384, 64
_LIVE_FRAMES = 2
_XDP_DROP, _XDP_TX = 1, 3
_DRIVER_MODE = 4
_LOAD_WORD, _STORE_WORD, _MOVE, _MOVE_IMMEDIATE, _ADD_IMMEDIATE, _JUMP_GREATER, _EXIT = (
    0x61, 0x62, 0xBF, 0xB7, 0x07, 0x2D, 0x95,
)  # fmt: skip


class GeneratorError(LabError):
    """This kernel does not run live frames, or the device does not take them."""


def _instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """struct bpf_insn."""
    return struct.pack("=BBhi", code, source << 4 | destination, offset, immediate)


def _return(value: int) -> bytes:
    return _instruction(_MOVE_IMMEDIATE, 0, immediate=value) + _instruction(_EXIT)


def sender_code(frame: bytes) -> bytes:
    """A program that writes `frame` (whole 4-byte words) over the packet and sends it back out. It writes every time,
    since the kernel uses a frame's page again as the last user left it."""
    words = struct.unpack(f"={len(frame) // 4}i", frame)
    stores = b"".join(_instruction(_STORE_WORD, 2, offset=4 * at, immediate=word) for at, word in enumerate(words))
    return (
        _instruction(_LOAD_WORD, 2, 1, 0)  # r2 = data
        + _instruction(_LOAD_WORD, 3, 1, 4)  # r3 = data_end
        + _instruction(_MOVE, 4, 2)
        + _instruction(_ADD_IMMEDIATE, 4, immediate=len(frame))
        + _instruction(_JUMP_GREATER, 4, 3, len(words) + 2)
        + stores
        + _return(_XDP_TX)
        + _return(_XDP_DROP)
    )


def _checksum(header: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_frame(macs: tuple[str, str], addresses: tuple[str, str], ports: tuple[int, int]) -> bytes:
    """An Ethernet frame of FRAME_BYTES with a UDP datagram in IPv4. Each pair: source, destination."""
    source_mac, destination_mac = (bytes.fromhex(mac.replace(":", "")) for mac in macs)
    size = FRAME_BYTES - 14
    ends = b"".join(socket.inet_aton(address) for address in addresses)
    header = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0x4000, 64, socket.IPPROTO_UDP, 0) + ends
    header = header[:10] + struct.pack("!H", _checksum(header)) + header[12:]
    payload = bytes(size - 28)
    pseudo = ends + struct.pack("!BBHHHHH", 0, socket.IPPROTO_UDP, size - 20, *ports, size - 20, 0) + payload
    datagram = struct.pack("!HHHH", *ports, size - 20, _checksum(pseudo) or 0xFFFF) + payload
    return destination_mac + source_mac + b"\x08\x00" + header + datagram


class Generator:
    """Sends one packet over and over into a node by `device`, the switch's end of its uplink in `namespace`, and counts
    what comes back. As a context manager. The node's end must take frames (GRO on, or native XDP)."""

    def __init__(self, namespace: str, device: str, frame: bytes) -> None:
        self._namespace, self._device, self._frame = namespace, device, frame
        self._open: list[int] = []

    def __enter__(self) -> Self:
        try:
            with netns(self._namespace), Links(self._namespace) as links:
                self._index = links.index(self._device)
                self._sender = bpf.program_load(sender_code(self._frame), ProgramType.XDP, name="sender")
                self._open.append(self._sender)
                sink = bpf.program_load(_return(_XDP_DROP), ProgramType.XDP, name="sink")
                self._open.append(sink)
                self._open.append(bpf.link_create(sink, self._index, AttachType.XDP, _DRIVER_MODE))
        except BpfError as error:
            self._close()
            raise GeneratorError(f"{self._device}: no packet generator here: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def _received(self, door: IPRoute) -> int:
        received: int = door.get_links(self._index)[0].get_attr("IFLA_STATS64")["rx_packets"]
        return received

    def run(self, seconds: float) -> dict[str, float]:
        """Send for so long. operations: packets that came back out of the node; sent; seconds."""
        context = struct.pack("=IIIIII", 0, len(self._frame), 0, self._index, 0, 0)
        with netns(self._namespace), IPRoute() as door:
            before, sent = self._received(door), 0
            started = time.perf_counter()
            while (took := time.perf_counter() - started) < seconds:
                try:
                    bpf.run_program(self._sender, self._frame, RUN_PACKETS, context, _LIVE_FRAMES, BATCH)
                except BpfError as error:
                    raise GeneratorError(f"{self._device}: live frames do not run: {error.strerror}") from error
                sent += RUN_PACKETS
            came = self._received(door) - before
        return {"operations": float(came), "sent": float(sent), "seconds": took, "failures": 0.0}
