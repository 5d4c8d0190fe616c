#!/usr/bin/env bash
# Debian 12's tcprewrite changes packets that it was not asked to change, without any option. In a TCP segment without
# data, padded to 60 bytes as Ethernet has it, the total length of IP grows by the padding: a pure ACK carries six bytes
# of data now, which the receiver takes for the connection's. All unicast MAC addresses of IPv6 packets, those of the
# senders too, become multicast (33:33:...), and --enet-dmac has no effect on them. The checksums are made to fit, so
# that nothing looks damaged. tcprewrite(1): "Tcprewrite is a tool to rewrite packets stored in pcap(3) file format";
# lengths and MAC addresses have options of their own (--fixlen, --enet-dmac). IPv4 packets without padding stay as they
# are.
#
# Seen with tcpreplay 4.4.3 of Debian 12, scapy 2.8.0, python3 3.11.2. 4.5.1 of Debian 13 leaves these packets alone;
# it leaves the padded one alone with --fixcsum as well, and says so. The package is unpacked to a temporary folder.
#
# Output seen:
#   without options, UDP/IPv4: nothing
#   without options, ACK/IPv4, padded: IP length 40 -> 46, TCP data 0 -> 6
#   without options, UDP/IPv6: to 02:00:00:00:00:02 -> 33:33:00:00:00:02, from 02:00:00:00:00:01 -> 33:33:00:00:00:01
#   --enet-dmac=02:00:00:00:00:03, UDP/IPv4: to 02:00:00:00:00:02 -> 02:00:00:00:00:03
#   --enet-dmac=02:00:00:00:00:03, ACK/IPv4, padded: to 02:00:00:00:00:02 -> 02:00:00:00:00:03, IP length 40 -> 46, TCP data 0 -> 6
#   --enet-dmac=02:00:00:00:00:03, UDP/IPv6: to 02:00:00:00:00:02 -> 33:33:00:00:00:02, from 02:00:00:00:00:01 -> 33:33:00:00:00:01
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
# Packages into the folder, by the lists of the system, or by new ones of its own.
download() {
    local own=(-q -o "Dir::Cache=$folder/cache")
    apt-get "${own[@]}" download "$@" && return
    own+=(-o "Dir::State::lists=$folder/lists")
    apt-get "${own[@]}" update && apt-get "${own[@]}" download "$@"
}
cd "$folder"
needed=(libdumbnet1 libpcap0.8 libibverbs1 libnl-3-200 libnl-route-3-200 libdbus-1-3)
download tcpreplay=4.4.3-1 "${needed[@]}" >said 2>&1 || { cat said >&2; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" "$folder"; done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile scapy==2.8.0
libraries=$(echo "$folder"/lib/*-linux-gnu "$folder"/usr/lib/*-linux-gnu | tr ' ' :)
seen=$(LD_LIBRARY_PATH=$libraries "$folder/venv/bin/python" - "$folder/usr/bin/tcprewrite" <<'PYTHON'
import logging
import subprocess
import sys

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Padding
from scapy.utils import rdpcap, wrpcap

HEAD = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
PACKETS = {
    "UDP/IPv4": HEAD / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=4000, dport=4001) / bytes(20),
    "ACK/IPv4, padded": HEAD / IP(src="192.0.2.1", dst="192.0.2.2") / TCP(flags="A") / Padding(bytes(6)),
    "UDP/IPv6": HEAD / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=4000, dport=4001) / bytes(20),
}


def fields(packet):
    found = {"to": packet.dst, "from": packet.src}
    if IP in packet:
        found["IP length"] = packet[IP].len
    if TCP in packet:
        found["TCP data"] = 0 if Padding in packet else len(packet[TCP].payload)
    return found


before = [Ether(bytes(packet)) for packet in PACKETS.values()]
wrpcap("in.pcap", before)
for options in ([], ["--enet-dmac=02:00:00:00:00:03"]):
    subprocess.run([sys.argv[1], *options, "-i", "in.pcap", "-o", "out.pcap"], check=True)
    for name, old, new in zip(PACKETS, before, rdpcap("out.pcap"), strict=True):
        was, became = fields(old), fields(new)
        changes = [f"{key} {was[key]} -> {became[key]}" for key in was if was[key] != became[key]]
        print(f"{' '.join(options) or 'without options'}, {name}: {', '.join(changes) or 'nothing'}")
PYTHON
)
printf '%s\n' "$seen"
mapped='to 02:00:00:00:00:02 -> 02:00:00:00:00:03'
multicast='to 02:00:00:00:00:02 -> 33:33:00:00:00:02, from 02:00:00:00:00:01 -> 33:33:00:00:00:01'
longer='IP length 40 -> 46, TCP data 0 -> 6'
[[ $seen == "without options, UDP/IPv4: nothing
without options, ACK/IPv4, padded: $longer
without options, UDP/IPv6: $multicast
--enet-dmac=02:00:00:00:00:03, UDP/IPv4: $mapped
--enet-dmac=02:00:00:00:00:03, ACK/IPv4, padded: $mapped, $longer
--enet-dmac=02:00:00:00:00:03, UDP/IPv6: $multicast" ]]
