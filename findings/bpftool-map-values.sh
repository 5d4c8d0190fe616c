#!/usr/bin/env bash
# bpftool map dump of a map whose types are known (BTF) loses what a value has behind a float: it prints
# (unsupported-kind where the number should be and closes the value there, so that what -j prints is no JSON, all
# later members are missing, and the exit status is 0 without a message. A signed bit field loses its sign: -3 in four
# bits is "0xd", and a string, where other integers are numbers. bpftool(8), -j: "Generate JSON output." BTF has
# floats since Linux 5.13 (Documentation/bpf/btf.rst, BTF_KIND_FLOAT), and compilers write them for a struct that a
# program shares with user space; bpftool btf dump knows them.
#
# Seen with bpftool 7.1.0 of Debian 12, python3 3.11.2, Linux 6.18.44; bpftool 7.5.0 of Debian 13 does the same. BTF
# is made by hand: a struct of three int (or int, float, int), and one of a signed field of four bits. The maps go
# with the process that made them.
#
# Output seen:
#   v7.1.0
#   int first, middle, last: 0, {"first":1,"middle":2,"last":3}
#   float in the middle: 0, no JSON, {"first":1,"middle":(unsupported-kind}
#   int of 4 bits, -3: 0, {"first":"0xd"}
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
apt-get download -qq bpftool/bookworm 2>/dev/null || apt-get download -qq bpftool 2>/dev/null
dpkg-deb --extract ./bpftool_*.deb tools
cat >tried.py <<'PYTHON'
import ctypes
import json
import os
import re
import struct
import subprocess

BPFTOOL = "tools/usr/sbin/bpftool"
SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
MAP_CREATE, MAP_UPDATE, BTF_LOAD = 0, 2, 18
INT, STRUCT, FLOAT, SIGNED = 1, 4, 16, 1
libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(SYS_BPF, command, buffer, 128)
    if result < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return result


def btf(members):
    """A descriptor of BTF: 1 is int, 2 is float, 3 a struct of members (name, type, offset and bits, if fewer)."""
    names = b"\0int\0float\0value\0"
    listed = b""
    for name, kind, offset, bits in members:
        listed += struct.pack("=III", len(names), kind, bits << 24 | offset)
        names += name.encode() + b"\0"
    types = struct.pack("=IIII", 1, INT << 24, 4, SIGNED << 24 | 32)
    types += struct.pack("=III", 5, FLOAT << 24, 4)
    types += struct.pack("=III", 11, 1 << 31 | STRUCT << 24 | len(members), 4 * len(members)) + listed
    data = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names
    buffer = ctypes.create_string_buffer(data, len(data))
    return bpf(BTF_LOAD, struct.pack("=QQIII", ctypes.addressof(buffer), 0, len(data), 0, 0))


def told(name, members, value):
    """Exit status and JSON of a map with that value."""
    described = btf(members)
    made = bpf(MAP_CREATE, struct.pack("=5I28xIII", 2, 4, len(value), 1, 0, described, 1, 3))
    key, data = ctypes.create_string_buffer(4), ctypes.create_string_buffer(value, len(value))
    bpf(MAP_UPDATE, struct.pack("=I4xQQQ", made, ctypes.addressof(key), ctypes.addressof(data), 0))
    with open(f"/proc/self/fdinfo/{made}") as file:
        number = re.search(r"map_id:\s*(\d+)", file.read())[1]
    shown = subprocess.run([BPFTOOL, "-j", "map", "dump", "id", number], capture_output=True, text=True)
    formatted = re.search(r'"formatted":\{"key":0,"value":(\{[^}]*\})', shown.stdout)[1]
    try:
        json.loads(shown.stdout)
    except ValueError:
        formatted = f"no JSON, {formatted}"
    print(f"{name}: {shown.returncode}, {formatted}{shown.stderr}")


print(subprocess.run([BPFTOOL, "version"], capture_output=True, text=True).stdout.split()[1])
three = [("first", 1, 0, 0), ("middle", 1, 32, 0), ("last", 1, 64, 0)]
told("int first, middle, last", three, struct.pack("=iii", 1, 2, 3))
three[1] = ("middle", 2, 32, 0)
told("float in the middle", three, struct.pack("=ifi", 1, 2.5, 3))
told("int of 4 bits, -3", [("first", 1, 0, 4)], struct.pack("=I", -3 & 0xF))
PYTHON
seen=$(python3 tried.py)
printf '%s\n' "$seen"
[[ $seen == 'v7.1.0
int first, middle, last: 0, {"first":1,"middle":2,"last":3}
float in the middle: 0, no JSON, {"first":1,"middle":(unsupported-kind}
int of 4 bits, -3: 0, {"first":"0xd"}' ]]
