"""Make the `NodeConfig` from the configuration and the node's properties.

Source of the rules: kube-proxy 1.36, published behaviour of nodePortAddresses, localhostNodePorts, detectLocalMode and
masqueradeAll in its iptables and nftables modes.
"""

import enum
from collections.abc import Iterable, Sequence

import msgspec

from dataplane.model.net import Family, canonical_address, contains, family_of, is_loopback, network
from dataplane.policy.algorithm import DEFAULT_TABLE_SIZE
from dataplane.policy.node import MOST_BACKENDS, LocalDetector, NodeConfig, NodePortAddresses

PRIMARY = "primary"
LOCALHOST = "localhost"
ALL = "all"
_EVERYTHING = {Family.IPV4: "0.0.0.0/0", Family.IPV6: "::/0"}
_LOOPBACK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1/128"}


class Promises(enum.Enum):
    """The kube-proxy mode whose defaults and limits a plane follows.

    IPTABLES, NFTABLES: those of kube-proxy's modes, with their sections of the configuration. CONNECT_TIME: those of
    NFTABLES, and node ports at ::1 where it balances at connect time.
    """

    IPTABLES = enum.auto()
    NFTABLES = enum.auto()
    CONNECT_TIME = enum.auto()


class LocalMode(enum.Enum):
    """detectLocalMode: how traffic from local pods is detected."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class Masquerading(msgspec.Struct, frozen=True):
    """The masquerade settings of one mode's section. bit: of the packet mark, 0 to 31 (14 = mark 0x4000)."""

    everything: bool = False
    bit: int = 14


class ProxySettings(msgspec.Struct, frozen=True):
    """Settings of the operator that policy uses, with kube-proxy's defaults.

    nodeport_addresses: CIDRs of either family, or the keywords `primary`, `localhost`, `all`; empty: default of the
    mode. localhost_node_ports: in iptables mode, node ports answer on 127.0.0.0/8 where nodeport_addresses allow it. In
    the
      others they do where nodeport_addresses name loopback addresses (KEP-6032), which "all" does not.
    nftables: also holds for CONNECT_TIME.
    external_ips: externalIPs make frontends.
    """

    detect_local: LocalMode = LocalMode.CLUSTER_CIDR
    cluster_cidrs: tuple[str, ...] = ()
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    nodeport_addresses: tuple[str, ...] = ()
    localhost_node_ports: bool = True
    iptables: Masquerading = Masquerading()
    nftables: Masquerading = Masquerading()
    external_ips: bool = True


def node_config(
    promises: Promises,
    settings: ProxySettings,
    *,
    node_name: str,
    zone: str = "",
    node_ips: Sequence[str],
    interface_addresses: Sequence[str] = (),
    node_pod_cidrs: Sequence[str] = (),
    at_connect: bool = True,
) -> NodeConfig:
    """Return the settings of this node for policy.

    node_ips: the node's addresses as Kubernetes knows them, or as given by hand; the first of each family is primary.
    interface_addresses: all addresses of the node's interfaces; loopback ones may be among them and do not matter.
    node_pod_cidrs: the Node object's pod ranges (detectLocalMode NodeCIDR).
    at_connect: connections are balanced at connect time, which alone can lead away from ::1.
    Raises ValueError, with a sentence, for an invalid address or CIDR.
    """
    addresses = _ordered(node_ips, interface_addresses)
    section = settings.iptables if promises is Promises.IPTABLES else settings.nftables
    return NodeConfig(
        name=node_name,
        zone=zone,
        addresses=addresses,
        detector=local_detector(settings, node_pod_cidrs),
        nodeports=node_ports(promises, settings, addresses, at_connect=at_connect),
        masquerade_all=section.everything,
        masquerade_mark=1 << section.bit,
        reject_unknown_ports=promises is not Promises.IPTABLES,
        external_ips=settings.external_ips,
        most_backends=0 if promises is Promises.IPTABLES else MOST_BACKENDS,
        maglev_table_size=DEFAULT_TABLE_SIZE if promises is Promises.CONNECT_TIME else 0,
    )


def _ordered(node_ips: Iterable[str], interface_addresses: Iterable[str]) -> tuple[str, ...]:
    """Return canonical, distinct addresses without loopback, the primary one of each family first."""
    canonical = dict.fromkeys(canonical_address(address) for address in (*node_ips, *interface_addresses))
    everyone = [address for address in canonical if not is_loopback(address)]
    primaries = {family_of(address): address for address in reversed(everyone)}.values()
    return (*(a for a in everyone if a in primaries), *(a for a in everyone if a not in primaries))


def local_detector(settings: ProxySettings, node_pod_cidrs: Sequence[str]) -> LocalDetector:
    """Return what tells this node's pods from others (detectLocalMode). node_pod_cidrs: of the Node object."""
    match settings.detect_local:
        case LocalMode.CLUSTER_CIDR:
            return LocalDetector(cidrs=_canonical_cidrs(settings.cluster_cidrs))
        case LocalMode.NODE_CIDR:
            return LocalDetector(cidrs=_canonical_cidrs(node_pod_cidrs))
        case LocalMode.BRIDGE_INTERFACE:
            return LocalDetector(interface=settings.bridge_interface)
        case LocalMode.INTERFACE_NAME_PREFIX:
            return LocalDetector(interface=settings.interface_name_prefix, interface_is_prefix=True)


def _canonical_cidrs(cidrs: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(network(cidr)) for cidr in cidrs))


def node_ports(
    promises: Promises, settings: ProxySettings, addresses: Sequence[str], *, at_connect: bool = True
) -> NodePortAddresses:
    """Return the addresses of node ports, resolved against the node's (primary of each family first, no loopback).

    A family without a CIDR of its own is treated as if 0.0.0.0/0 or ::/0 were given, as kube-proxy does; the word
    `primary` counts as a CIDR of each family, so that a family in which the node has no address gets none.
    Where one family is open and the other is not, the open one is the list of addresses known now: resolve again
    when the node's addresses change.
    """
    given = settings.nodeport_addresses or ((ALL,) if promises is Promises.IPTABLES else (PRIMARY,))
    cidrs = {family: _family_cidrs(given, family, addresses) for family in Family}
    is_open = {family: _EVERYTHING[family] in cidrs[family] for family in Family}
    if promises is Promises.IPTABLES:
        # kube-proxy goes by the loopback interface's own address, 127.0.0.1
        loopback = settings.localhost_node_ports and contains(cidrs[Family.IPV4], "127.0.0.1")
    else:
        loopback = _names_loopback(given, Family.IPV4)
    loopback_ipv6 = promises is Promises.CONNECT_TIME and at_connect and _names_loopback(given, Family.IPV6)
    if all(is_open.values()):
        return NodePortAddresses(any_local=True, loopback=loopback, loopback_ipv6=loopback_ipv6)
    matching = tuple(address for address in addresses if contains(cidrs[family_of(address)], address))
    return NodePortAddresses(addresses=matching, loopback=loopback, loopback_ipv6=loopback_ipv6)


def _names_loopback(given: Iterable[str], family: Family) -> bool:
    """True if an entry names only loopback addresses of a family, which 0.0.0.0/0 does not (KEP-6032)."""
    lowest = "127.0.0.1" if family is Family.IPV4 else "::1"
    cidrs = (entry for entry in given if entry not in (PRIMARY, ALL, LOCALHOST) and family_of(entry) is family)
    return LOCALHOST in given or any(
        contains((cidr,), lowest) and network(cidr).prefixlen >= network(_LOOPBACK[family]).prefixlen for cidr in cidrs
    )


def _family_cidrs(given: Iterable[str], family: Family, addresses: Sequence[str]) -> tuple[str, ...]:
    """Return the entries as canonical CIDRs of one family, with keywords replaced by their CIDRs."""
    found: list[str] = []
    closed = False
    for entry in given:
        if entry == PRIMARY:
            closed = True
            primary = next((address for address in addresses if family_of(address) is family), "")
            found += [f"{primary}/{family.bits}"] if primary else []
        elif entry in (ALL, LOCALHOST):
            found.append((_EVERYTHING if entry == ALL else _LOOPBACK)[family])
        elif family_of(entry) is family:
            found.append(str(network(entry)))
    return tuple(found) if found or closed else (_EVERYTHING[family],)
