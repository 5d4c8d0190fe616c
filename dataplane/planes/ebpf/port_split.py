"""Keeping the slow path's masquerading off the source ports that the packet programs give out.

Both use this node's addresses. Two flows to one backend with one source port could not be told apart by its answers,
and the programs come first: they would take the slow path's answers for theirs. The kernel's masquerading may choose
any port, whatever the host's ephemeral range is, so it must be told.
"""

from dataplane.kernel.nft import Nft
from dataplane.planes.ebpf.maps import MapSet

TABLE = "inet hotplane-ports"
_NODE_PORTS = (30000, 32767)
_PRIORITY = 99
"""Just before srcnat (100): the first chain that chooses a source decides."""


def other_ports(low: int, high: int) -> tuple[int, int]:
    """The largest run of unprivileged ports beside low-high and the usual node ports, both ends included.

    A masqueraded flow with a node port's number would be taken for one to that node port when its answers come in.
    """
    taken = sorted([(low, high), _NODE_PORTS])
    starts = [1024, *(last + 1 for _, last in taken)]
    ends = [*(first - 1 for first, _ in taken), 65535]
    return max(zip(starts, ends, strict=True), key=lambda run: run[1] - run[0])


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
