"""Taking a node over from kube-proxy: its rules go once ours answer."""

from ctl.daemon.log import Log
from ctl.loaded import make_plane
from dataplane.kernel.nft import Nft
from dataplane.kernel.rcu import wait_for_packets
from dataplane.planes.base import PlaneError

KUBE_PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
"""Tables of kube-proxy's nftables mode."""


def remove_kube_proxy(mode: str, log: Log) -> None:
    """Remove kube-proxy's iptables chains and nftables tables from this network namespace; for the plane's thread.

    Established connections keep their translation, which conntrack holds. In iptables mode the chains are ours by now
    (they have kube-proxy's names) and stay. Raises PlaneError.
    """
    wait_for_packets()  # one that passed our hooks before our rules were there must still meet kube-proxy's
    if mode != "iptables":
        make_plane("iptables").cleanup()
        log.info("removed kube-proxy's iptables rules")
    nft = Nft()
    present = nft.tables()
    mine = [table for table in KUBE_PROXY_TABLES if table in present]
    if mine:
        nft.run("".join(f"delete table {family} {name}\n" for family, name in mine))
        log.info("removed kube-proxy's nftables tables", tables=len(mine))
    if any(table in nft.tables() for table in KUBE_PROXY_TABLES):
        raise PlaneError("kube-proxy's tables are there again: stop kube-proxy on this node first")
