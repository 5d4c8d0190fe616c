"""Taking a node over from kube-proxy: its rules go once ours answer."""

from ctl.daemon.log import Log
from dataplane.kernel.kube_proxy import TABLES
from dataplane.kernel.nft.transaction import Nft
from dataplane.kernel.rcu import wait_for_packets
from dataplane.planes.base import PlaneError
from dataplane.planes.registry import modes


def remove_kube_proxy(mode: str, log: Log) -> None:
    """Remove kube-proxy's iptables chains and nftables tables from this network namespace; for the plane's thread.

    Established connections keep their translation, which conntrack holds. Chains with kube-proxy's names that are a
    mode's own stay where that is the mode. Raises PlaneError.
    """
    wait_for_packets()  # one that passed our hooks before our rules were there must still meet kube-proxy's
    named_alike = [each for each in modes() if each.kube_proxy_chains]
    if all(each.name != mode for each in named_alike):
        for each in named_alike:
            each.make().cleanup()
        log.info("removed kube-proxy's iptables rules")
    nft = Nft()
    present = nft.tables()
    mine = [table for table in TABLES if table in present]
    if mine:
        nft.run("".join(f"delete table {family} {name}\n" for family, name in mine))
        log.info("removed kube-proxy's nftables tables", tables=len(mine))
    if any(table in nft.tables() for table in TABLES):
        raise PlaneError("kube-proxy's tables are there again: stop kube-proxy on this node first")
