#!/usr/bin/env bash
# nft -c of a rule that asks for `ct packets`, `ct bytes` or `ct avgpkt` switches accounting of connections on in the
# whole network namespace (net.netfilter.nf_conntrack_acct) and leaves it on, though the rule was never there. nft(8):
# "-c, --check: Check commands validity without actually applying the changes." The kernel does it when the expression
# is initialised, which a transaction that is only checked and then aborted does as well. A check of `ct state` leaves
# the setting alone.
#
# From then on every new connection has an extension more (two counters for each direction, counted up by every packet),
# and `conntrack -L` prints it.
#
# Seen with nftables 1.0.6 and conntrack 1.4.7 of Debian 12, Linux 6.18.44; nftables 1.1.3 of Debian 13 does the same.
#
# Output seen:
#   at first: accounting 0
#   checked `ct state new`: accounting 0
#   checked `ct packets > 5`: accounting 1, 0 tables
#   a connection that begins now: packets=1
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-check-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
inside() { ip netns exec "$space" "$@"; }
accounting() { inside sysctl -n net.netfilter.nf_conntrack_acct; }
rules() { printf 'table ip finding {\n chain c {\n  type filter hook output priority 0\n  %s accept\n }\n}\n' "$1"; }
rules 'ct state new' | inside nft -c -f - # loads the kernel's modules
inside sysctl -qw net.netfilter.nf_conntrack_acct=0
seen="at first: accounting $(accounting)"
rules 'ct state new' | inside nft -c -f -
seen+=$'\n'"checked \`ct state new\`: accounting $(accounting)"
rules 'ct packets > 5' | inside nft -c -f -
seen+=$'\n'"checked \`ct packets > 5\`: accounting $(accounting), $(inside nft list tables | wc -l) tables"
rules 'ct state new' | inside nft -f -
inside python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))'
seen+=$'\n'"a connection that begins now: $(inside conntrack -L -p udp 2>/dev/null | grep -o 'packets=1 ' | tr -d ' ')"
printf '%s\n' "$seen"
[[ $seen == "at first: accounting 0
checked \`ct state new\`: accounting 0
checked \`ct packets > 5\`: accounting 1, 0 tables
a connection that begins now: packets=1" ]]
