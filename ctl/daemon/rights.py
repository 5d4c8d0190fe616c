"""Capabilities that each mode needs: looked at before anything else, so that what lacks is named, not some later errno.

Sources: capabilities(7); BPF_PROG_LOAD and map creation in the kernel's kernel/bpf/syscall.c (CAP_BPF, CAP_PERFMON for
the verifier's treatment of stack and pointers, CAP_NET_ADMIN for network program types); iptables-legacy opens a raw
socket (CAP_NET_RAW).
"""

from pathlib import Path
from typing import NamedTuple

from dataplane.errors import HotplaneError


class Right(NamedTuple):
    """A capability. bit: its number. why: what it is for. or_admin: CAP_SYS_ADMIN stands for it (kernels before 5.8
    knew nothing finer)."""

    name: str
    bit: int
    why: str
    or_admin: bool = False


SYS_ADMIN = Right(
    "CAP_SYS_ADMIN", 21, "to mount the bpffs that keeps the maps, and to enter the network namespaces of pods"
)
SYS_PTRACE = Right("CAP_SYS_PTRACE", 19, "to find the network namespaces of pods through their processes")
_NET_ADMIN = Right("CAP_NET_ADMIN", 12, "to change rules, conntrack and devices")
_NET_RAW = Right("CAP_NET_RAW", 13, "because the legacy iptables tools work through a raw socket")
_BPF = Right("CAP_BPF", 39, "to make maps and load programs", or_admin=True)
_PERFMON = Right("CAP_PERFMON", 38, "because the verifier refuses the programs without it", or_admin=True)

RIGHTS: dict[str, tuple[Right, ...]] = {
    "nftables": (_NET_ADMIN,),
    "iptables": (_NET_ADMIN, _NET_RAW),
    "ebpf": (_NET_ADMIN, _BPF, _PERFMON),
}
"""What a mode cannot do without."""

USEFUL: dict[str, tuple[Right, ...]] = {"ebpf": (SYS_ADMIN, SYS_PTRACE)}
"""What a mode can do almost everything without, once the bpffs is mounted."""


def held_capabilities() -> int:
    """This thread's effective capabilities, a bit each."""
    status = Path("/proc/thread-self/status").read_text(encoding="ascii")
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))


def lacking(rights: tuple[Right, ...], held: int) -> list[Right]:
    """Those that are not held."""
    admin = held >> SYS_ADMIN.bit & 1
    return [right for right in rights if not (held >> right.bit & 1 or (right.or_admin and admin))]


def check_rights(mode: str, held: int, *, bpffs: bool) -> str:
    """Whether a mode can work with these capabilities; bpffs: it is mounted already. Returns what is missing but can
    be done without, as a sentence or "". Raises HotplaneError naming each one that is missing."""
    missing = lacking(RIGHTS[mode], held)
    useful = lacking(USEFUL.get(mode, ()), held)
    if SYS_ADMIN in useful and not bpffs:
        missing.append(SYS_ADMIN)
    if missing:
        wanted = "; ".join(f"{right.name}, {right.why}" for right in missing)
        raise HotplaneError(f"{mode} mode lacks {wanted}. Run as root, or give the process these capabilities")
    if not useful:
        return ""
    names = " and ".join(right.name for right in useful)
    return f"without {names}, UDP sockets of pods stay connected to endpoints that went"
