#!/usr/bin/env bash
# nftables' `meta hour` is an hour of local time, `meta day` a day of UTC, so a rule with both is wrong for part of each
# day wherever the clock is not UTC's. nft itself converts hours, by the TZ of whoever loads the rule (also by somebody
# else's when the rule is listed), but hands days to the kernel as they are, which compares both with the kernel's own
# zone, UTC on nearly all machines. In Tokyo "Monday 0:00 to 8:00" matches from 0:00 to 8:00 on Tuesday. nft(8) names no
# zone for either. (xt_time of iptables takes days and hours both as UTC: iptables-extensions(8), "All times are
# interpreted as UTC by default".)
#
# Seen with nftables 1.0.6 of Debian 12, Linux 6.18.44; nftables 1.1.3 of Debian 13 does the same. The script chooses of
# the zones 12 hours behind and 14 before UTC one in which the day is now another than in UTC, loads rules for now by
# local time, and sends a datagram.
#
# Output seen:
#   packets on this local day: 0
#   packets on the day of UTC: 1
#   packets in this local hour: 1
#   packets on this local day in this local hour: 0
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-day-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
while [[ $(date +%M:%S) > 59:50 ]]; do sleep 1; done # no hour ends in between
export TZ=Etc/GMT-14
[[ $(date +%A) != "$(TZ=UTC date +%A)" ]] || TZ=Etc/GMT+12
export LC_ALL=C
day=$(date +%A) hour=$(date +%H)
ip netns exec "$space" nft -f - <<NFT
table ip finding {
    counter local-day { }
    counter utc-day { }
    counter local-hour { }
    counter local-both { }
    chain sent {
        type filter hook output priority 0
        meta l4proto != udp accept
        meta day "$day" counter name "local-day"
        meta day "$(TZ=UTC date +%A)" counter name "utc-day"
        meta hour "$hour:00:00"-"$hour:59:59" counter name "local-hour"
        meta day "$day" meta hour "$hour:00:00"-"$hour:59:59" counter name "local-both"
    }
}
NFT
ip netns exec "$space" python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))'
packets() { ip netns exec "$space" nft list counter ip finding "$1" | sed -nE 's/.*packets ([0-9]+) .*/\1/p'; }
seen="packets on this local day: $(packets local-day)
packets on the day of UTC: $(packets utc-day)
packets in this local hour: $(packets local-hour)
packets on this local day in this local hour: $(packets local-both)"
printf '%s\n' "$seen"
[[ $seen == "packets on this local day: 0
packets on the day of UTC: 1
packets in this local hour: 1
packets on this local day in this local hour: 0" ]]
