"""Keeping the slow path off the source ports that the packet programs give out.

Both use this node's addresses. Two flows to one backend with one source port could not be told apart by its answers,
and the programs come first: they would take the slow path's answers for theirs. The kernel's masquerading may choose
any port, whatever the host's ephemeral range is, so it must be told. So must connection tracking where it changes the
port of a connection of the node's own, because a masqueraded one to the same backend has it.
"""

from collections.abc import Sequence

from dataplane.kernel.nft.transaction import Nft
from dataplane.planes.ebpf.flows.ports import NODE_PORTS, Ports, runs_beside, snat_runs
from dataplane.planes.ebpf.maps.mapset import MapSet

TABLE = "inet hotplane-ports"
_PRIORITY = 99
"""Just before srcnat (100): the first chain that chooses a source decides."""
_LAST_PRIORITY = 110
"""After srcnat: for flows whose source nobody chose."""


def other_ports(taken: Sequence[Ports]) -> Ports:
    """The largest run of unprivileged ports beside the programs' and the usual node ports.

    A masqueraded flow with a node port's number would be taken for one to that node port when its answers come in.
    """
    return max(runs_beside([*taken, NODE_PORTS]), key=lambda run: run[1] - run[0])


def _own(first: int, last: int) -> str:
    """Rules for what the node itself sends (it came in by no device): its port stays if it is free, else it becomes
    one of the same run."""
    return "".join(
        f"add rule {TABLE} own iif 0 meta l4proto {{ 6, 17 }} th sport {first}-{last} snat {ip} to {ip} "
        f"saddr:{first}-{last}\n"
        for ip in ("ip", "ip6")
    )


def ruleset(mark: int, taken: Sequence[Ports]) -> str:
    """The transaction that makes our table what it has to be. mark: what asks for masquerading; taken: the programs'
    ports."""
    first, last = other_ports(taken)
    own = "".join(_own(*run) for run in runs_beside([*taken, NODE_PORTS]))
    hook = "type nat hook postrouting priority"
    return f"""add table {TABLE}
flush table {TABLE}
add chain {TABLE} postrouting {{ {hook} {_PRIORITY}; }}
add chain {TABLE} own {{ {hook} {_LAST_PRIORITY}; }}
add rule {TABLE} postrouting {_marked(mark)} masquerade to :{first}-{last} fully-random
{own}"""


def _marked(mark: int) -> str:
    """Match of TCP and UDP that carries the mark, which is cleared."""
    cleared = f"meta mark set meta mark & {~mark & 0xFFFFFFFF:#x}"
    return f"meta mark & {mark:#x} == {mark:#x} meta l4proto {{ 6, 17 }} {cleared}"


def split_ports(maps: MapSet) -> None:
    """Tell the kernel of the current network namespace, for the ports and the mark in the map `node`.

    Raises PlaneError.
    """
    node = maps.node()
    mark, runs = node["masquerade_mark"], snat_runs(node)
    if isinstance(mark, int) and mark and runs:
        Nft().run(ruleset(mark, runs))


def join_ports() -> None:
    """Take the table away; fine when there is none. Raises PlaneError."""
    Nft().run(f"add table {TABLE}\ndelete table {TABLE}\n")
