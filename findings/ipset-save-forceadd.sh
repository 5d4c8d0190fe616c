#!/usr/bin/env bash
# ipset never tells that a set was created with `forceadd`: `ipset save`, `ipset list` and XML leave it out, so that a
# restored set refuses what the saved one took in ("Hash is full, cannot add more elements"). The kernel does have the
# option: a full set goes on taking addresses and gives up others for them, and what it answers to a request to list the
# set names it (IPSET_FLAG_WITH_FORCEADD among the flags). ipset(8): "All hash set types support the optional forceadd
# parameter when creating a set. When sets created with this option become full the next addition to the set may succeed
# and evict a random entry from the set"; save writes "a format that restore can read". All other options come back,
# and so does forceadd if it is added to the saved line.
#
# Seen with ipset 7.17 of Debian 12, pyroute2 0.9.7, python3 3.11.2, Linux 6.18.44; ipset 7.22 of Debian 13 does the
# same. ipset is unpacked to a temporary folder. By pyroute2 the flags are read and 200 addresses are added to a set of
# eight places; how many of them the full set takes depends on its random seed.
#
# Output seen:
#   created with forceadd counters: saved as create x hash:ip family inet hashsize 64 maxelem 8 counters bucketsize 12
#   kernel: forceadd, took more than 8
#   restored: no forceadd, took 8
#   restored with forceadd written behind: forceadd, took more than 8
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-forceadd-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space" 2>/dev/null' EXIT
mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
# Packages into the folder, by the lists of the system, or by new ones of its own.
download() {
    local own=(-q -o "Dir::Cache=$folder/cache")
    apt-get "${own[@]}" download "$@" && return
    own+=(-o "Dir::State::lists=$folder/lists")
    apt-get "${own[@]}" update && apt-get "${own[@]}" download "$@"
}
cd "$folder"
download ipset=7.17-1 libipset13=7.17-1 >said 2>&1 || { cat said >&2; exit 1; }
for package in *.deb; do dpkg-deb -x "$package" "$folder"; done
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile pyroute2==0.9.7
ip netns add "$space"
sets() {
    LD_LIBRARY_PATH=$(echo "$folder"/usr/lib/*-linux-gnu) ip netns exec "$space" "$folder/usr/sbin/ipset" "$@"
}
# Whether the kernel tells of forceadd, and how many of 200 addresses the set takes in.
kernel() {
    ip netns exec "$space" "$folder/venv/bin/python" - <<'PYTHON'
from pyroute2 import IPSet
from pyroute2.netlink.exceptions import NetlinkError

WITH_FORCEADD = 1 << 5  # linux/netfilter/ipset/ip_set.h, IPSET_FLAG_WITH_FORCEADD
FULL = 4352  # linux/netfilter/ipset/ip_set_hash.h, IPSET_ERR_HASH_FULL


def taken(sets, address):
    try:
        sets.add("x", address)
    except NetlinkError as error:
        if error.code != FULL:
            raise
        return False
    return True


with IPSet() as sets:
    (told,) = sets.list("x")
    flags = told.get_attr("IPSET_ATTR_DATA").get_attr("IPSET_ATTR_CADT_FLAGS") or 0
    took = sum(taken(sets, f"10.0.0.{number}") for number in range(1, 201))
    print("forceadd" if flags & WITH_FORCEADD else "no forceadd", end=", took ")
    print("more than 8" if took > 8 else took)
PYTHON
}
sets create x hash:ip hashsize 64 maxelem 8 forceadd counters
saved=$(sets save)
seen="created with forceadd counters: saved as ${saved% initval *}
kernel: $(kernel)"
for added in '' ' forceadd'; do
    sets destroy x
    sets restore <<<"$saved$added"
    seen+="
restored${added:+ with$added written behind}: $(kernel)"
done
printf '%s\n' "$seen"
[[ $seen == "created with forceadd counters: saved as create x hash:ip family inet hashsize 64 maxelem 8 counters bucketsize 12
kernel: forceadd, took more than 8
restored: no forceadd, took 8
restored with forceadd written behind: forceadd, took more than 8" ]]
