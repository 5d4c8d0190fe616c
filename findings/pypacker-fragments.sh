#!/usr/bin/env bash
# pypacker writes into the data of IPv4 fragments when anything in the header in front of them is changed, be it the
# TTL. Behind the header of each fragment of a UDP datagram it sees a UDP header, also where the data goes on, and puts
# a length and a checksum there: four bytes of every later fragment are overwritten. The length and the checksum of the
# first, which are the whole datagram's, become those of its own piece, so that Linux, which puts the fragments together
# again, finds a right checksum over the first piece and delivers that alone: 40 bytes of 100, without an error. RFC
# 791, 3.2: the fragment with offset zero has the datagram's beginning, the others go on. dpkt and scapy leave the data
# alone.
#
# Seen with pypacker 5.4, dpkt 1.9.8 and scapy 2.8.0 (the newest releases when this was written), python3 3.11.2 of
# Debian 12, Linux 6.18.44. scapy makes the fragments; told are the bytes behind the IP header that change with the TTL,
# and what a socket receives if the fragments are sent like that.
#
# Output seen:
#   as made: bytes changed none, none, none; received 100 bytes, as sent
#   pypacker, TTL not changed: bytes changed none, none, none; received 100 bytes, as sent
#   pypacker: bytes changed 5-7, 4-7, 4-7; received 40 bytes, as sent
#   dpkt: bytes changed none, none, none; received 100 bytes, as sent
#   scapy: bytes changed none, none, none; received 100 bytes, as sent
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-fragments-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space" 2>/dev/null' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile \
    pypacker==5.4 dpkt==1.9.8 scapy==2.8.0
ip netns add "$space"
ip -n "$space" link set lo up
seen=$(ip netns exec "$space" "$folder/venv/bin/python" - <<'PYTHON'
import logging
import socket

import dpkt
from pypacker.layer3 import ip as pypacker_ip

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, UDP, fragment

DATA = bytes(range(1, 101))
PORT, HEADER = 4001, 20
whole = IP(src="127.0.0.2", dst="127.0.0.1", id=7) / UDP(sport=4000, dport=PORT) / DATA
FRAGMENTS = [bytes(piece) for piece in fragment(IP(bytes(whole)), fragsize=48)]


def by_pypacker(data, ttl=9):
    packet = pypacker_ip.IP(data)
    packet.ttl = ttl
    return packet.bin()


def by_dpkt(data):
    packet = dpkt.ip.IP(data)
    packet.ttl, packet.sum = 9, 0
    return bytes(packet)


def by_scapy(data):
    packet = IP(data)
    packet.ttl = 9
    del packet.chksum
    return bytes(packet)


def changes(before, after):
    found = [place - HEADER for place in range(HEADER, len(before)) if before[place] != after[place]]
    return f"{found[0]}-{found[-1]}" if found else "none"


def received(pieces):
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender,
    ):
        server.bind(("127.0.0.1", PORT))
        server.settimeout(10)
        for piece in pieces:
            sender.sendto(piece, ("127.0.0.1", 0))
        data = server.recv(2000)
    return f"{len(data)} bytes, {'as sent' if DATA.startswith(data) else 'others'}"


ways = {
    "as made": bytes,
    "pypacker, TTL not changed": lambda data: pypacker_ip.IP(data).bin(),
    "pypacker": by_pypacker,
    "dpkt": by_dpkt,
    "scapy": by_scapy,
}
for name, way in ways.items():
    pieces = [way(data) for data in FRAGMENTS]
    told = ", ".join(changes(*pair) for pair in zip(FRAGMENTS, pieces, strict=True))
    print(f"{name}: bytes changed {told}; received {received(pieces)}")
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "as made: bytes changed none, none, none; received 100 bytes, as sent
pypacker, TTL not changed: bytes changed none, none, none; received 100 bytes, as sent
pypacker: bytes changed 5-7, 4-7, 4-7; received 40 bytes, as sent
dpkt: bytes changed none, none, none; received 100 bytes, as sent
scapy: bytes changed none, none, none; received 100 bytes, as sent" ]]
