#!/usr/bin/env bash
# dpkt cannot write a PPPoE packet that it has read: of the protocol of PPP, two bytes in what came in, it writes one
# (0x21 for IPv4, 0x57 for IPv6), and leaves the length in the PPPoE header as it was, so that a byte is missing. Linux
# drops packets that are shorter than that length (pppoe_rcv). RFC 1661, 6.5: "By default, all implementations MUST
# transmit packets with two octet PPP Protocol fields"; RFC 2516, 7, does not recommend to negotiate anything else.
# Control packets (LCP, 0xc021) come out right. pypacker and scapy write what they read. (That it compresses the field
# is what dpkt's source says it wants; that the length no longer fits is not.)
#
# Seen with dpkt 1.9.8, pypacker 5.4 and scapy 2.8.0 (the newest releases when this was written), python3 3.11.2 of
# Debian 12. scapy makes the packets, and makes its own anew without the bytes that it read.
#
# Output seen:
#   IPv4: protocol 0021, length 35 of 35
#   IPv4, dpkt: protocol 21, length 35 of 34
#   IPv4, pypacker: the same bytes
#   IPv4, scapy: the same bytes
#   IPv6: protocol 0057, length 55 of 55
#   IPv6, dpkt: protocol 57, length 55 of 54
#   IPv6, pypacker: the same bytes
#   IPv6, scapy: the same bytes
#   LCP: protocol c021, length 10 of 10
#   LCP, dpkt: the same bytes
#   LCP, pypacker: the same bytes
#   LCP, scapy: the same bytes
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile \
    scapy==2.8.0 dpkt==1.9.8 pypacker==5.4
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import logging
import struct

import dpkt
from pypacker.layer12.ethernet import Ethernet

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.ppp import PPP, PPP_LCP_Echo, PPPoE

IN_PPPOE, IN_PPP = 14, 20  # behind the headers of Ethernet and PPPoE


def by_pypacker(data):
    packet = Ethernet(data)
    packet.dissect_full()
    return packet.bin()


def by_scapy(data):
    packet = Ether(data)
    for layer in packet.layers():
        packet[layer].raw_packet_cache = None
    return bytes(packet)


def told(data):
    (length,) = struct.unpack_from(">H", data, IN_PPPOE + 4)
    size = 1 if data[IN_PPP] & 1 else 2  # RFC 1661, 2: the last byte is odd, the one before is even
    return f"protocol {data[IN_PPP:IN_PPP + size].hex()}, length {length} of {len(data) - IN_PPP}"


message = UDP(sport=4000, dport=4001) / b"hello"
inside = {
    "IPv4": PPP() / IP(src="192.0.2.1", dst="192.0.2.2") / message,
    "IPv6": PPP() / IPv6(src="2001:db8::1", dst="2001:db8::2") / message,
    "LCP": PPP() / PPP_LCP_Echo(),
}
for name, payload in inside.items():
    data = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / PPPoE(sessionid=5) / payload)
    print(f"{name}: {told(data)}")
    written = {"dpkt": bytes(dpkt.ethernet.Ethernet(data)), "pypacker": by_pypacker(data), "scapy": by_scapy(data)}
    for library, found in written.items():
        print(f"{name}, {library}: {'the same bytes' if found == data else told(found)}")
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "IPv4: protocol 0021, length 35 of 35
IPv4, dpkt: protocol 21, length 35 of 34
IPv4, pypacker: the same bytes
IPv4, scapy: the same bytes
IPv6: protocol 0057, length 55 of 55
IPv6, dpkt: protocol 57, length 55 of 54
IPv6, pypacker: the same bytes
IPv6, scapy: the same bytes
LCP: protocol c021, length 10 of 10
LCP, dpkt: the same bytes
LCP, pypacker: the same bytes
LCP, scapy: the same bytes" ]]
