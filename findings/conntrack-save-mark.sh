#!/usr/bin/env bash
# conntrack -L -o save leaves the marks of connections out, so that conntrack --load-file brings all of them back with
# mark 0. Nothing is said at either end. conntrack(8) calls -o save "conntrack syntax format" and copies a whole zone by
# it (conntrack -L -w 11 -o save | sed ... | conntrack --load-file -); its syntax has -m for the mark, and what is saved
# is written in that syntax, zones, status, translations and reply tuples included. Policy routing by a restored mark
# (CONNMARK, `meta mark set ct mark`) then sends the connections another way.
#
# Seen with conntrack 1.4.7 of Debian 12 and Linux 6.18.44; 1.4.8 of Debian 13 does the same.
#
# Output seen:
#   before: udp src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 zone=11 mark=7
#   saved: -A -t T -u UNSET -w 11 -s 10.0.0.1 -d 10.0.0.2 -r 10.0.0.2 -q 10.0.0.1 -p udp --sport 1 --dport 2 --reply-port-src 2 --reply-port-dst 1
#   restored: udp src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 zone=11 mark=0
#   written by hand, with -m 7: udp src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 zone=11 mark=7
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-save-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space"' EXIT
ip netns add "$space"
tracked() { ip netns exec "$space" conntrack "$@" 2>"$folder/said" || { cat "$folder/said" >&2; return 1; }; }
# The original direction's addresses and ports, zone and mark of the one entry.
entry() { tracked -L | sed -E 's/^(\S+) .* (src=\S+ dst=\S+ sport=\S+ dport=\S+) \[.*(mark=\S+) (zone=\S+) .*/\1 \2 \4 \3/'; }
tracked -I -s 10.0.0.1 -d 10.0.0.2 -p udp --sport 1 --dport 2 -t 600 -w 11 -m 7 >/dev/null
seen="before: $(entry)"
tracked -L -o save >"$folder/saved"
seen+=$'\n'"saved: $(sed -E 's/-t [0-9]+/-t T/' "$folder/saved")"
tracked -F
tracked --load-file "$folder/saved" >/dev/null
seen+=$'\n'"restored: $(entry)"
tracked -F
sed 's/ -w 11/ -m 7&/' "$folder/saved" >"$folder/by-hand"
tracked --load-file "$folder/by-hand" >/dev/null
seen+=$'\n'"written by hand, with -m 7: $(entry)"
printf '%s\n' "$seen"
[[ $seen == "before: udp src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 zone=11 mark=7
saved: -A -t T -u UNSET -w 11 -s 10.0.0.1 -d 10.0.0.2 -r 10.0.0.2 -q 10.0.0.1 -p udp --sport 1 --dport 2 --reply-port-src 2 --reply-port-dst 1
restored: udp src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 zone=11 mark=0
written by hand, with -m 7: udp src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 zone=11 mark=7" ]]
