#!/usr/bin/env bash
# `ip -j route` of Debian 12's iproute2 names the destination of a route twice if the route encapsulates: "dst" is the
# prefix at first, and the tunnel's far end later in the same object. JSON readers keep the last (jq and Python here),
# so the prefix is lost and the route seems to lead to the tunnel's end. RFC 8259, section 4: "The names within an
# object SHOULD be unique." Plain text has both.
#
# Seen with iproute2 6.1.0 and jq 1.6 of Debian 12, python3 3.11.2, Linux 6.18.44. iproute2 6.15.0 of Debian 13 puts
# what belongs to the encapsulation into an object of its own. That object is called "encap", which was a string before,
# so a script that reads the one does not read the other.
#
# Output seen:
#   text: 10.9.0.0/16 encap ip id 5 src 192.0.2.1 dst 192.0.2.2 ttl 9 tos 0 dev v0 scope link
#   json: "dst":"10.9.0.0/16" "dst":"192.0.2.2"
#   jq: 192.0.2.2
#   python: 192.0.2.2
#   a search for it by jq: nothing
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-encap-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link add v0 type veth peer name v1
ip -n "$space" link set v1 up
ip -n "$space" link set v0 up
ip -n "$space" route add 10.9.0.0/16 encap ip id 5 src 192.0.2.1 dst 192.0.2.2 ttl 9 dev v0
json=$(ip -n "$space" -j route show)
searched=$(jq -c '.[] | select(.dst == "10.9.0.0/16")' <<<"$json")
seen="text: $(ip -n "$space" route show | xargs)
json: $(grep -oE '"dst":"[^"]*"' <<<"$json" | xargs -d '\n')
jq: $(jq -r '.[].dst' <<<"$json")
python: $(python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["dst"])' <<<"$json")
a search for it by jq: ${searched:-nothing}"
printf '%s\n' "$seen"
[[ $seen == 'text: 10.9.0.0/16 encap ip id 5 src 192.0.2.1 dst 192.0.2.2 ttl 9 tos 0 dev v0 scope link
json: "dst":"10.9.0.0/16" "dst":"192.0.2.2"
jq: 192.0.2.2
python: 192.0.2.2
a search for it by jq: nothing' ]]
