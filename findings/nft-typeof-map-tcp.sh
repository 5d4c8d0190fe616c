#!/usr/bin/env bash
# A map whose port is declared by `typeof ... tcp dport` makes every dnat rule that uses it match TCP alone, though the
# rule itself speaks of `th dport` and the key has the protocol in it: datagrams pass untranslated, without an error
# from anybody. nft adds `meta l4proto tcp` in front of the look-up, because of the map's declaration, and lists the
# rule with the map's `tcp dport` instead of what was written. nft(8), MAPS: after typeof stands an "expression to
# derive the data type from", no match. `th dport` in the declaration is right for what comes in the same transaction,
# but every later rule over that map is refused, with an error at no line. What always works is the map declared by
# `type`.
#
# Seen with nftables 1.0.6 of Debian 12, Linux 6.18.44; nftables 1.1.3 of Debian 13 does the same. Connections and
# datagrams go to 192.0.2.1, port 80, which each map translates to 127.0.0.1, port 8080.
#
# Output seen:
#   type: loaded; TCP arrives, UDP arrives
#   typeof ... tcp dport: loaded; TCP arrives, UDP does not
#   listed: dnat ip to ip daddr . meta l4proto . tcp dport map @to
#   typeof ... th dport: loaded; TCP arrives, UDP arrives
#   the same rule added to it: Error: conflicting protocols specified: ip vs. th
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-typeof-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
ip -n "$space" route add 192.0.2.0/24 dev lo src 127.0.0.1
inside() { ip netns exec "$space" "$@"; }
# Load a rule over a map of the declared key and data.
load() {
    inside nft flush ruleset
    inside nft -f - 2>"$folder/error" <<NFT
table ip finding {
    map to {
        $1
        elements = { 192.0.2.1 . tcp . 80 : 127.0.0.1 . 8080, 192.0.2.1 . udp . 80 : 127.0.0.1 . 8080 }
    }
    chain sent {
        type nat hook output priority -100
        dnat ip addr . port to ip daddr . meta l4proto . th dport map @to
    }
}
NFT
}
arrives() {
    inside python3 - <<'PYTHON'
import socket

found = []
for name, kind in (("TCP", socket.SOCK_STREAM), ("UDP", socket.SOCK_DGRAM)):
    with socket.socket(socket.AF_INET, kind) as server, socket.socket(socket.AF_INET, kind) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 8080))
        server.settimeout(0.5)
        client.settimeout(0.5)
        try:
            if kind == socket.SOCK_STREAM:
                server.listen()
            client.connect(("192.0.2.1", 80))
            if kind == socket.SOCK_DGRAM:
                client.send(b"x")
                server.recv(1)
            found.append(f"{name} arrives")
        except OSError:
            found.append(f"{name} does not")
print(", ".join(found))
PYTHON
}
load 'type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service'
seen="type: loaded; $(arrives)"
load 'typeof ip daddr . meta l4proto . th dport : ip daddr . tcp dport'
seen+=$'\n'"typeof ... tcp dport: loaded; $(arrives)"
seen+=$'\n'"listed: $(inside nft list chain ip finding sent | grep -o 'dnat .*')"
load 'typeof ip daddr . meta l4proto . th dport : ip daddr . th dport'
seen+=$'\n'"typeof ... th dport: loaded; $(arrives)"
inside nft add rule ip finding sent dnat ip addr . port to ip daddr . meta l4proto . th dport map @to 2>"$folder/error" || true
seen+=$'\n'"the same rule added to it: $(grep -o 'Error: .*' "$folder/error")"
printf '%s\n' "$seen"
[[ $seen == "type: loaded; TCP arrives, UDP arrives
typeof ... tcp dport: loaded; TCP arrives, UDP does not
listed: dnat ip to ip daddr . meta l4proto . tcp dport map @to
typeof ... th dport: loaded; TCP arrives, UDP arrives
the same rule added to it: Error: conflicting protocols specified: ip vs. th" ]]
