"""What a proxy leaves on a node of the lab: rules, sets, devices, programs on devices, tracked connections.

All of it is in the node's network namespace and goes with it; but a cold start needs a node on which nothing is.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.conntrack import forget_all
from dataplane.lab.lab import Lab
from dataplane.lab.spec import Node

_LEGACY = (("iptables-legacy", "ip_tables_names"), ("ip6tables-legacy", "ip6_tables_names"))
_NET = Path("/proc/thread-self/net")
_TOLD = 6
_ENOENT, _ENODEV = 2, 19


def devices(namespace: str) -> frozenset[str]:
    """Names of a namespace's network devices."""
    with netns(namespace), IPRoute() as ipr:
        return frozenset(link.get_attr("IFLA_IFNAME") for link in ipr.get_links())


def remove(lab: Lab, node: Node, before: frozenset[str]) -> list[str]:
    """Remove everything of a proxy from a node; what there was, in words. before: its own devices."""
    found = [*_nftables(lab, node), *_legacy(lab, node), *_sets(lab, node)]
    with netns(node.netns), IPRoute() as ipr:
        found += _devices(ipr, before)
        forget_all()
    return found if len(found) <= _TOLD else [*found[:_TOLD], f"and {len(found) - _TOLD} more"]


def _nftables(lab: Lab, node: Node) -> Iterator[str]:
    """Tables of nftables, which those of iptables-nft are too."""
    for line in lab.run(node, ["nft", "list", "tables"]).stdout.splitlines():
        yield f"nftables {line}"
    lab.run(node, ["nft", "flush", "ruleset"])


def _legacy(lab: Lab, node: Node) -> Iterator[str]:
    """Rules and chains of iptables-legacy, in the tables that this namespace has."""
    for tool, names in _LEGACY:
        with netns(node.netns):
            tables = (_NET / names).read_text().split() if (_NET / names).exists() else []
        for table in tables if shutil.which(tool) else ():
            rules = lab.run(node, [tool, "-w", "-t", table, "-S"]).stdout.splitlines()
            if any(not line.startswith("-P ") for line in rules):
                yield f"{tool} rules in table {table}"
            for action in ("-F", "-X"):
                lab.run(node, [tool, "-w", "-t", table, action])
            for line in rules:
                if line.startswith("-P ") and not line.endswith(" ACCEPT"):
                    lab.run(node, [tool, "-w", "-t", table, "-P", line.split()[1], "ACCEPT"])


def _sets(lab: Lab, node: Node) -> Iterator[str]:
    """IPVS Services and ipsets, where their tools are; without the tools they stay until the node goes."""
    with netns(node.netns):
        virtual = (_NET / "ip_vs").read_text().splitlines()[3:] if (_NET / "ip_vs").exists() else []
    if virtual:
        known = shutil.which("ipvsadm") is not None
        yield "IPVS Services" + ("" if known else " (they stay until the end: apt-get install ipvsadm)")
        if known:
            lab.run(node, ["ipvsadm", "--clear"])
    if shutil.which("ipset"):
        if lab.run(node, ["ipset", "list", "-name"], check=False).stdout.strip():
            yield "ipsets"
        lab.run(node, ["ipset", "destroy"], check=False)


def _devices(ipr: IPRoute, before: frozenset[str]) -> Iterator[str]:
    """Devices that were not there, and queueing disciplines and XDP programs on those that were."""
    for link in list(ipr.get_links()):
        name, index = link.get_attr("IFLA_IFNAME"), link["index"]
        if name not in before:
            yield f"device {name}"
            _unless_gone(ipr.link, "del", index=index)
            continue
        xdp = link.get_attr("IFLA_XDP")
        if xdp is not None and xdp.get_attr("IFLA_XDP_ATTACHED"):
            yield f"XDP program on {name}"
            ipr.link("set", index=index, xdp_fd=-1)
        for qdisc in ipr.get_qdiscs(index=index):
            kind = qdisc.get_attr("TCA_KIND")
            if kind in ("clsact", "ingress"):
                yield f"{kind} on {name}"
                _unless_gone(ipr.tc, "del", kind, index)


def _unless_gone(remove: Callable[..., object], *args: object, **options: object) -> None:
    """Remove something that may have gone with something else: the other end of a veth, a mate of a qdisc."""
    try:
        remove(*args, **options)
    except NetlinkError as error:
        if error.code not in (_ENOENT, _ENODEV):
            raise
