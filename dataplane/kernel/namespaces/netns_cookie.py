"""Network namespace cookies: numbers that eBPF programs compare with that of a socket's namespace."""

import errno
import os
import socket
import struct

from dataplane.errors import HotplaneError
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, MapType, ProgramType
from dataplane.kernel.namespaces.cgroup import ensure_root

_SO_COOKIE, _SO_NETNS_COOKIE = 57, 71  # asm-generic/socket.h, Linux 4.12 and 5.14
_MAP_UPDATE, _GET_SOCKET_COOKIE, _GET_NETNS_COOKIE = 2, 46, 122  # enum bpf_func_id
_ROOM = 1024
"""Number of sockets that the machine may create between the probe's own and its look-up."""


def netns_cookie() -> int:
    """Return the cookie of the current network namespace; never reused until reboot.

    Before Linux 5.14 only eBPF programs can read it: a program that runs for each new socket then reports it. Raises
    HotplaneError, BpfError.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
    return cookie_by_program()


def _code(target: int) -> bytes:
    """Return a program for each new socket: map[its cookie] = cookie of its namespace. Allows every socket."""
    return b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0xBF, 1 << 4 | 6, 0, 0),  # r6 = r1, the socket
            (0x85, 0, 0, _GET_SOCKET_COOKIE),
            (0x7B, 0 << 4 | 10, -8, 0),  # [r10 - 8] = r0, the key
            (0xBF, 6 << 4 | 1, 0, 0),
            (0x85, 0, 0, _GET_NETNS_COOKIE),
            (0x7B, 0 << 4 | 10, -16, 0),  # [r10 - 16] = r0, the value
            (0x18, 1 << 4 | 1, 0, target),  # r1 = map, of two instructions
            (0, 0, 0, 0),
            (0xBF, 10 << 4 | 2, 0, 0),
            (0x07, 2, 0, -8),  # r2 = r10 - 8
            (0xBF, 10 << 4 | 3, 0, 0),
            (0x07, 3, 0, -16),  # r3 = r10 - 16
            (0xB7, 4, 0, 0),  # r4 = BPF_ANY
            (0x85, 0, 0, _MAP_UPDATE),
            (0xB7, 0, 0, 1),  # r0 = 1, allow
            (0x95, 0, 0, 0),
        )
    )


def cookie_by_program() -> int:
    """Return the cookie as read by a program attached briefly to the root control group."""
    held = []
    try:
        held.append(target := bpf.map_create(MapType.LRU_HASH, 8, 8, _ROOM, name="netns_cookie"))
        attach = AttachType.CGROUP_INET_SOCK_CREATE
        held.append(program := bpf.program_load(_code(target), ProgramType.CGROUP_SOCK, attach, "netns_cookie"))
        held.append(group := os.open(ensure_root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        held.append(bpf.link_create(program, group, attach))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            found = bpf.map_lookup(target, sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), 8)
        if found is None:
            raise HotplaneError("the kernel does not tell the number of this network namespace; Linux 5.14 does")
        return int.from_bytes(found, "little")
    finally:
        for fd in held:
            os.close(fd)
