#!/usr/bin/env bash
# nft -o (--optimize) changes what rules about TCP flags match. `tcp flags syn` is true of each segment with that
# flag, whatever its others are; of two such rules nft -o makes one with an anonymous set, `tcp flags { syn, rst }`,
# which is true only of segments with exactly one of the flags: SYN+ACK, which the first rule had, is left to the
# rules behind. Different verdicts (merged into a vmap) and further matches in the rules (into a concatenation) make
# no difference. nft(8): "Optimize your ruleset." It prints what it merged, but no warning.
#
# Seen with nftables 1.0.6 of Debian 12, Linux 6.18.44; nftables 1.1.3 of Debian 13 proposes the same merge. A TCP
# connection over the loopback is opened, sends five bytes and is closed, by the client first.
#
# Output seen:
#   nft -f: counted SYN SYN+ACK, left ACK PSH+ACK FIN+ACK
#     listed: tcp flags syn goto counted
#     listed: tcp flags rst goto counted
#   nft -o -f: counted SYN, left SYN+ACK ACK PSH+ACK FIN+ACK
#     listed: tcp flags { syn, rst } goto counted
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-optimize-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
inside() { ip netns exec "$space" "$@"; }
# Each kind of segment is counted by an exact comparison, where the two rules lead to or behind them.
kinds() {
    local flags
    for flags in syn 'syn | ack' ack 'psh | ack' 'fin | ack'; do
        flags=${flags// | /+}
        echo "tcp flags == (${flags//+/ | }) counter comment \"${flags^^}\""
    done
}
cat >"$folder/rules" <<NFT
table inet finding {
    chain counted {
        $(kinds)
    }
    chain sent {
        type filter hook output priority 0
        tcp flags syn goto counted
        tcp flags rst goto counted
        $(kinds)
    }
}
NFT
cat >"$folder/connect.py" <<'PYTHON'
import socket

with socket.create_server(("127.0.0.1", 7777)) as server:
    client = socket.create_connection(server.getsockname())
    with server.accept()[0] as accepted:
        client.sendall(b"hello")
        accepted.recv(5)
        client.close()
        accepted.recv(1)
PYTHON
# Kinds of segments that were counted in a chain.
met() { inside nft list chain inet finding "$1" | sed -En 's/.*packets [1-9].*comment "(.*)"/\1/p' | xargs; }
seen=
for how in '' -o; do
    inside nft flush ruleset
    inside nft $how -f "$folder/rules" >/dev/null 2>&1
    inside python3 "$folder/connect.py"
    seen+="nft ${how:+$how }-f: counted $(met counted), left $(met sent)"$'\n'
    seen+=$(inside nft list chain inet finding sent | grep goto | sed 's/^[[:space:]]*/  listed: /')$'\n'
done
printf '%s' "$seen"
[[ $seen == 'nft -f: counted SYN SYN+ACK, left ACK PSH+ACK FIN+ACK
  listed: tcp flags syn goto counted
  listed: tcp flags rst goto counted
nft -o -f: counted SYN, left SYN+ACK ACK PSH+ACK FIN+ACK
  listed: tcp flags { syn, rst } goto counted
' ]]
