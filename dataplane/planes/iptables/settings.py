"""The node's settings as rule text of each family."""

from typing import NamedTuple

from dataplane.errors import UsageError
from dataplane.model.net import Family, family_of, is_loopback, network
from dataplane.policy.node import LocalDetector, NodeConfig

# Above this many endpoints kube-proxy calls the cluster large: it leaves out the comments of endpoint rules and
# deletes stale chains only now and then.
LARGE_CLUSTER_ENDPOINTS = 1000


class PodMatch(NamedTuple):
    """Options that match packets of local pods, or of all others, at the two places where iptables prints them.

    source: stands before the destination; interface: stands after it. Each ends in a space or is empty.
    """

    source: str
    interface: str


class FamilySettings(NamedTuple):
    """One family's view of the node.

    pod, off_pod: matches of pods and others; None if pods cannot be detected (then off-pod sources are not
    masqueraded). node_port_destinations: option texts, one KUBE-NODEPORTS jump each, in (destination, match) pairs.
    localhost_node_ports: node ports answer on 127.0.0.0/8 (IPv4 only).
    """

    family: Family
    host_bits: int
    recent_mask: str
    reject: str
    mark: str
    masquerade_all: bool
    pod: PodMatch | None
    off_pod: PodMatch | None
    node_port_destinations: tuple[tuple[str, str], ...]
    localhost_node_ports: bool
    tcp_be_liberal: bool


def _pod_match(detector: LocalDetector, family: Family) -> tuple[PodMatch | None, PodMatch | None]:
    if detector.interface:
        device = detector.interface + ("+" if detector.interface_is_prefix else "")
        return PodMatch("", f"-i {device} "), PodMatch("", f"! -i {device} ")
    cidrs = [cidr for cidr in detector.cidrs if family_of(cidr) is family]
    if not cidrs:
        return None, None
    if len(cidrs) > 1:
        raise UsageError(
            f"the iptables mode takes one pod CIDR for each family, not {', '.join(cidrs)}: one rule can exclude one "
            "source only; give their common CIDR as clusterCIDR, or use detectLocalMode with an interface"
        )
    cidr = network(cidrs[0])
    if cidr.prefixlen == 0:
        # iptables drops a match on everything; kube-proxy's rule would be refused for its negation.
        raise UsageError(f"the pod CIDR {cidrs[0]} holds every address, so no source is ever outside; narrow it")
    return PodMatch(f"-s {cidr} ", ""), PodMatch(f"! -s {cidr} ", "")


def node_port_destinations(node: NodeConfig, family: Family) -> tuple[tuple[str, str], ...]:
    """Return the addresses of node ports as option texts (destination, match): loopback only for IPv4 and with
    localhostNodePorts."""
    ports = node.nodeports
    loopback = ports.loopback and family is Family.IPV4
    if ports.any_local:
        block = "" if loopback else "! -d 127.0.0.0/8 " if family is Family.IPV4 else "! -d ::1/128 "
        return ((block, "-m addrtype --dst-type LOCAL "),)
    chosen = [a for a in ports.addresses if family_of(a) is family and (loopback or not is_loopback(a))]
    if loopback and not any(map(is_loopback, chosen)):
        chosen.append("127.0.0.1")
    return tuple((f"-d {address}/{family.bits} ", "") for address in dict.fromkeys(chosen))


def family_settings(node: NodeConfig, family: Family, *, tcp_be_liberal: bool) -> FamilySettings:
    """Return the settings of one family. Raises UsageError for pod CIDRs that rules cannot match."""
    ipv4 = family is Family.IPV4
    pod, off_pod = _pod_match(node.detector, family)
    return FamilySettings(
        family=family,
        host_bits=family.bits,
        recent_mask="255.255.255.255" if ipv4 else ":".join(["ffff"] * 8),
        reject="REJECT --reject-with " + ("icmp-port-unreachable" if ipv4 else "icmp6-port-unreachable"),
        mark=f"{node.masquerade_mark:#x}",
        masquerade_all=node.masquerade_all,
        pod=pod,
        off_pod=off_pod,
        node_port_destinations=node_port_destinations(node, family),
        localhost_node_ports=node.nodeports.loopback and ipv4,
        tcp_be_liberal=tcp_be_liberal,
    )
