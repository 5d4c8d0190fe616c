#!/usr/bin/env bash
# An entry of an ipset that is permanent expires once ipset-translate has made nftables commands of it. The set has a
# default timeout, the entry `timeout 0`; ipset(8): "Zero timeout value means the entry is added permanent to the
# set." The translation says `timeout 0s`, which nft takes for "none given", so the element gets the set's default.
# Neither tool warns, and ipset-translate(8) lists no such limit. nftables 1.0.6 has no way to say it; that of 1.1.3
# has `timeout never`.
#
# Seen with ipset 7.17 and nftables 1.0.6 of Debian 12, Linux 6.18.44; ipset 7.22 and nftables 1.1.3 of Debian 13 do
# the same. ipset-translate only reads text, so that no module of the kernel is needed for it; the default timeout is
# 2 s.
#
# Output seen:
#   add set inet global kept { type ipv4_addr; timeout 2s; }
#   add element inet global kept { 192.0.2.1 timeout 0s }
#   add element inet global kept { 192.0.2.2 timeout 60s }
#   listed: 192.0.2.1, 192.0.2.2 timeout 1m
#   after three seconds: 192.0.2.2 timeout 1m
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-ipset-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space" 2>/dev/null' EXIT
cd "$folder"
apt-get download -qq ipset=7.17-1 libipset13=7.17-1 2>/dev/null
for package in ./*.deb; do dpkg-deb --extract "$package" tools; done
libraries=(tools/usr/lib/*-linux-*)
ip netns add "$space"
translated=$(LD_LIBRARY_PATH=${libraries[0]} tools/usr/sbin/ipset-translate restore <<'IPSET' | grep -v '^add table'
create kept hash:ip family inet timeout 2
add kept 192.0.2.1 timeout 0
add kept 192.0.2.2 timeout 60
IPSET
)
{ echo 'add table inet global'; printf '%s\n' "$translated"; } | ip netns exec "$space" nft -f -
elements() {
    ip netns exec "$space" nft list set inet global kept | tr -d '\n\t' |
        sed -E 's/.*elements = \{ ([^}]*) ?\}.*/\1/; s/ expires [0-9a-z]+//g; s/, */, /g; s/ +$//'
}
seen="$translated
listed: $(elements)"
sleep 3
seen+=$'\n'"after three seconds: $(elements)"
printf '%s\n' "$seen"
[[ $seen == "add set inet global kept { type ipv4_addr; timeout 2s; }
add element inet global kept { 192.0.2.1 timeout 0s }
add element inet global kept { 192.0.2.2 timeout 60s }
listed: 192.0.2.1, 192.0.2.2 timeout 1m
after three seconds: 192.0.2.2 timeout 1m" ]]
