#!/usr/bin/env bash
# scapy's wrpcapng() keeps times to the microsecond, cut off, whatever resolution they were captured in. Packets of a
# capture in nanoseconds that are rewritten as pcapng have equal times where they were 600 ns apart, nothing is said,
# and no argument changes it; wrpcap(nano=True) keeps nanoseconds, and reading pcapng does as well. wrpcap() without
# it rounds instead, so that the second packet is a microsecond apart in the two formats. draft-ietf-opsawg-pcapng has
# an option for this, if_tsresol, which "identifies the resolution of timestamps"; the writer leaves it out.
#
# Seen with scapy 2.8.0 (the newest release when this was written), python3 3.11.2 of Debian 12.
#
# Output seen:
#   captured: .123456100 .123456700
#   pcap, nano=True: .123456100 .123456700
#   pcap: .123456000 .123457000
#   pcapng: .123456000 .123456000
#   pcapng of nanoseconds by hand: .123456100 .123456700
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile scapy==2.8.0
cat >"$folder/tried.py" <<'PYTHON'
import logging
import struct
import sys

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import EDecimal, rdpcap, wrpcap, wrpcapng

folder = sys.argv[1]
NANOSECONDS = (1_700_000_000_123_456_100, 1_700_000_000_123_456_700)
wire = bytes(Ether() / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=5, dport=6) / b"data")


def block(kind, body):
    size = struct.pack("=I", 12 + len(body))
    return struct.pack("=I", kind) + size + body + size


def by_hand():
    """A pcapng file: section, interface (Ethernet, if_tsresol 9), one packet for each time."""
    made = block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1))
    made += block(1, struct.pack("=HHI", 1, 0, 0) + struct.pack("=HHB3xHH", 9, 1, 9, 0, 0))
    for time in NANOSECONDS:
        head = struct.pack("=IIIII", 0, time >> 32, time & 0xFFFFFFFF, len(wire), len(wire))
        made += block(6, head + wire + bytes(-len(wire) % 4))
    return made


def told(name, packets):
    print(f"{name}:", *("." + str(packet.time).split(".")[1].ljust(9, "0") for packet in packets))


packets = [Ether(wire) for _ in NANOSECONDS]
for packet, time in zip(packets, NANOSECONDS):
    packet.time = EDecimal(time) / 10**9
told("captured", packets)
wrpcap(f"{folder}/nano", packets, nano=True)
told("pcap, nano=True", rdpcap(f"{folder}/nano"))
wrpcap(f"{folder}/micro", packets)
told("pcap", rdpcap(f"{folder}/micro"))
wrpcapng(f"{folder}/ng", packets)
told("pcapng", rdpcap(f"{folder}/ng"))
with open(f"{folder}/hand", "wb") as out:
    out.write(by_hand())
told("pcapng of nanoseconds by hand", rdpcap(f"{folder}/hand"))
PYTHON
seen=$("$folder/venv/bin/python" "$folder/tried.py" "$folder")
printf '%s\n' "$seen"
[[ $seen == "captured: .123456100 .123456700
pcap, nano=True: .123456100 .123456700
pcap: .123456000 .123457000
pcapng: .123456000 .123456000
pcapng of nanoseconds by hand: .123456100 .123456700" ]]
