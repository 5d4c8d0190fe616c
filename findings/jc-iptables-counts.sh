#!/usr/bin/env bash
# jc --iptables cuts the suffix off packet counters, so that 123M packets are 123 in its JSON. iptables -L -v shortens
# counters from 100,000 on (K, M, G, T); jc multiplies what stands in the column of bytes, and keeps the digits alone in
# the column of packets, of rules and of policies. A counter that grows falls from 99,999 to 100 on its way, and then
# seems to stand still. jc's documentation: "Supports `-vLnx`"; "pkts" is an integer without a remark, "bytes" an
# integer that is "converted based on suffix". With -x, iptables' exact numbers, both are right.
#
# Seen with jc 1.26.1 (the newest release when this was written), iptables 1.8.9 and jq 1.6 of Debian 12, python3
# 3.11.2, Linux 6.18.44. The counters are set by iptables itself (-c).
#
# Output seen:
#   -v: 99999 packets 120M bytes; 123K packets 148M bytes; 123M packets 2346G bytes
#   jc of -v: 99999 packets 120000000 bytes; 123 packets 148000000 bytes; 123 packets 2346000000000 bytes
#   jc of -v -x: 99999 packets 119998800 bytes; 123456 packets 148147200 bytes; 123456789 packets 2345678901234 bytes
#   policy, jc of -v: 123 packets 2346000000000 bytes
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-jc-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space" 2>/dev/null' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile jc==1.26.1
ip netns add "$space"
inside() { ip netns exec "$space" "$@"; }
inside iptables-restore -c <<'RULES'
*filter
:OUTPUT ACCEPT [123456789:2345678901234]
[99999:119998800] -A OUTPUT -d 192.0.2.1 -j DROP
[123456:148147200] -A OUTPUT -d 192.0.2.2 -j DROP
[123456789:2345678901234] -A OUTPUT -d 192.0.2.3 -j DROP
COMMIT
RULES
parsed() { inside iptables -n -L OUTPUT "$@" | "$folder/venv/bin/jc" --iptables; }
counts() { jq -r '[.[].rules[] | "\(.pkts) packets \(.bytes) bytes"] | join("; ")'; }
shortened() { awk 'NR > 2 { printf("%s%s packets %s bytes", (NR > 3) ? "; " : "", $1, $2) }'; }
seen="-v: $(inside iptables -n -v -L OUTPUT | shortened)
jc of -v: $(parsed -v | counts)
jc of -v -x: $(parsed -v -x | counts)
policy, jc of -v: $(parsed -v | jq -r '.[] | "\(.default_packets) packets \(.default_bytes) bytes"')"
printf '%s\n' "$seen"
[[ $seen == "-v: 99999 packets 120M bytes; 123K packets 148M bytes; 123M packets 2346G bytes
jc of -v: 99999 packets 120000000 bytes; 123 packets 148000000 bytes; 123 packets 2346000000000 bytes
jc of -v -x: 99999 packets 119998800 bytes; 123456 packets 148147200 bytes; 123456789 packets 2345678901234 bytes
policy, jc of -v: 123 packets 2346000000000 bytes" ]]
