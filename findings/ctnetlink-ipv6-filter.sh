#!/usr/bin/env bash
# A filter of ctnetlink (CTA_FILTER, for dumps since Linux 5.8) that names an IPv6 address means everything but that
# address. A dump of the connections from fd00::1 lists those of all other clients, and a delete removes exactly the
# connections that were to stay. The same request for IPv4 does what it says. In the kernel,
# ctnetlink_filter_match_tuple takes !ipv6_addr_cmp() for "differs", where zero stands for "equal"; IPv4 addresses are
# compared by !=.
#
# conntrack(8) of Debian 12 (1.4.7) and 13 (1.4.8) picks IPv6 addresses out of a whole dump by itself and does not show
# it; whoever writes the message does. Filters by protocol or port are right in both families.
#
# Seen with Linux 6.18.44, python3 3.11.2, nftables 1.0.6 and conntrack 1.4.7 of Debian 12. Netlink's messages are made
# by hand: CTA_TUPLE_ORIG has the source, CTA_FILTER says by CTA_FILTER_FLAG_CTA_IP_SRC that it counts. One datagram
# came from the first address, two from the second.
#
# Output seen:
#   from 127.0.0.1: 127.0.0.1
#   left after deleting what is from 127.0.0.1: 127.0.0.2 127.0.0.2
#   from fd00::1: fd00::2 fd00::2
#   left after deleting what is from fd00::1: fd00::1
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-ctfilter-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
for address in fd00::1 fd00::2; do ip -n "$space" addr add "$address/128" dev lo nodad; done
ip netns exec "$space" nft -f - <<'NFT'
table inet finding {
    chain tracked {
        type filter hook output priority 0
        ct state new accept
    }
}
NFT
seen=$(ip netns exec "$space" python3 - <<'PYTHON'
import re
import socket
import struct
import subprocess

NETLINK_NETFILTER, GET, DELETE = 12, 1 << 8 | 1, 1 << 8 | 2
REQUEST, ACK, DUMP = 1, 4, 0x300
NESTED, TUPLE_ORIG, TUPLE_IP, FILTER = 0x8000, 1, 1, 25
ADDRESS_KIND = {socket.AF_INET: 1, socket.AF_INET6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC


def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def ask(command, flags, family, source):
    """Send a request about connections from a source; returns the answers' attributes. Raises OSError."""
    address = attribute(ADDRESS_KIND[family], socket.inet_pton(family, source))
    body = struct.pack("=BBH", family, 0, 0)
    body += attribute(TUPLE_ORIG | NESTED, attribute(TUPLE_IP | NESTED, address))
    body += attribute(FILTER | NESTED, attribute(1, struct.pack("=I", 1)) + attribute(2, bytes(4)))
    answers = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), command, REQUEST | flags, 1, 0) + body)
        while True:
            data = netlink.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind in (2, 3):  # NLMSG_ERROR, NLMSG_DONE
                    [error] = struct.unpack_from("=i", data, 16)
                    if error:
                        raise OSError(-error, "ctnetlink")
                    return answers
                answers.append(data[20:length])
                data = data[length + 3 & ~3 :]


def source(family, answer):
    """Source of the original direction: the first attribute of the first of the first."""
    return socket.inet_ntop(family, answer[12 : 12 + (4 if family == socket.AF_INET else 16)])


for family, mine, other in ((socket.AF_INET, "127.0.0.1", "127.0.0.2"), (socket.AF_INET6, "fd00::1", "fd00::2")):
    for sender in (mine, other, other):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((sender, 0))
            sock.sendto(b"x", (mine, 9))
    print(f"from {mine}:", *sorted(source(family, answer) for answer in ask(GET, DUMP, family, mine)))
    ask(DELETE, ACK, family, mine)
    name = "ipv4" if family == socket.AF_INET else "ipv6"
    left = subprocess.run(["conntrack", "-L", "-p", "udp", "-f", name], capture_output=True, text=True).stdout
    print(f"left after deleting what is from {mine}:", *sorted(re.findall(r"^\S+ .*?src=(\S+)", left, re.M)))
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "from 127.0.0.1: 127.0.0.1
left after deleting what is from 127.0.0.1: 127.0.0.2 127.0.0.2
from fd00::1: fd00::2 fd00::2
left after deleting what is from fd00::1: fd00::1" ]]
