#!/usr/bin/env bash
# pyroute2 sends packets of a segment route (SRv6) through the segments in the order opposite to the one written: with
# segs=["fd00::5", "fd00::6"] they go to fd00::6 first, and end at fd00::5. `ip -6 route add ... encap seg6 mode encap
# segs fd00::5,fd00::6` goes to fd00::5 first, and pyroute2's documentation has the same notation without a word on
# order. In the header the segments stand in reverse (RFC 8754, 2: "The Segment List is encoded starting from the last
# segment of the SR Policy"), which iproute2 hides and pyroute2 does not, nor when it reads routes. A list and a
# string are alike.
#
# Seen with pyroute2 0.9.7 (the newest release when this was written), python3 3.11.2 and iproute2 6.1.0 of Debian 12,
# Linux 6.18.44. A datagram takes each route, and its outer destination, the first segment, is read behind a veth.
#
# Output seen:
#   iproute2, fd00::5,fd00::6: first to fd00::5; listed [ fd00::5 fd00::6 ]; pyroute2 reads fd00::6 fd00::5
#   pyroute2, list: first to fd00::6; listed [ fd00::6 fd00::5 ]; pyroute2 reads fd00::5 fd00::6
#   pyroute2, string: first to fd00::6; listed [ fd00::6 fd00::5 ]; pyroute2 reads fd00::5 fd00::6
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-seg6-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space" 2>/dev/null' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check pyroute2==0.9.7
ip netns add "$space"
ip -n "$space" link add v0 type veth peer name v1
for device in lo v0 v1; do ip -n "$space" link set "$device" up; done
ip -n "$space" addr add fd00::1/64 dev v0 nodad
for segment in 5 6; do ip -n "$space" neigh add fd00::$segment lladdr 02:00:00:00:00:0$segment dev v0; done
seen=$(ip netns exec "$space" "$folder/venv/bin/python" - <<'PYTHON'
import re
import socket
import subprocess

from pyroute2 import IPRoute

DESTINATION = "2001:db8::/64"
IPV6 = 0x86DD


def command(*words):
    return subprocess.run(["ip", "-6", *words], check=True, capture_output=True, text=True).stdout


def first_segment():
    """Where a datagram that takes the route goes first."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(IPV6)) as capture:
        capture.bind(("v1", IPV6))
        capture.settimeout(5)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("2001:db8::1", 9))
        while True:
            frame = capture.recv(2000)
            if frame[20] == 43:  # a routing header follows
                return socket.inet_ntop(socket.AF_INET6, frame[38:54])


def told(name, ip):
    listed = re.search(r"\[.*?\]", command("route", "show", DESTINATION))[0]
    [route] = [route for route in ip.get_routes(family=socket.AF_INET6) if route.get_attr("RTA_DST") == "2001:db8::"]
    read = route.get_attr("RTA_ENCAP").get_attr("SEG6_IPTUNNEL_SRH")["segs"]
    print(f"{name}: first to {first_segment()}; listed {listed}; pyroute2 reads", *read)
    command("route", "del", DESTINATION)


with IPRoute() as ip:
    [index] = ip.link_lookup(ifname="v0")
    command("route", "add", DESTINATION, *"encap seg6 mode encap segs fd00::5,fd00::6 dev v0".split())
    told("iproute2, fd00::5,fd00::6", ip)
    for kind, segments in (("list", ["fd00::5", "fd00::6"]), ("string", "fd00::5,fd00::6")):
        encapsulation = {"type": "seg6", "mode": "encap", "segs": segments}
        ip.route("add", dst=DESTINATION, oif=index, encap=encapsulation)
        told(f"pyroute2, {kind}", ip)
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "iproute2, fd00::5,fd00::6: first to fd00::5; listed [ fd00::5 fd00::6 ]; pyroute2 reads fd00::6 fd00::5
pyroute2, list: first to fd00::6; listed [ fd00::6 fd00::5 ]; pyroute2 reads fd00::5 fd00::6
pyroute2, string: first to fd00::6; listed [ fd00::6 fd00::5 ]; pyroute2 reads fd00::5 fd00::6" ]]
