"""Divides the source ports of this node between packet programs, slow path and the node's own connections.

The node's own connections and the slow path use the ephemeral range (net.ipv4.ip_local_port_range); connection tracking
keeps them apart. The programs, whose flows connection tracking does not see, use all other unprivileged ports except
the usual node ports: with the kernel's defaults 1024 to 29999 and 61000 to 65535.
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
    """Yield the runs of unprivileged ports that are in none of `taken`, in ascending order."""
    first, end = UNPRIVILEGED
    for start, last in sorted([*taken, (end + 1, end + 1)]):
        if first < start:
            yield first, start - 1
        first = max(first, last + 1)


def snat_ports() -> tuple[Ports, ...]:
    """Return the programs' ports in the current network namespace: the longest one or two runs.

    If the ephemeral range leaves fewer than 1024, both share 10000 to 29999: the programs check for each port that no
    local socket uses it, but a later socket may still bind it.
    """
    low, high = map(int, _EPHEMERAL.read_text().split())
    found = sorted(runs_beside([(low, high), NODE_PORTS]), key=_size, reverse=True)[:2]
    return tuple(sorted(found)) if sum(map(_size, found)) >= _LEAST else (_FALLBACK,)


def snat_fields(ports: Sequence[Ports]) -> tuple[int, int, int, int, int]:
    """Return the fields of struct node for one or two runs of ports: snat_ports, snat_first, snat_first_count,
    snat_second, pad."""
    first, second = ports[0], ports[1] if len(ports) > 1 else (0, -1)
    return _size(first) + _size(second), first[0], _size(first), second[0], 0


def snat_runs(node: dict[str, int | bytes | list[int]]) -> tuple[Ports, ...]:
    """Return the runs of ports in the fields of a stored struct node."""
    total, first, count, second = (
        value if isinstance(value := node[name], int) else 0
        for name in ("snat_ports", "snat_first", "snat_first_count", "snat_second")
    )
    runs = [(first, first + count - 1), (second, second + total - count - 1)]
    return tuple(run for run in runs if _size(run) > 0)


def _size(run: Ports) -> int:
    return run[1] - run[0] + 1
