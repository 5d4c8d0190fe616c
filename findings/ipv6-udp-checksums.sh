#!/usr/bin/env bash
# UDP datagrams over IPv6 that dpkt writes are dropped by who receives them in two cases, those of pypacker in one,
# though both fill in checksums by themselves, and both are right about most packets. First, a sum that comes out as
# zero: dpkt writes 0, which over IPv6 says "no checksum", for one of 65,536 payloads (over IPv4 it writes 0xffff).
# RFC 8200, 8.1: "if that computation yields a result of zero, it must be changed to hex FFFF". Second, packets with a
# routing header, as of segment routing: both take the address in the header, the next segment, for the pseudo-header.
# RFC 8200, 8.1: "If the IPv6 packet contains a Routing header, the Destination Address used in the pseudo-header is
# that of the final destination." scapy is right about all three. Linux counts what it drops as Udp6InCsumErrors.
#
# Seen with dpkt 1.9.8, pypacker 5.4 and scapy 2.8.0 (the newest releases when this was written), python3 3.11.2 of
# Debian 12, Linux 6.18.44. Each library writes the same packets, with the checksum left to it, to a veth; behind it
# is a socket, and both addresses of the segment list. ("zero" has a payload that makes the sum zero.)
#
# Output seen:
#   plain: scapy 0x7f06 heard, dpkt 0x7f06 heard, pypacker 0x7f06 heard
#   zero: scapy 0xffff heard, dpkt 0x0 dropped, pypacker 0xffff heard
#   routing header: scapy 0x7eff heard, dpkt 0x7f06 dropped, pypacker 0x7f06 dropped
#   counted as checksum errors: 3
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-udp6sum-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space" 2>/dev/null' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile scapy==2.8.0 dpkt==1.9.8 \
    pypacker==5.4
ip netns add "$space"
ip -n "$space" link add v0 type veth peer name v1
for device in lo v0 v1; do ip -n "$space" link set "$device" up; done
for address in fd00::2 fd00::9; do ip -n "$space" addr add "$address/64" dev v1 nodad; done
ip netns exec "$space" sysctl -qw net.ipv6.conf.all.seg6_enabled=1 net.ipv6.conf.v1.seg6_enabled=1
cat >"$folder/tried.py" <<'PYTHON'
import logging
import socket
import struct

logging.getLogger("scapy").setLevel(logging.ERROR)
import dpkt
from pypacker.layer4.udp import UDP as PypackerUdp
from pypacker.layer12.ethernet import Ethernet
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrSegmentRouting
from scapy.layers.l2 import Ether

PORT = 7777
with open("/sys/class/net/v1/address") as file:
    link = Ether(dst=file.read().strip(), src="02:00:00:00:00:01")
ip = IPv6(src="fd00::1", dst="fd00::2")
udp = UDP(sport=5, dport=PORT)
segments = IPv6ExtHdrSegmentRouting(addresses=["fd00::9", "fd00::2"], segleft=1, lastentry=1)
missing = UDP(bytes(ip / udp / b"\0\0")[40:]).chksum  # as a payload, it makes the sum zero


def by_dpkt(wire):
    packet = dpkt.ethernet.Ethernet(wire)
    packet.data.data.sum = 0  # it is computed if it is 0
    return bytes(packet)


def by_pypacker(wire):
    packet = Ethernet(wire)
    packet[PypackerUdp].sum = 0
    return packet.bin()


sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sender.bind(("v0", 0))
listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
listener.bind(("::", PORT))
listener.settimeout(1)


def fate(wire):
    sender.send(wire)
    try:
        listener.recv(99)
        return "heard"
    except TimeoutError:
        return "dropped"


for name, packet in (
    ("plain", ip / udp / b"hi"),
    ("zero", ip / udp / struct.pack(">H", missing)),
    ("routing header", ip / segments / udp / b"hi"),
):
    wire = bytes(link / packet)
    told = []
    for library, written in (("scapy", wire), ("dpkt", by_dpkt(wire)), ("pypacker", by_pypacker(wire))):
        start = written.index(struct.pack(">HH", 5, PORT))
        told.append(f"{library} {UDP(written[start:]).chksum:#x} {fate(written)}")
    print(f"{name}:", ", ".join(told))
with open("/proc/net/snmp6") as file:
    print("counted as checksum errors:", dict(line.split() for line in file)["Udp6InCsumErrors"])
PYTHON
seen=$(ip netns exec "$space" "$folder/venv/bin/python" "$folder/tried.py")
printf '%s\n' "$seen"
[[ $seen == "plain: scapy 0x7f06 heard, dpkt 0x7f06 heard, pypacker 0x7f06 heard
zero: scapy 0xffff heard, dpkt 0x0 dropped, pypacker 0xffff heard
routing header: scapy 0x7eff heard, dpkt 0x7f06 dropped, pypacker 0x7f06 dropped
counted as checksum errors: 3" ]]
