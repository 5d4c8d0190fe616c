#!/usr/bin/env bash
# conntrack -F -f ipv6 empties the table of both families: -f is accepted with -F, and has no effect, so that all
# connections over IPv4 lose their NAT and their state. -L, -D and -U keep to the family that -f names, and options
# that -F cannot honour, such as -p, are refused ("Illegal option"). conntrack(8) says of -F "Flush the whole given
# table" and of -f "Specify layer three (ipv4, ipv6) protocol". The kernel would do it: it looks at the family of a
# request to flush if the version in its header is not 0, which conntrack(8) sends. (-D -f ipv6 deletes what was
# meant, one by one.)
#
# Seen with conntrack 1.4.7 of Debian 12, python3 3.11.2, Linux 6.18.44; 1.4.8 of Debian 13 does the same. The last
# line is the same request, written by hand with version 1.
#
# Output seen:
#   before: 2 ipv4, 2 ipv6
#   conntrack -F -p udp: refused; left 2 ipv4, 2 ipv6
#   conntrack -D -f ipv6: done; left 2 ipv4, 0 ipv6
#   conntrack -F -f ipv6: done; left 0 ipv4, 0 ipv6
#   by hand, version 1: done; left 2 ipv4, 0 ipv6
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-flush-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
inside() { ip netns exec "$space" "$@"; }
fill() {
    local end
    inside conntrack -F 2>/dev/null
    for end in 1 2; do
        inside conntrack -I -s 192.0.2.$end -d 198.51.100.1 -p udp --sport 5 --dport 53 -t 600
        inside conntrack -I -s 2001:db8::$end -d 2001:db8::f -p udp --sport 5 --dport 53 -t 600
    done >/dev/null 2>&1
}
left() {
    local family found=()
    for family in ipv4 ipv6; do
        found+=("$(inside conntrack -L -f $family 2>/dev/null | wc -l) $family")
    done
    echo "${found[0]}, ${found[1]}"
}
by_hand() {
    python3 - <<'PYTHON'
import socket
import struct

NETLINK_NETFILTER, CT_DELETE, REQUEST, ACK = 12, 1 << 8 | 2, 1, 4
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
    body = struct.pack("=BBH", socket.AF_INET6, 1, 0)  # family, version
    netlink.send(struct.pack("=IHHII", 16 + len(body), CT_DELETE, REQUEST | ACK, 1, 0) + body)
    [error] = struct.unpack_from("=i", netlink.recv(4096), 16)
    assert error == 0, error
PYTHON
}
export -f by_hand
tried() {
    local name=$1 told='done'
    shift
    fill
    inside "$@" >/dev/null 2>&1 || told=refused
    echo "$name: $told; left $(left)"
}
fill
seen="before: $(left)
$(tried 'conntrack -F -p udp' conntrack -F -p udp)
$(tried 'conntrack -D -f ipv6' conntrack -D -f ipv6)
$(tried 'conntrack -F -f ipv6' conntrack -F -f ipv6)
$(tried 'by hand, version 1' bash -c by_hand)"
printf '%s\n' "$seen"
[[ $seen == "before: 2 ipv4, 2 ipv6
conntrack -F -p udp: refused; left 2 ipv4, 2 ipv6
conntrack -D -f ipv6: done; left 2 ipv4, 0 ipv6
conntrack -F -f ipv6: done; left 0 ipv4, 0 ipv6
by hand, version 1: done; left 2 ipv4, 0 ipv6" ]]
