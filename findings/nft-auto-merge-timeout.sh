#!/usr/bin/env bash
# In a set with timeouts and `auto-merge`, an element takes over the timeout of its neighbour: nft makes one interval
# of adjacent ones and keeps the timeout of a single one of them. 10.0.0.0/24 was to stay for an hour and is gone when
# 10.0.1.0/24, added for one second, is. A permanent element next to one with a timeout is no longer permanent, and
# its comment is lost. nft(8) says of auto-merge "automatic merge of adjacent/overlapping set elements (only for
# interval sets)", nothing about timeouts; there is no warning. Without auto-merge both stay as long as they should.
#
# Which timeout is kept depends on the order: the new element's where the other one is in the kernel, the lowest
# address's where both come in one command.
#
# Seen with nftables 1.0.6 of Debian 12, Linux 6.18.44; nftables 1.1.3 of Debian 13 does the same.
#
# Output seen:
#   auto-merge, listed: 10.0.0.0/23 timeout 1s
#   auto-merge, after two seconds: nothing
#   auto-merge, hour first in one command: 10.0.0.0/23 timeout 1h
#   auto-merge, permanent "kept" behind a second: 10.0.0.0/23 timeout 1s
#   apart, listed: 10.0.0.0/24 timeout 1h, 10.0.1.0/24 timeout 1s
#   apart, after two seconds: 10.0.0.0/24 timeout 1h
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-merge-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
inside() { ip netns exec "$space" nft "$@"; }
# The set's elements without what is left of their time; a listing has one element a line, or several.
elements() {
    local found
    found=$(inside list set ip finding s | tr -d '\n\t' | sed -En 's/.*elements = \{ ([^}]*) ?\}.*/\1/p')
    found=$(sed -E 's/ expires [0-9a-z]+//g; s/, */, /g; s/ +$//' <<<"$found")
    printf '%s' "${found:-nothing}"
}
# A new set, with what is asked for besides intervals and timeouts.
fresh() {
    inside -f - <<NFT
table ip finding
delete table ip finding
table ip finding {
    set s {
        type ipv4_addr
        flags interval, timeout
        $1
    }
}
NFT
}
seen=
for kind in auto-merge ''; do
    fresh "$kind"
    inside add element ip finding s '{ 10.0.0.0/24 timeout 1h }'
    inside add element ip finding s '{ 10.0.1.0/24 timeout 1s }'
    seen+="${kind:-apart}, listed: $(elements)"$'\n'
    sleep 2
    seen+="${kind:-apart}, after two seconds: $(elements)"$'\n'
    [[ $kind ]] || continue
    fresh "$kind"
    inside add element ip finding s '{ 10.0.0.0/24 timeout 1h, 10.0.1.0/24 timeout 1s }'
    seen+="$kind, hour first in one command: $(elements)"$'\n'
    fresh "$kind"
    inside add element ip finding s '{ 10.0.0.0/24 timeout 1s, 10.0.1.0/24 comment "kept" }'
    seen+="$kind, permanent \"kept\" behind a second: $(elements)"$'\n'
done
printf '%s' "$seen"
[[ $seen == 'auto-merge, listed: 10.0.0.0/23 timeout 1s
auto-merge, after two seconds: nothing
auto-merge, hour first in one command: 10.0.0.0/23 timeout 1h
auto-merge, permanent "kept" behind a second: 10.0.0.0/23 timeout 1s
apart, listed: 10.0.0.0/24 timeout 1h, 10.0.1.0/24 timeout 1s
apart, after two seconds: 10.0.0.0/24 timeout 1h
' ]]
