#!/usr/bin/env bash
# nft of Debian 12 sets marks whose bytes are swapped where they are made of a number in the packet: `ct mark set udp
# length and 0xff` of a length of 12 is 0xc00, more than the mask lets through, and the SPI 0x01020304 becomes the mark
# 0x04030201. and, or, xor and the plain field are all like that; with one shift in the expression the field is in the
# machine's byte order. A match on the same expression (`udp length and 0xff 12`) is right, too, and the listing shows
# what was asked for. nft(8) has nothing about the order of bytes; ports and addresses are refused here by "datatype
# mismatch". Who looks at such marks (ip rule, tc, iptables' -m mark) sees other numbers than were written. nft 1.1.3
# loads the same rules right, so that marks change with the upgrade.
#
# Seen with nftables 1.0.6 and conntrack 1.4.7 of Debian 12, python3 3.11.2, Linux 6.18.44, on a little-endian machine;
# nftables 1.1.3 of Debian 13 is right. A datagram of 4 bytes (UDP's length is 12) and a packet of ESP are sent over the
# loopback; told is the mark of each one's connection.
#
# Output seen:
#   udp length and 0xff: 0xc00
#   udp length or 0x100: 0xc01
#   udp length << 4: 0xc0
#   esp spi: 0x4030201
#   esp spi and 0xff: 0x4000000
#   esp spi >> 8: 0x10203
#   matches udp length and 0xff 12: yes
#   matches esp spi and 0xff 4: yes
#   listed: ct mark set udp length & 255
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-order-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
inside() { ip netns exec "$space" "$@"; }
# A datagram and a packet of ESP, under one rule for their protocol.
sent_under() {
    inside nft flush ruleset
    inside conntrack -F 2>/dev/null
    inside nft -f - <<NFT
table ip finding {
    chain sent {
        type filter hook output priority 0
        ip protocol ${1%% *} $2
    }
}
NFT
    inside python3 - <<'PYTHON'
import socket
import struct

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    datagrams.sendto(b"data", ("127.0.0.1", 9))
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ESP) as raw:
    raw.sendto(struct.pack(">II", 0x01020304, 1) + bytes(16), ("127.0.0.1", 0))
PYTHON
}
marked() {
    local number mark
    sent_under "$1" "ct mark set $1"
    number=17
    [[ $1 == esp* ]] && number=50
    mark=$(inside conntrack -L 2>/dev/null | sed -nE "s/^\S+ +$number .* mark=([0-9]+).*/\1/p")
    printf '%s: 0x%x\n' "$1" "$mark"
}
matches() {
    sent_under "$1" "$1 counter"
    inside nft list ruleset | grep -q 'packets 1 ' && echo "matches $1: yes" || echo "matches $1: no"
}
seen="$(for expression in 'udp length and 0xff' 'udp length or 0x100' 'udp length << 4' \
    'esp spi' 'esp spi and 0xff' 'esp spi >> 8'; do marked "$expression"; done)
$(matches 'udp length and 0xff 12')
$(matches 'esp spi and 0xff 4')"
sent_under udp 'ct mark set udp length and 0xff'
seen+="
listed: $(inside nft list ruleset | grep -o 'ct mark set .*')"
printf '%s\n' "$seen"
[[ $seen == "udp length and 0xff: 0xc00
udp length or 0x100: 0xc01
udp length << 4: 0xc0
esp spi: 0x4030201
esp spi and 0xff: 0x4000000
esp spi >> 8: 0x10203
matches udp length and 0xff 12: yes
matches esp spi and 0xff 4: yes
listed: ct mark set udp length & 255" ]]
