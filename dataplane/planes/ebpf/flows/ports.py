"""Who may use which source ports of this node: the packet programs, the slow path, the node's own connections.

The node's own connections get ports of the ephemeral range (net.ipv4.ip_local_port_range), which connection tracking
shares with them for the slow path. The programs, whose flows connection tracking does not see, have all other
unprivileged ports but the usual node ports: with the kernel's defaults 1024 to 29999 and 61000 to 65535.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

Ports = tuple[int, int]
"""First and last of a run of ports."""

UNPRIVILEGED: Ports = (1024, 65535)
NODE_PORTS: Ports = (30000, 32767)
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LEAST = 1024
_FALLBACK: Ports = (10000, 29999)


def runs_beside(taken: Iterable[Ports]) -> Iterator[Ports]:
    """The runs of unprivileged ports that are in none of `taken`, in order."""
    first, end = UNPRIVILEGED
    for start, last in sorted([*taken, (end + 1, end + 1)]):
        if first < start:
            yield first, start - 1
        first = max(first, last + 1)


def snat_ports() -> tuple[Ports, ...]:
    """The programs' ports in the current network namespace, one or two runs, the longest ones.

    Where the ephemeral range leaves fewer than a thousand, both share 10000 to 29999: the programs ask for each port
    whether a socket of the node has it, but a later one may still take the same.
    """
    low, high = map(int, _EPHEMERAL.read_text().split())
    found = sorted(runs_beside([(low, high), NODE_PORTS]), key=_size, reverse=True)[:2]
    return tuple(sorted(found)) if sum(map(_size, found)) >= _LEAST else (_FALLBACK,)


def snat_fields(ports: Sequence[Ports]) -> tuple[int, int, int, int, int]:
    """The fields of struct node that name one or two runs of ports: snat_ports, snat_first, snat_first_count,
    snat_second, pad."""
    first, second = ports[0], ports[1] if len(ports) > 1 else (0, -1)
    return _size(first) + _size(second), first[0], _size(first), second[0], 0


def snat_runs(node: dict[str, int | bytes | list[int]]) -> tuple[Ports, ...]:
    """The runs of ports that the fields of a stored struct node name."""
    total, first, count, second = (
        value if isinstance(value := node[name], int) else 0
        for name in ("snat_ports", "snat_first", "snat_first_count", "snat_second")
    )
    runs = [(first, first + count - 1), (second, second + total - count - 1)]
    return tuple(run for run in runs if _size(run) > 0)


def _size(run: Ports) -> int:
    return run[1] - run[0] + 1
