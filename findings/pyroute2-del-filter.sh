#!/usr/bin/env bash
# pyroute2's IPRoute.tc("del-filter", index=..., parent=..., prio=10) deletes every filter of that side of the device, of
# whatever preference, without an error: `prio` and `protocol` only reach the request when a kind of filter is named, and
# a request to delete without them means all. With the kind named, the same call takes the one filter that is meant.
#
# Seen with pyroute2 0.9.7 (the newest release when this was written), python3 3.11.2 and iproute2 6.1.0 of Debian 12,
# Linux 6.18.44. `tc filter del ... prio 10` of iproute2 needs no kind and takes the one filter. Runs in a network
# namespace of its own; two filters of classic BPF (return all) are made by iproute2.
#
# Output seen:
#   filters 10 20
#   del-filter with kind bpf and prio 10: left 20
#   del-filter with prio 10: left none
#   iproute2, filter del prio 10: left 20
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-filter-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space" 2>/dev/null' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyroute2==0.9.7
ip netns add "$space"
ip -n "$space" link add v0 type veth peer name v1
seen=$(ip netns exec "$space" "$folder/venv/bin/python" - <<'PYTHON'
import subprocess

from pyroute2 import IPRoute

INGRESS = 0xFFFFFFF2


def tc(*words):
    subprocess.run(["tc", *words], check=True)


def filters(ip, index):
    """Preferences of the filters, as text."""
    found = sorted({message["info"] >> 16 for message in ip.get_filters(index=index, parent=INGRESS)})
    return " ".join(map(str, found)) or "none"


def two_filters():
    subprocess.run(["tc", "qdisc", "del", "dev", "v0", "clsact"], stderr=subprocess.DEVNULL)
    tc("qdisc", "add", "dev", "v0", "clsact")
    for preference in ("10", "20"):
        tc("filter", "add", "dev", "v0", "ingress", "prio", preference, "protocol", "all", "bpf", "bytecode",
           "1,6 0 0 4294967295,")


with IPRoute() as ip:
    [index] = ip.link_lookup(ifname="v0")
    two_filters()
    print("filters", filters(ip, index))
    ip.tc("del-filter", "bpf", index=index, parent=INGRESS, prio=10, protocol=3)
    print("del-filter with kind bpf and prio 10: left", filters(ip, index))
    two_filters()
    ip.tc("del-filter", index=index, parent=INGRESS, prio=10, protocol=3)
    print("del-filter with prio 10: left", filters(ip, index))
    two_filters()
    tc("filter", "del", "dev", "v0", "ingress", "prio", "10")
    print("iproute2, filter del prio 10: left", filters(ip, index))
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "filters 10 20
del-filter with kind bpf and prio 10: left 20
del-filter with prio 10: left none
iproute2, filter del prio 10: left 20" ]]
