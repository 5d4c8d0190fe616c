#!/usr/bin/env bash
# scapy's defragment() puts IPv4 fragments together only if the last one comes last, since 2.6.1 or 2.6.0. In four of
# six orders of three fragments the datagram is not found, and the list that comes back holds tuples of packets where
# packets are due, of which bytes() raises TypeError. sniff(session=IPSession) just never shows the datagram. IP
# promises no order (RFC 791, section 3.2, reassembly), and defragment() says: "plist defragmented as much as possible".
# A fragment that came twice has the same effect. scapy 2.5.0 took every order, and defragment6() does.
#
# Seen with scapy 2.8.0 (the newest release when this was written), python3 3.11.2 of Debian 12. 2.6.1 does the same
# with IPv4.
#
# Output seen:
#   2.8.0 order 123: the datagram; order 213: the datagram
#   2.8.0 order 132: tuple, tuple; order 231: tuple, tuple
#   2.8.0 order 312: tuple; order 321: tuple
#   2.8.0 order 1223: tuple, tuple, tuple, tuple
#   2.8.0 IPSession, order 123: 1 datagrams; order 132: 0 datagrams
#   2.8.0 IPv6, order 132: the datagram; order 321: the datagram
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile scapy==2.8.0
cat >"$folder/tried.py" <<'PYTHON'
import logging
import sys

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.config import conf
from scapy.layers.inet import IP, UDP, defragment, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6, fragment6
from scapy.packet import Packet
from scapy.sendrecv import sniff
from scapy.sessions import IPSession
from scapy.utils import wrpcap

data = bytes(range(100))
whole = bytes(IP(src="192.0.2.1", dst="192.0.2.2", id=7) / UDP(sport=5, dport=6) / data)
wire = [bytes(piece) for piece in fragment(IP(whole), fragsize=48)]


def parts(order):
    return [IP(wire[int(number) - 1]) for number in order]


def fate(found, expected):
    """What came back, in words."""
    if len(found) == 1 and isinstance(found[0], Packet) and bytes(found[0]) == expected:
        return "the datagram"
    return ", ".join(type(packet).__name__ for packet in found)


def line(name, orders, told):
    print(conf.version, f"{name}", "; ".join(f"order {order}: {told(order)}" for order in orders.split()))


def by_ipv4(order):
    return fate(defragment(parts(order)), whole)


def by_session(order):
    file = f"{sys.argv[1]}/{order}.pcap"
    wrpcap(file, parts(order))
    return f"{len(sniff(offline=file, session=IPSession, quiet=True))} datagrams"


def by_ipv6(order):
    ends = {"src": "2001:db8::1", "dst": "2001:db8::2"}
    pieces = fragment6(IPv6(**ends) / IPv6ExtHdrFragment(id=5) / UDP(sport=5, dport=6) / bytes(3000), 1280)
    found = defragment6([IPv6(bytes(pieces[int(number) - 1])) for number in order])
    return fate([found], bytes(IPv6(**ends) / UDP(sport=5, dport=6) / bytes(3000)))


for orders in ("123 213", "132 231", "312 321", "1223"):
    line("", orders, by_ipv4)
line("IPSession,", "123 132", by_session)
line("IPv6,", "132 321", by_ipv6)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/tried.py" "$folder")
seen=${seen//  / }
printf '%s\n' "$seen"
[[ $seen == "2.8.0 order 123: the datagram; order 213: the datagram
2.8.0 order 132: tuple, tuple; order 231: tuple, tuple
2.8.0 order 312: tuple; order 321: tuple
2.8.0 order 1223: tuple, tuple, tuple, tuple
2.8.0 IPSession, order 123: 1 datagrams; order 132: 0 datagrams
2.8.0 IPv6, order 132: the datagram; order 321: the datagram" ]]
