"""What a table has for `--flowtable`: a flowtable, and the chain that hands connections over to it.

A connection that is in the flowtable goes from the device where its packets come in to the one where they leave, past
routing and all hooks of netfilter (Documentation/networking/nf_flowtable.rst). Connection tracking knows it all the
while, and takes it back when it ends, idles, or is deleted.
"""

import os

from dataplane.kernel.release import is_since
from dataplane.planes.nftables.rules.syntax import LAST, Syntax
from dataplane.policy.node import NodeConfig

FLOWTABLE, CHAIN = "fast", "fast-path"
"""Names of the flowtable and of its chain."""

HOOK = f"type filter hook forward priority {LAST}; policy accept;"
"""Behind everybody else's filter chains, so that what one of them drops is not handed over."""

_UDP_SINCE = (6, 4)
"""Linux that lets ctnetlink delete an entry that is in a flowtable ("netfilter: ctnetlink: Support offloaded conntrack
entry deletion"). Before, UDP flows to an endpoint that has gone could not be taken back from there, so they stay
out."""


def deletes_offloaded(release: str) -> bool:
    """True if a kernel of that release (`uname -r`) deletes connections that are in a flowtable."""
    return is_since(_UDP_SINCE, unknown=False, release=release)


def flowtable_objects(syntax: Syntax, node: NodeConfig) -> list[str]:
    """Return commands that add the flowtable, without devices; fine over an existing one."""
    if not node.flowtable:
        return []
    return [f"add flowtable {syntax.target(FLOWTABLE)} {{ hook ingress priority 0; counter; }}"]


def flowtable_rules(node: NodeConfig, release: str | None = None) -> dict[str, list[str]]:
    """Return the chain that hands over connections that somebody translated and that were answered, once they have had
    more packets than the node's settings say; no chain without the option. release: of the kernel, by default this
    one's."""
    if not node.flowtable:
        return {}
    protocols = "{ tcp, udp }" if deletes_offloaded(release or os.uname().release) else "tcp"
    wanted = f"ct status dnat ct state established meta l4proto {protocols} ct packets > {node.flowtable}"
    return {CHAIN: [f"{wanted} flow add @{FLOWTABLE}"]}


def without_flowtable(syntax: Syntax) -> str:
    """Return commands that remove both from a table that has them."""
    chain = syntax.target(CHAIN)
    return f"flush chain {chain}\ndelete chain {chain}\ndelete flowtable {syntax.target(FLOWTABLE)}\n"
