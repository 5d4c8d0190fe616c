#!/usr/bin/env bash
# iptables' `-m limit` lets more packets through than was asked for, up to twice as many. The rate becomes a time
# between two packets in whole ten-thousandths of a second, rounded down without a word: of 5,001 to 9,999 packets a
# second each is 10,000, 3,000 are 3,333. iptables-extensions(8): "Maximum average matching rate". Only the saved
# rules show what was made of it. iptables-nft, which could say it exactly, takes over the rounded value, and so does
# iptables-translate; nft itself keeps 6,000, `-m hashlimit` makes 6,024 of them.
#
# Seen with iptables 1.8.9 and nftables 1.0.6 of Debian 12, Linux 6.18.44; iptables-translate 1.8.11 of Debian 13 does
# the same.
#
# Output seen:
#   iptables-legacy: 50/sec 50/sec, 3000/sec 3333/sec, 6000/sec 10000/sec, 9000/sec 10000/sec
#   iptables-nft: 50/sec 50/sec, 3000/sec 3333/sec, 6000/sec 10000/sec, 9000/sec 10000/sec
#   iptables-translate, 6000/sec: limit rate 10000/second
#   hashlimit, 6000/sec: 6024/sec
#   nft, 6000/second: limit rate 6000/second
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-limit-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
inside() { ip netns exec "$space" "$@" 2>/dev/null; }
seen=
for tool in iptables-legacy iptables-nft; do
    told=()
    for rate in 50 3000 6000 9000; do
        inside "$tool" -F OUTPUT
        inside "$tool" -A OUTPUT -m limit --limit "$rate/sec"
        told+=("$rate/sec $(inside "$tool" -S OUTPUT | grep -oE '[0-9]+/sec')")
    done
    printf -v line '%s, ' "${told[@]}"
    seen+="$tool: ${line%, }"$'\n'
done
seen+="iptables-translate, 6000/sec: $(iptables-translate -A OUTPUT -m limit --limit 6000/sec | grep -oE 'limit rate [0-9]+/[a-z]+')"$'\n'
inside iptables-legacy -A OUTPUT -m hashlimit --hashlimit-upto 6000/sec --hashlimit-name finding
seen+="hashlimit, 6000/sec: $(inside iptables-legacy -S OUTPUT | grep -oE 'upto [0-9]+/sec' | cut -d' ' -f2)"$'\n'
inside nft 'add table ip finding; add chain ip finding c; add rule ip finding c limit rate 6000/second'
seen+="nft, 6000/second: $(inside nft list chain ip finding c | grep -oE 'limit rate [0-9]+/[a-z]+')"
printf '%s\n' "$seen"
[[ $seen == "iptables-legacy: 50/sec 50/sec, 3000/sec 3333/sec, 6000/sec 10000/sec, 9000/sec 10000/sec
iptables-nft: 50/sec 50/sec, 3000/sec 3333/sec, 6000/sec 10000/sec, 9000/sec 10000/sec
iptables-translate, 6000/sec: limit rate 10000/second
hashlimit, 6000/sec: 6024/sec
nft, 6000/second: limit rate 6000/second" ]]
