"""Keeping the slow path's masquerading off the source ports that the packet programs give out.

Both use this node's addresses. Two flows to one backend with one source port could not be told apart by its answers,
and the programs come first: they would take the slow path's answers for theirs. The kernel's masquerading may choose
any port, whatever the host's ephemeral range is, so it must be told.
"""

from dataplane.kernel.nft import Nft
from dataplane.planes.ebpf.maps import MapSet

TABLE = "inet hotplane-ports"
_PRIORITY = 99
"""Just before srcnat (100): the first chain that chooses a source decides."""


def other_ports(low: int, high: int) -> tuple[int, int]:
    """The larger run of unprivileged ports that is left beside low-high, both included."""
    below, above = (1024, low - 1), (high + 1, 65535)
    return max(below, above, key=lambda run: run[1] - run[0])


def ruleset(mark: int, low: int, high: int) -> str:
    """The transaction that makes our table what it has to be. mark: what asks for masquerading."""
    first, last = other_ports(low, high)
    return f"""add table {TABLE}
flush table {TABLE}
table {TABLE} {{
    chain postrouting {{
        type nat hook postrouting priority {_PRIORITY};
        meta mark & {mark:#x} == {mark:#x} meta l4proto {{ 6, 17 }} meta mark set meta mark & {~mark & 0xFFFFFFFF:#x} masquerade to :{first}-{last} fully-random
    }}
}}
"""  # noqa: E501


def split_ports(maps: MapSet) -> None:
    """Tell the kernel of the current network namespace, for the ports and the mark in the map `node`.

    Raises PlaneError.
    """
    node = maps.node()
    mark, low, high = node["masquerade_mark"], node["snat_port_low"], node["snat_port_high"]
    if isinstance(mark, int) and isinstance(low, int) and isinstance(high, int) and mark:
        Nft().run(ruleset(mark, low, high))


def join_ports() -> None:
    """Take the table away; fine when there is none. Raises PlaneError."""
    Nft().run(f"add table {TABLE}\ndelete table {TABLE}\n")
