#!/usr/bin/env bash
# jc --ip-route takes the first word of every line for a destination. A route that blackholes a prefix becomes
# {"ip": "blackhole"}, and the prefix is nowhere; an unreachable default route becomes a route to "unreachable". Of a
# route over two next hops it makes three: one without any next hop, and two to a destination "nexthop", whose weights
# are missing. Of an IPv4 route over an IPv6 router the gateway is "inet6". All exit with 0, and schema and remarks of
# the parser name no such limits ("ip": string, "via": string). `ip -j route` has all of it.
#
# Seen with jc 1.26.1 (the newest release when this was written), iproute2 6.1.0 and jq 1.6 of Debian 12, python3
# 3.11.2, Linux 6.18.44.
#
# Output seen:
#   ip: unreachable default metric 9
#   ip: 10.0.0.0/24 dev v0 proto kernel scope link src 10.0.0.1
#   ip: 10.1.0.0/16
#   ip: nexthop via 10.0.0.2 dev v0 weight 2
#   ip: nexthop via 10.0.0.3 dev v0 weight 1
#   ip: 10.2.0.0/16 via inet6 fd00::2 dev v0
#   ip: blackhole 10.3.0.0/16
#   jc: {"ip":"unreachable","metric":9}
#   jc: {"ip":"10.0.0.0/24","dev":"v0","proto":"kernel","scope":"link","src":"10.0.0.1"}
#   jc: {"ip":"10.1.0.0/16"}
#   jc: {"ip":"nexthop","via":"10.0.0.2","dev":"v0"}
#   jc: {"ip":"nexthop","via":"10.0.0.3","dev":"v0"}
#   jc: {"ip":"10.2.0.0/16","via":"inet6","dev":"v0"}
#   jc: {"ip":"blackhole"}
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-jc-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space" 2>/dev/null' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile jc==1.26.1
ip netns add "$space"
ip -n "$space" link add v0 type veth peer name v1
for device in v0 v1; do ip -n "$space" link set "$device" up; done
ip -n "$space" addr add 10.0.0.1/24 dev v0
ip -n "$space" addr add fd00::1/64 dev v0 nodad
ip -n "$space" route add 10.1.0.0/16 nexthop via 10.0.0.2 weight 2 nexthop via 10.0.0.3
ip -n "$space" route add 10.2.0.0/16 via inet6 fd00::2 dev v0
ip -n "$space" route add blackhole 10.3.0.0/16
ip -n "$space" route add unreachable default metric 9
seen="$(ip -n "$space" route | sed -E 's/^\s*/ip: /; s/\s*$//')
$(ip -n "$space" route | "$folder/venv/bin/jc" --ip-route | jq -c '.[]' | sed 's/^/jc: /')"
printf '%s\n' "$seen"
[[ $seen == 'ip: unreachable default metric 9
ip: 10.0.0.0/24 dev v0 proto kernel scope link src 10.0.0.1
ip: 10.1.0.0/16
ip: nexthop via 10.0.0.2 dev v0 weight 2
ip: nexthop via 10.0.0.3 dev v0 weight 1
ip: 10.2.0.0/16 via inet6 fd00::2 dev v0
ip: blackhole 10.3.0.0/16
jc: {"ip":"unreachable","metric":9}
jc: {"ip":"10.0.0.0/24","dev":"v0","proto":"kernel","scope":"link","src":"10.0.0.1"}
jc: {"ip":"10.1.0.0/16"}
jc: {"ip":"nexthop","via":"10.0.0.2","dev":"v0"}
jc: {"ip":"nexthop","via":"10.0.0.3","dev":"v0"}
jc: {"ip":"10.2.0.0/16","via":"inet6","dev":"v0"}
jc: {"ip":"blackhole"}' ]]
