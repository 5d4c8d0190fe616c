#!/usr/bin/env bash
# iptables-translate of Debian 12 turns UDP rules about all ports but one into rules about that one: of `-p udp !
# --dport 53` it makes `udp dport 53`, since it looks at the `!` of the source port there. `! --sport 5 --dport 53` gets
# two, and `--sport 5 ! --dport 53` none. TCP, SCTP and DCCP are right, and so is UDP in 1.8.11 of Debian 13.
# Both versions make two single ports of a range in multiport's --ports, so that of 52:54 the 53 is gone, and forget a
# `!` in front of it; --dports is right. iptables-extensions(8): "[!] --ports port[,port|,port:port]... Match if either
# the source or destination ports are equal to one of the given ports". What it cannot translate it prints behind a #,
# which none of these is, and nft loads them all. (Of two `!=` side by side nft 1.0.6 makes one, hence the four ports in
# the second line: nft-merged-negations.sh.)
#
# Seen with iptables 1.8.9 and nftables 1.0.6 of Debian 12, python3 3.11.2, Linux 6.18.44. A datagram goes from port
# 4000 to each of the ports 52 to 55, under the rule of iptables and under its translation; told is which of them match.
#
# Output seen:
#   ! --dport 53: iptables 52 54 55; translated 53 by udp dport 53
#   ! --sport 5 --dport 53: iptables 53; translated 52 53 54 55 by udp sport != 5 udp dport != 53
#   --sport 4000 ! --dport 53: iptables 52 54 55; translated 53 by udp sport 4000 udp dport 53
#   -m multiport --dports 52:54: iptables 52 53 54; translated 52 53 54 by udp dport 52-54
#   -m multiport --ports 52:54: iptables 52 53 54; translated 52 54 by udp sport . udp dport { ... }
#   -m multiport ! --ports 53: iptables 52 54 55; translated 53 by udp sport . udp dport { ... }
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-ports-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
inside() { ip netns exec "$space" "$@"; }
inside nft -f - <<'NFT'
table ip translated {
    chain sent {
        type filter hook output priority 0
    }
}
NFT
# Which of the ports a rule's counter counts, for the rule of iptables and for what it was translated to.
counted() {
    inside python3 - <<'PYTHON'
import re
import socket
import subprocess


def packets(chain):
    command = ["nft", "list", "chain", "ip", *chain.split()]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(re.search(r"counter packets (\d+)", listed)[1])


names = {"iptables": "filter OUTPUT", "translated": "translated sent"}
found = {name: [] for name in names}
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.bind(("127.0.0.1", 4000))
    for port in range(52, 56):
        before = {name: packets(chain) for name, chain in names.items()}
        sender.sendto(b"x", ("127.0.0.1", port))
        for name, chain in names.items():
            if packets(chain) > before[name]:
                found[name].append(port)
print("; ".join(" ".join([name, *map(str, ports)]) for name, ports in found.items()))
PYTHON
}
told() {
    local made
    inside iptables -F OUTPUT
    inside nft flush chain ip translated sent
    # shellcheck disable=SC2086 # words of a rule
    inside iptables -A OUTPUT -p udp $1
    # shellcheck disable=SC2086
    made=$(inside iptables-translate -A OUTPUT -p udp $1)
    made=$(sed -E "s/^nft '//; s/'$//; s/ip filter OUTPUT/ip translated sent/" <<<"$made")
    inside nft "$made"
    made=$(sed -E 's/.* sent (ip protocol udp )?//; s/ counter//; s/\{.*\}/{ ... }/' <<<"$made")
    echo "$1: $(counted) by $made"
}
seen=$(
    for rule in '! --dport 53' '! --sport 5 --dport 53' '--sport 4000 ! --dport 53' \
        '-m multiport --dports 52:54' '-m multiport --ports 52:54' '-m multiport ! --ports 53'; do
        told "$rule"
    done
)
printf '%s\n' "$seen"
[[ $seen == "! --dport 53: iptables 52 54 55; translated 53 by udp dport 53
! --sport 5 --dport 53: iptables 53; translated 52 53 54 55 by udp sport != 5 udp dport != 53
--sport 4000 ! --dport 53: iptables 52 54 55; translated 53 by udp sport 4000 udp dport 53
-m multiport --dports 52:54: iptables 52 53 54; translated 52 53 54 by udp dport 52-54
-m multiport --ports 52:54: iptables 52 53 54; translated 52 54 by udp sport . udp dport { ... }
-m multiport ! --ports 53: iptables 52 54 55; translated 53 by udp sport . udp dport { ... }" ]]
