#!/usr/bin/env bash
# What iproute2 prints as JSON is less than what it prints as text. `ip -j route` leaves out `lock`, which is the
# difference between an MTU that path MTU discovery may lower and one that it may not: both routes below have the same
# JSON. `tc -j qdisc` leaves out the peak rate of a token bucket. `ip -j mptcp limits` prints text all the same.
# ip(8): "-j, -json: Output results in JavaScript Object Notation (JSON)." Who puts routes or queueing disciplines
# back from JSON gets others, and a tool that compares them by JSON finds nothing changed.
#
# Seen with iproute2 6.1.0 and jq 1.6 of Debian 12, Linux 6.18.44; iproute2 6.15.0 of Debian 13 does the same.
#
# Output seen:
#   route, text: mtu lock 1400
#   route, json: [{"mtu":1400}]
#   route without lock, text: mtu 1400
#   route without lock, json: [{"mtu":1400}]
#   tbf, text: rate 8Mbit peakrate 16Mbit
#   tbf, json: {"rate":1000000,"peakrate":null}
#   mptcp limits, json: add_addr_accepted 0 subflows 2
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-json-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link add v0 type veth peer name v1
ip -n "$space" link set v1 up
ip -n "$space" link set v0 up
ip -n "$space" route add 10.1.0.0/16 dev v0 mtu lock 1400
ip -n "$space" route add 10.2.0.0/16 dev v0 mtu 1400
tc -n "$space" qdisc add dev v0 root tbf rate 8mbit burst 100k peakrate 16mbit mtu 2000 latency 50ms
route() { ip -n "$space" "${@:2}" route show "$1"; }
seen="route, text: $(route 10.1.0.0/16 | grep -o 'mtu.*' | xargs)
route, json: $(route 10.1.0.0/16 -j | jq -c '.[].metrics')
route without lock, text: $(route 10.2.0.0/16 | grep -o 'mtu.*' | xargs)
route without lock, json: $(route 10.2.0.0/16 -j | jq -c '.[].metrics')
tbf, text: $(tc -n "$space" qdisc show dev v0 | grep -oE '(peak)?rate [^ ]+' | xargs)
tbf, json: $(tc -n "$space" -j qdisc show dev v0 | jq -c '.[].options | {rate, peakrate}')
mptcp limits, json: $(ip -n "$space" -j mptcp limits show | xargs)"
printf '%s\n' "$seen"
[[ $seen == 'route, text: mtu lock 1400
route, json: [{"mtu":1400}]
route without lock, text: mtu 1400
route without lock, json: [{"mtu":1400}]
tbf, text: rate 8Mbit peakrate 16Mbit
tbf, json: {"rate":1000000,"peakrate":null}
mptcp limits, json: add_addr_accepted 0 subflows 2' ]]
