#!/usr/bin/env bash
# iptables-translate and iptables-restore-translate turn `-j CONNMARK --set-mark VALUE/MASK` into a rule that sets
# nothing. iptables-extensions(8): "Set the connection mark. If a mask is specified then only those bits set in the mask
# are modified." The translation is `ct mark set ct mark xor 0x4 and 0xffffff00`, in which nft binds `and` closer than
# `xor`: the value is masked away before it is used, and nft lists the rule as `ct mark set ct mark`. (Read from left to
# right it would be wrong, too: the value's bits would be the ones that are zeroed.) For MARK the same tool has the
# right order and says `mark and 0xffffff00 xor 0x4`. Neither the tool nor nft warns.
#
# Seen with iptables 1.8.9, nftables 1.0.6 and conntrack 1.4.7 of Debian 12, Linux 6.18.44; iptables-translate 1.8.11 of
# Debian 13 writes the same rule. A datagram to port 9 is sent under the rules of iptables-nft, then under what they
# were translated to; port 10 is marked as a whole, without a mask, which both do alike.
#
# Output seen:
#   iptables: port 9 mark=4, port 10 mark=4
#   add rule ip mangle OUTPUT udp dport 9 counter ct mark set ct mark xor 0x4 and 0xffffff00
#   listed: ct mark set ct mark
#   nft: port 9 mark=0, port 10 mark=4
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-connmark-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
inside() { ip netns exec "$space" "$@"; }
marks() {
    local port found=()
    for port in 9 10; do
        inside python3 -c "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', $port))"
        found+=("port $port $(inside conntrack -L -p udp --dport "$port" 2>/dev/null | grep -o 'mark=[0-9]*')")
    done
    inside conntrack -F 2>/dev/null
    printf '%s: %s, %s' "$1" "${found[@]}"
}
inside iptables-nft -t mangle -A OUTPUT -p udp --dport 9 -j CONNMARK --set-mark 0x4/0xff
inside iptables-nft -t mangle -A OUTPUT -p udp --dport 10 -j CONNMARK --set-mark 0x4
seen=$(marks iptables)
inside iptables-nft-save -t mangle >"$folder/rules"
iptables-restore-translate -f "$folder/rules" >"$folder/rules.nft"
seen+=$'\n'$(grep -F 'dport 9 ' "$folder/rules.nft")
inside nft flush ruleset
inside nft -f "$folder/rules.nft"
seen+=$'\n'"listed: $(inside nft -s list chain ip mangle OUTPUT | grep -F 'dport 9 ' | grep -o 'ct mark.*')"
seen+=$'\n'$(marks nft)
printf '%s\n' "$seen"
[[ $seen == "iptables: port 9 mark=4, port 10 mark=4
add rule ip mangle OUTPUT udp dport 9 counter ct mark set ct mark xor 0x4 and 0xffffff00
listed: ct mark set ct mark
nft: port 9 mark=0, port 10 mark=4" ]]
