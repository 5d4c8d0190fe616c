"""Rules of kube-proxy in a network namespace: its iptables chains, of both variants, and its nftables tables.

The chain that leads to all Services tells: kubelet has chains with names of the same kind, but not this one.
"""

import errno
from collections.abc import Iterator

from dataplane.kernel.netlink.netlink import Refused
from dataplane.kernel.netlink.nfnetlink import Message, Nfnetlink
from dataplane.kernel.nft import uapi as nf_tables
from dataplane.kernel.nft.transaction import Nft
from dataplane.kernel.nft.uapi import FAMILIES, TABLE, Chain, Operation
from dataplane.kernel.xtables import XtablesError, has_chain
from dataplane.model.net import Family

CHAIN = "KUBE-SERVICES"
TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
"""Of kube-proxy's nftables mode."""
_NAMES = {Family.IPV4: ("ip", "iptables"), Family.IPV6: ("ip6", "ip6tables")}


def kube_proxy_rules(*, chains: bool = True) -> list[str]:
    """Return where kube-proxy has rules in this thread's network namespace: `iptables-legacy`, `table ip kube-proxy`.
    chains: False if chains of its names are hotplane's own; those of a second variant count then. Raises
    XtablesError, PlaneError, Refused, OSError."""
    netlink = Nfnetlink()
    try:
        found = list(_iptables(netlink))
    finally:
        netlink.close()
    present = Nft().tables()
    tables = [f"table {family} {name}" for family, name in TABLES if (family, name) in present]
    if not chains and len({variant for _, variant in found}) < 2:
        found = []
    return [*(f"{tool}-{variant}" for tool, variant in found), *tables]


def _iptables(netlink: Nfnetlink) -> Iterator[tuple[str, str]]:
    for family, (ip, tool) in _NAMES.items():
        if _is_legacy(family):
            yield tool, "legacy"
        if _is_there(netlink, ip, "nat", CHAIN):
            yield tool, "nft"


def _is_legacy(family: Family) -> bool:
    """Whether the legacy table has it; no where this process may not look, as one that is not root's."""
    try:
        return has_chain(family, "nat", CHAIN)
    except XtablesError as error:
        if isinstance(error.__cause__, PermissionError):
            return False
        raise


def _is_there(netlink: Nfnetlink, ip: str, table: str, chain: str) -> bool:
    """Whether nftables has a chain. One question, whatever else there is."""
    asked = nf_tables.text(TABLE, table) + nf_tables.text(Chain.NAME, chain)
    try:
        netlink.request(Message(Operation.GET_CHAIN.kind, 0, FAMILIES[ip], asked))
    except Refused as error:
        if error.number in (errno.ENOENT, errno.EINVAL):  # EINVAL: a kernel without nf_tables
            return False
        raise
    return True
