#!/usr/bin/env bash
# nstat keeps one history for all network namespaces: it shows what was added since its last call, wherever that was.
# In a second namespace the two datagrams that were received there are 0, "(overflow)"; back in the first, where nothing
# came in the meantime, three appear that never were. nstat(8): "The default is to calculate increments since the
# previous use", of counters that each namespace has for itself; the history is a file in /tmp that is named after the
# user alone. `nstat -a` tells the truth, and so does a history for each namespace (NSTAT_HISTORY in the environment,
# which the manual does not know). JSON has the wrong numbers without the remark.
#
# Seen with iproute2 6.1.0 of Debian 12, python3 3.11.2, Linux 6.18.44; iproute2 6.15.0 of Debian 13 does the same. A
# folder of its own is mounted over /tmp for each call, so that nobody's history is touched.
#
# Output seen:
#   first, 5 received: 5
#   second, 2 received: 0 (overflow)
#   second, JSON: 0
#   first again: 3
#   absolute: first 5, second 2
#   a history for each: first 5, second 2, first again 0
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
first=finding-nstat-1-$$ second=finding-nstat-2-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$first"; ip netns del "$second" 2>/dev/null' EXIT
# As many datagrams as asked for, received over the loopback of a new namespace.
fill() {
    ip netns add "$1"
    ip -n "$1" link set lo up
    ip netns exec "$1" python3 - "$2" <<'PYTHON'
import socket
import sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talk:
    talk.bind(("127.0.0.1", 0))
    for _ in range(int(sys.argv[1])):
        talk.sendto(b"x", talk.getsockname())
        talk.recv(1)
PYTHON
}
# nstat in a namespace, with /tmp at a folder that is the same in all.
counted() {
    local space=$1
    shift
    # shellcheck disable=SC2016 # for the inner shell
    ip netns exec "$space" sh -c 'mount --bind "$0" /tmp && exec nstat "$@"' "$folder" "$@"
}
received() { counted "$@" UdpInDatagrams | awk '/^UdpInDatagrams/ { print $2 (/overflow/ ? " (overflow)" : "") }'; }
fill "$first" 5
fill "$second" 2
seen="first, 5 received: $(received "$first" -z)
second, 2 received: $(received "$second" -z)"
counted "$first" >/dev/null
seen+="
second, JSON: $(counted "$second" -z -j UdpInDatagrams | grep -oE '"UdpInDatagrams":[0-9]+' | cut -d: -f2)
first again: $(received "$first" -z)
absolute: first $(received "$first" -a), second $(received "$second" -a)"
rm -f -- "$folder"/.nstat*
each() { NSTAT_HISTORY=/tmp/history-$1 received "$2" -z; }
seen+="
a history for each: first $(each 1 "$first"), second $(each 2 "$second"), first again $(each 1 "$first")"
printf '%s\n' "$seen"
[[ $seen == "first, 5 received: 5
second, 2 received: 0 (overflow)
second, JSON: 0
first again: 3
absolute: first 5, second 2
a history for each: first 5, second 2, first again 0" ]]
