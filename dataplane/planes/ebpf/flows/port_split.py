"""nftables rules that keep the slow path from using the source ports that the packet programs allocate.

Both use this node's addresses. If two flows to one backend had the same source port, their replies would have one
tuple, and the programs, which come first, would translate the slow path's replies. The kernel's masquerading may choose
any port, whatever the ephemeral range is, so rules limit it. They also limit connection tracking where it changes the
port of one of the node's own connections because a masqueraded one to the same backend has it.
"""

from collections.abc import Sequence

from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.kernel.nft.generation import Generation
from dataplane.kernel.nft.rules_kept import lost_tables
from dataplane.kernel.nft.transaction import Nft
from dataplane.planes.ebpf.flows.ports import NODE_PORTS, Ports, runs_beside, snat_runs
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.resource import Resource

TABLE = "inet hotplane-ports"
_PRIORITY = 99
"""Just before srcnat (100): the first chain that sets a source wins."""
_LAST_PRIORITY = 110
"""After srcnat: for flows without source NAT so far."""


def other_ports(taken: Sequence[Ports]) -> Ports:
    """Return the largest run of unprivileged ports outside the programs' and the usual node ports.

    A masqueraded flow with a node port's number would have replies that look like packets to that node port.
    """
    return max(runs_beside([*taken, NODE_PORTS]), key=lambda run: run[1] - run[0])


def _own(first: int, last: int) -> str:
    """Return rules for packets that the node itself sends (no input device): keep a free port, else choose one of
    the same run."""
    return "".join(
        f"add rule {TABLE} own iif 0 meta l4proto {{ 6, 17 }} th sport {first}-{last} snat {ip} to {ip} "
        f"saddr:{first}-{last}\n"
        for ip in ("ip", "ip6")
    )


def ruleset(mark: int, taken: Sequence[Ports]) -> str:
    """Return the transaction that creates or replaces the table. mark: of packets to masquerade; taken: the programs'
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
    """Return a match for TCP and UDP with the mark, and the statement that clears it."""
    cleared = f"meta mark set meta mark & {~mark & 0xFFFFFFFF:#x}"
    return f"meta mark & {mark:#x} == {mark:#x} meta l4proto {{ 6, 17 }} {cleared}"


class PortSplit(Resource):
    """The table in the network namespace in which the object was made, for the ports and the mark in the map `node`."""

    def __init__(self, maps: MapSet) -> None:
        node = maps.node()
        mark, runs = node["masquerade_mark"], snat_runs(node)
        self._rules = ruleset(mark, runs) if isinstance(mark, int) and mark and runs else ""
        self._netlink, self._generation, self._looked = Nfnetlink(), Generation(), -1

    def load(self) -> None:
        """Make the table, or make it anew. Raises PlaneError."""
        if self._rules:
            Nft().run(self._rules)

    def mend(self) -> list[str]:
        """Make the table anew if another process took away the table, a chain or rules; returns its name then. Chains
        are listed if somebody changed any rules since the last look. Raises PlaneError."""
        generation = self._generation.read() if self._rules else self._looked
        if generation == self._looked:
            return []
        lost = lost_tables(self._netlink, self._rules)
        if lost:
            self.load()
        self._looked = generation
        return [f"table {each}" for each in lost]

    def close(self) -> None:
        """Close the sockets; the table stays."""
        self._netlink.close()
        self._generation.close()


def join_ports() -> None:
    """Delete the table; no error if there is none. Raises PlaneError."""
    Nft().run(f"add table {TABLE}\ndelete table {TABLE}\n")
