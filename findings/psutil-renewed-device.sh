#!/usr/bin/env bash
# psutil adds the counters of a network device that is gone to those of a new one with the same name. A veth that was
# made anew between two calls, as a container's or a tunnel's is at every restart, has received 5 packets by the kernel
# and 15 by psutil.net_io_counters(pernic=True), the 10 of the old one included, until the process ends; so does the
# sum over all devices. psutil takes every counter that fell for one that wrapped round ("nowrap", on by default), a
# thing that Linux's 64-bit counters do not do in years. Its docstring: "If *nowrap* is True it detects and adjust the
# numbers which overflow and wrap (restart from 0)". With nowrap=False, and in a new process, there are 5. If a call
# came while the device was away, it is right, too. A process that changes its network namespace (setns) mixes up the
# devices of both in the same way.
#
# Seen with psutil 7.2.2 (the newest release when this was written), python3 3.11.2 and iproute2 6.1.0 of Debian 12,
# Linux 6.18.44.
#
# Output seen:
#   first device: 10 packets, 10 with nowrap=False
#   second device: 15 packets, 5 with nowrap=False
#   in a new process: 5 packets
#   third device, asked for while the second was away: 5 packets, 5 with nowrap=False
#   in another namespace, 3 received over lo there, 10 over that of the first: 13 packets, 3 with nowrap=False
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-renewed-$$ other=finding-renewed-2-$$ folder=$(mktemp -d)
trap 'rm -rf -- "$folder"; ip netns del "$space" 2>/dev/null || true; ip netns del "$other" 2>/dev/null' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-compile psutil==7.2.2
for name in "$space" "$other"; do
    ip netns add "$name"
    ip netns exec "$name" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
    ip -n "$name" link set lo up
done
seen=$(ip netns exec "$space" "$folder/venv/bin/python" - "$other" <<'PYTHON'
import ctypes
import os
import socket
import subprocess
import sys

import psutil


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def send(device, count):
    """Frames of an experimental EtherType, out of a device."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((device, 0x88B5))
        for _ in range(count):
            wire.send(bytes(12) + b"\x88\xb5" + bytes(46))


def renew(count):
    run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for device in ("v1", "v0"):
        run("ip", "link", "set", device, "up")
    send("v0", count)


def received(device):
    found = [psutil.net_io_counters(pernic=True, nowrap=nowrap)[device].packets_recv for nowrap in (True, False)]
    return f"{found[0]} packets, {found[1]} with nowrap=False"


renew(10)
print("first device:", received("v1"))
run("ip", "link", "del", "v0")
renew(5)
print("second device:", received("v1"))
asked = "import psutil; print(psutil.net_io_counters(pernic=True)['v1'].packets_recv)"
print("in a new process:", run(sys.executable, "-c", asked).strip(), "packets")
run("ip", "link", "del", "v0")
psutil.net_io_counters(pernic=True)
renew(5)
print("third device, asked for while the second was away:", received("v1"))
send("lo", 10)
psutil.net_io_counters(pernic=True)
entered = os.open(f"/run/netns/{sys.argv[1]}", os.O_RDONLY)
if ctypes.CDLL(None, use_errno=True).setns(entered, 0):
    raise OSError(ctypes.get_errno(), "setns")
send("lo", 3)
print("in another namespace, 3 received over lo there, 10 over that of the first:", received("lo"))
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "first device: 10 packets, 10 with nowrap=False
second device: 15 packets, 5 with nowrap=False
in a new process: 5 packets
third device, asked for while the second was away: 5 packets, 5 with nowrap=False
in another namespace, 3 received over lo there, 10 over that of the first: 13 packets, 3 with nowrap=False" ]]
