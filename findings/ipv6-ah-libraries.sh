#!/usr/bin/env bash
# Two libraries for packets are wrong about the authentication header (AH) of IPv6, each in its own way. dpkt reads it,
# but writes all that stands behind it twice: the header object keeps the rest of the packet as its data, and the packet
# appends that once more; len() of the packet has the double length, too. A packet with ESP it reads and cannot write at
# all (AttributeError: 'IP6ESPHeader' object has no attribute 'nxt'). pypacker takes AH's length for one in units of 8
# bytes, so that it goes on 16 bytes too late, reads UDP's ports from the data, and writes a length and a checksum over
# the data as soon as an address changes. RFC 4302, 2.2: the length counts "32-bit words (4-byte units)", minus 2; other
# extension headers count in 8. Both are right about destination options, and dpkt about AH over IPv4, where the header
# is another class.
#
# Seen with dpkt 1.9.8, pypacker 5.4 and scapy 2.8.0 (the newest releases when this was written), python3 3.11.2 of
# Debian 12. scapy makes the packets: UDP from port 4000 to 4001 with 40 bytes of data. "anew": written without a
# change.
#
# Output seen:
#   IPv6, options: dpkt ports 4000 4001, anew the same bytes
#   IPv6, options: pypacker ports 4000 4001, anew the same bytes; new address, changed behind the headers: checksum
#   IPv6, AH: dpkt ports 4000 4001, anew 160 bytes of 112, the end twice
#   IPv6, AH: pypacker ports 2057 2571, anew the same bytes; new address, changed behind the headers: data
#   IPv6, ESP: dpkt AttributeError
#   IPv4, AH: dpkt anew the same bytes
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

import dpkt
from pypacker.layer3 import ip6 as pypacker_ip6
from pypacker.layer4 import udp as pypacker_udp

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.ipsec import AH, ESP

SIX = IPv6(src="2001:db8::1", dst="2001:db8::2")
# With its checksum, which scapy leaves out behind AH.
DATAGRAM = UDP(bytes(SIX / UDP(sport=4000, dport=4001) / bytes(range(40)))[40:])
DATA = len(DATAGRAM) - 40


def authenticated(lower):
    return bytes(lower / AH(spi=5, seq=6, icv=bytes(12), payloadlen=4, nh=17) / DATAGRAM)


def by_dpkt(name, data, kind):
    packet = kind(data)
    ports = f"ports {packet.udp.sport} {packet.udp.dport}, " if hasattr(packet, "udp") else ""
    try:
        written = bytes(packet)
    except AttributeError as error:
        print(f"{name}: dpkt {type(error).__name__}")
        return
    told = "the same bytes"
    if written != data:
        twice = written == data + data[-(len(written) - len(data)) :]
        told = f"{len(written)} bytes of {len(data)}{', the end twice' if twice else ''}"
    print(f"{name}: dpkt {ports}anew {told}")


def by_pypacker(name, data):
    packet = pypacker_ip6.IP6(data)
    udp = packet[pypacker_udp.UDP]
    ports, same = f"{udp.sport} {udp.dport}", packet.bin() == data
    packet.src_s = "2001:db8::9"
    written = packet.bin()
    start = len(data) - len(DATAGRAM)
    places = {place - start for place in range(start, len(data)) if data[place] != written[place]}
    told = "checksum" if places <= {6, 7} else "data" if min(places) >= DATA else "header"
    anew = "the same bytes" if same else "others"
    print(f"{name}: pypacker ports {ports}, anew {anew}; new address, changed behind the headers: {told}")


for name, data in {
    "IPv6, options": bytes(SIX / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]) / DATAGRAM),
    "IPv6, AH": authenticated(SIX),
}.items():
    by_dpkt(name, data, dpkt.ip6.IP6)
    by_pypacker(name, data)
by_dpkt("IPv6, ESP", bytes(SIX / ESP(spi=5, seq=6, data=bytes(20))), dpkt.ip6.IP6)
by_dpkt("IPv4, AH", authenticated(IP(src="192.0.2.1", dst="192.0.2.2")), dpkt.ip.IP)
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "IPv6, options: dpkt ports 4000 4001, anew the same bytes
IPv6, options: pypacker ports 4000 4001, anew the same bytes; new address, changed behind the headers: checksum
IPv6, AH: dpkt ports 4000 4001, anew 160 bytes of 112, the end twice
IPv6, AH: pypacker ports 2057 2571, anew the same bytes; new address, changed behind the headers: data
IPv6, ESP: dpkt AttributeError
IPv4, AH: dpkt anew the same bytes" ]]
