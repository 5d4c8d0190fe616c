#!/usr/bin/env bash
# conntrack -o xml says nothing of what tells connections of ICMP apart: type, code and id are missing, for ICMPv6
# too, in both directions. Two echo requests between the same hosts, or an echo and a timestamp request, have the same
# XML but for the kernel's <id>, a number of another kind than the id in the packets. Plain text has all three; XML
# has the ports of other protocols, and the keys of GRE. conntrack(8), -o: "Display output in a certain format".
#
# Seen with conntrack 1.4.7 of Debian 12, python3 3.11.2, Linux 6.18.44; 1.4.8 of Debian 13 does the same.
#
# Output seen:
#   text: icmp type=13 code=0 id=78
#   text: icmp type=8 code=0 id=77
#   text: icmpv6 type=128 code=0 id=5
#   text: udp sport=5 dport=53
#   xml: icmp
#   xml: icmp
#   xml: icmpv6
#   xml: udp sport=5 dport=53
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-xml-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
tracked() { ip netns exec "$space" conntrack "$@" 2>/dev/null; }
tracked -I -s 192.0.2.1 -d 192.0.2.2 -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 77 -t 600 >/dev/null
tracked -I -s 192.0.2.1 -d 192.0.2.2 -p icmp --icmp-type 13 --icmp-code 0 --icmp-id 78 -t 600 >/dev/null
tracked -I -s 2001:db8::1 -d 2001:db8::2 -p icmpv6 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 5 -t 600 >/dev/null
tracked -I -s 192.0.2.1 -d 192.0.2.2 -p udp --sport 5 --dport 53 -t 600 >/dev/null
# Protocol and what is beside the addresses, of the original direction.
text=$(tracked -L | sed -E 's/ \[UNREPLIED\].*//; s/^(\S+) .* dst=\S+ /text: \1 /' | sort)
xml=$(tracked -L -o xml | python3 -c '
import sys
import xml.etree.ElementTree as xml

for flow in xml.parse(sys.stdin).getroot():
    layer = flow.find("meta[@direction=\"original\"]/layer4")
    print("xml:", layer.get("protoname"), *(f"{one.tag}={one.text}" for one in layer))
' | sort)
seen="$text
$xml"
printf '%s\n' "$seen"
[[ $seen == "text: icmp type=13 code=0 id=78
text: icmp type=8 code=0 id=77
text: icmpv6 type=128 code=0 id=5
text: udp sport=5 dport=53
xml: icmp
xml: icmp
xml: icmpv6
xml: udp sport=5 dport=53" ]]
