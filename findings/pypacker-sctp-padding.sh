#!/usr/bin/env bash
# pypacker computes wrong checksums for SCTP packets whose data is no multiple of four bytes. It keeps the padding of
# the chunk apart from the data, and when it computes the sum it cuts as many bytes off the end of the data again, so
# that neither the end of the data nor the padding is in it. Any change of the header, even to the same verification
# tag, makes the sum anew, and receivers drop the packet. RFC 9260, 6.8: "Calculate the CRC32c checksum of the whole
# packet, including the SCTP common header and all the chunks". Data of a multiple of four bytes has the right sum, and
# dpkt and scapy are right about all.
#
# Seen with pypacker 5.4, dpkt 1.9.8 and scapy 2.8.0 (the newest releases when this was written), python3 3.11.2 of
# Debian 12. CRC-32C is computed by hand, bit by bit, from the bytes that each library writes.
#
# Output seen:
#   4 bytes of data: pypacker right, dpkt right, scapy right
#   5 bytes of data: pypacker wrong (CRC of the packet less its last 6 bytes), dpkt right, scapy right
#   6 bytes of data: pypacker wrong (CRC of the packet less its last 4 bytes), dpkt right, scapy right
#   7 bytes of data: pypacker wrong (CRC of the packet less its last 2 bytes), dpkt right, scapy right
#   8 bytes of data: pypacker right, dpkt right, scapy right
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile \
    pypacker==5.4 dpkt==1.9.8 scapy==2.8.0
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import logging
import struct

import dpkt
from pypacker.layer4 import sctp as pypacker_sctp

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.sctp import SCTP, SCTPChunkData

SUM = slice(8, 12)


def crc(data):
    """CRC-32C as it stands in the packet: least significant byte first."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return struct.pack("<I", value ^ 0xFFFFFFFF)


def by_pypacker(data):
    packet = pypacker_sctp.SCTP(data)
    packet.vtag = packet.vtag
    return packet.bin()


def by_dpkt(data):
    packet = dpkt.sctp.SCTP(data)
    packet.sum = 0
    return bytes(packet)


def by_scapy(data):
    packet = SCTP(data)
    del packet.chksum
    return bytes(packet)


def told(data):
    zeroed = data[: SUM.start] + bytes(4) + data[SUM.stop :]
    for less in range(8):
        if data[SUM] == crc(zeroed[: len(zeroed) - less]):
            return f"wrong (CRC of the packet less its last {less} bytes)" if less else "right"
    return "wrong"


for size in range(4, 9):
    data = bytes(SCTP(sport=5, dport=6, tag=7) / SCTPChunkData(data=bytes(range(1, size + 1)), tsn=4))
    ways = {"pypacker": by_pypacker, "dpkt": by_dpkt, "scapy": by_scapy}
    print(f"{size} bytes of data:", ", ".join(f"{name} {told(way(data))}" for name, way in ways.items()))
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "4 bytes of data: pypacker right, dpkt right, scapy right
5 bytes of data: pypacker wrong (CRC of the packet less its last 6 bytes), dpkt right, scapy right
6 bytes of data: pypacker wrong (CRC of the packet less its last 4 bytes), dpkt right, scapy right
7 bytes of data: pypacker wrong (CRC of the packet less its last 2 bytes), dpkt right, scapy right
8 bytes of data: pypacker right, dpkt right, scapy right" ]]
