#!/usr/bin/env bash
# Two pcapng files put together by cat are one valid pcapng file of two sections, yet scapy and dpkt read the second by
# the interfaces of the first: packets with another link type are dissected as what they are not, and times in another
# resolution are wrong by its factor (nanoseconds after microseconds: the year 55840). draft-ietf-opsawg-pcapng: a file
# may have several sections, and the interface ID of a packet counts the Interface Description Blocks of its own. Each
# file alone is read right by scapy; dpkt knows one link type a file in any case. Neither says a word.
#
# Seen with scapy 2.8.0 and dpkt 1.9.8 (the newest releases when this was written), python3 3.11.2 of Debian 12. The
# first file has a UDP packet over Ethernet, its time in microseconds, the second one without a link-layer header
# (LINKTYPE_RAW), in nanoseconds. Both packets are of second 1700000000.
#
# Output seen:
#   scapy, first: 1700000000 Ether/IP/UDP
#   scapy, second: 1700000000 IP/UDP
#   scapy, both: 1700000000 Ether/IP/UDP; 1700000000000 Ether/Raw
#   dpkt, first: 1700000000
#   dpkt, second: 1700000000
#   dpkt, both: 1700000000; 1700000000000
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile scapy==2.8.0 dpkt==1.9.8
seen=$("$folder/venv/bin/python" - "$folder" <<'PYTHON'
import logging
import struct
import sys

import dpkt

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

SECOND, ETHERNET, RAW = 1_700_000_000, 1, 101


def block(kind, body):
    size = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + size + body + size


def section(link_type, digits, packet):
    """A file: header, an interface whose times count 10^-digits seconds, an enhanced packet block."""
    options = struct.pack("<HHB3xHH", 9, 1, digits, 0, 0)  # if_tsresol, opt_endofopt
    time = SECOND * 10**digits
    found = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    found += block(1, struct.pack("<HHI", link_type, 0, 0) + options)
    head = struct.pack("<IIIII", 0, time >> 32, time & 0xFFFFFFFF, len(packet), len(packet))
    return found + block(6, head + packet + bytes(-len(packet) % 4))


def layers(packet):
    return "/".join(layer.__name__ for layer in packet.layers())


packet = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=4000, dport=4001))
header = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x0800))
files = {"first": section(ETHERNET, 6, header + packet), "second": section(RAW, 9, packet)}
files["both"] = files["first"] + files["second"]
for name, data in files.items():
    with open(f"{sys.argv[1]}/{name}.pcapng", "wb") as file:
        file.write(data)
for name in files:
    told = [f"{int(packet.time)} {layers(packet)}" for packet in rdpcap(f"{sys.argv[1]}/{name}.pcapng")]
    print(f"scapy, {name}:", "; ".join(told))
for name in files:
    with open(f"{sys.argv[1]}/{name}.pcapng", "rb") as file:
        print(f"dpkt, {name}:", "; ".join(str(int(time)) for time, _ in dpkt.pcapng.Reader(file)))
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "scapy, first: 1700000000 Ether/IP/UDP
scapy, second: 1700000000 IP/UDP
scapy, both: 1700000000 Ether/IP/UDP; 1700000000000 Ether/Raw
dpkt, first: 1700000000
dpkt, second: 1700000000
dpkt, both: 1700000000; 1700000000000" ]]
