"""Capabilities that planes need.

Sources: capabilities(7); BPF_PROG_LOAD and map creation in the kernel's kernel/bpf/syscall.c (CAP_BPF, CAP_PERFMON for
the verifier's treatment of stack and pointers, CAP_NET_ADMIN for network program types); iptables-legacy opens a raw
socket (CAP_NET_RAW).
"""

from typing import NamedTuple


class Right(NamedTuple):
    """A capability. bit: its number. why: what it is for. or_admin: CAP_SYS_ADMIN includes it (kernels before
    5.8 have only that one)."""

    name: str
    bit: int
    why: str
    or_admin: bool = False


SYS_ADMIN = Right(
    "CAP_SYS_ADMIN", 21, "to mount the bpffs that keeps the maps, and to enter the network namespaces of pods"
)
SYS_PTRACE = Right("CAP_SYS_PTRACE", 19, "to find the network namespaces of pods through their processes")
NET_ADMIN = Right("CAP_NET_ADMIN", 12, "to change rules, conntrack and devices")
NET_RAW = Right("CAP_NET_RAW", 13, "because the legacy iptables tools work through a raw socket")
BPF = Right("CAP_BPF", 39, "to make maps and load programs", or_admin=True)
PERFMON = Right("CAP_PERFMON", 38, "because the verifier refuses the programs without it", or_admin=True)
