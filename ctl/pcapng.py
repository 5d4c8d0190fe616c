"""Files of captured packets in pcapng's form (draft-ietf-opsawg-pcapng), which tshark, Wireshark and scapy read.

All numbers are in this machine's byte order, as the file says itself. Times are nanoseconds since 1970.
"""

import struct
from typing import BinaryIO

from ctl import VERSION

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER = 0x1A2B3C4D
_END, _COMMENT, _APPLICATION = 0, 1, 4  # opt_endofopt, opt_comment, shb_userappl
_NAME, _RESOLUTION = 2, 9  # if_name, if_tsresol
_NANOSECONDS = b"\x09"


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes, *options: bytes) -> bytes:
    body += b"".join(options) + (struct.pack("=HH", _END, 0) if options else b"")
    length = len(body) + 12
    return struct.pack("=II", kind, length) + body + struct.pack("=I", length)


class PcapngWriter:
    """Writes one section. Each packet is in the file when `packet` returns. snap: bytes of a packet that are kept at
    most. Raises OSError."""

    def __init__(self, out: BinaryIO, snap: int) -> None:
        self._out, self._snap = out, snap
        self._interfaces: dict[tuple[str, int], int] = {}
        section = struct.pack("=IHHq", _BYTE_ORDER, 1, 0, -1)  # version 1.0, of a length that nobody knows yet
        self._write(_block(_SECTION, section, _option(_APPLICATION, f"hotplane {VERSION}".encode())))

    def packet(self, ns: int, device: str, link: int, data: bytes, length: int, comment: str) -> None:
        """Write a packet. ns: nanoseconds since 1970. device: its name, "" for none. link: pcap's LINKTYPE. data: the
        packet's first bytes. length: bytes of the whole packet. comment: for people."""
        interface = self._interface(device, link)
        head = struct.pack("=IIIII", interface, ns >> 32, ns & 0xFFFFFFFF, len(data), length)
        self._write(_block(_PACKET, head + _padded(data), _option(_COMMENT, comment.encode())))

    def _interface(self, device: str, link: int) -> int:
        """The number of a device, which is described when it has its first packet."""
        number = self._interfaces.get((device, link))
        if number is None:
            number = self._interfaces[device, link] = len(self._interfaces)
            options = (_option(_NAME, (device or "none").encode()), _option(_RESOLUTION, _NANOSECONDS))
            self._write(_block(_INTERFACE, struct.pack("=HHI", link, 0, self._snap), *options))
        return number

    def _write(self, block: bytes) -> None:
        self._out.write(block)
        self._out.flush()
