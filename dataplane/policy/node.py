"""This node's settings for policy: its identity, which sources are pods, and what the mode guarantees."""

import enum
from functools import cache

import msgspec

from dataplane.model.forwarding import DEFAULT_PORT, DEFAULT_VNI, MORE, Dispatch, TunnelOffer
from dataplane.model.net import Family, contains, family_of, is_loopback
from dataplane.policy.algorithm import DEFAULT_SEED, DEFAULT_TABLE_SIZE, Algorithm
from dataplane.policy.forwarding import LbMode, TunnelPeer

MOST_BACKENDS = 0x8000
"""Limit of backends in a set in the nftables and the ebpf mode, whose maps number the Local set from there on."""


class Source(enum.Enum):
    """Origin of a packet, as seen by this node. POD is tested first: a node address inside the
    pod range (such as a bridge's) counts as a pod, as in kube-proxy's chains."""

    POD = "pod"
    NODE = "node"
    OUTSIDE = "outside"


@cache
def _families(cidrs: tuple[str, ...]) -> frozenset[Family]:
    """Return the families of CIDRs. Cached, because it is called for each frontend with the same tuple."""
    return frozenset(map(family_of, cidrs))


class LocalDetector(msgspec.Struct, frozen=True):
    """Detection of traffic from local pods (kube-proxy's detectLocalMode).

    cidrs: source CIDRs of either family (ClusterCIDR: the cluster's; NodeCIDR: this node's podCIDRs).
    interface: incoming device, exact name (BridgeInterface) or prefix (InterfaceNamePrefix).
    With neither set, nothing is ever recognised as a pod and off-pod masquerade does not happen.
    """

    cidrs: tuple[str, ...] = ()
    interface: str = ""
    interface_is_prefix: bool = False

    def implemented(self, family: Family) -> bool:
        """True if pods of this family can be recognised at all."""
        return bool(self.interface) or family in _families(self.cidrs)

    def matches(self, source: str, interface: str = "") -> bool:
        """True if a packet with this source address that came in by `interface` ("" = sent by this node) is a pod's."""
        if self.interface:
            if self.interface_is_prefix:
                return interface.startswith(self.interface)
            return interface == self.interface
        return contains(self.cidrs, source)


class NodePortAddresses(msgspec.Struct, frozen=True):
    """Addresses of the node on which node ports answer (kube-proxy's nodePortAddresses).

    any_local: every local address (then `addresses` is empty); loopback only where `loopback` says so.
    addresses: otherwise exactly these, already resolved against the node's interfaces, both families.
    loopback: node ports answer on 127.0.0.0/8 too, to processes of the node. loopback_ipv6: on ::1.
    """

    any_local: bool = False
    addresses: tuple[str, ...] = ()
    loopback: bool = False
    loopback_ipv6: bool = False


class NodeConfig(msgspec.Struct, frozen=True):
    """Properties of this node and the mode that affect the routes of frontends.

    addresses: this node's own addresses, the primary one of each family before the others.
    masquerade_mark: the mark bit that asks for masquerading (kube-proxy's masqueradeBit 14 = 0x4000).
    reject_unknown_ports: a known clusterIP on a port it does not have is rejected, and addresses of the service
      CIDRs that no Service has are dropped (nftables and ebpf modes; not iptables mode).
    external_ips: Services' externalIPs make frontends (kube-proxy's feature gate AllowServiceExternalIPs, KEP-5707).
    answer_ping: ICMP echo requests to addresses of Services that lead to an endpoint are answered (nftables, ebpf).
    flowtable: packets after which a connection to a Service goes by the kernel's flowtable, past every other rule; 0:
      none does (nftables mode, and ebpf mode for what its programs pass on).
    host_ports: hostPorts of this node's Pods make frontends (what the CNI plugin portmap does otherwise).
    most_backends: the most that a set of backends may have; of more, this node uses so many. 0 = no limit.
    lb_algorithm: how clients from outside get their backend, unless a Service says otherwise.
    maglev_table_size: slots of a Maglev table (policy.algorithm.TABLE_SIZES); 0 = the mode has none, and all is random.
    hash_seed: text that all nodes of a cluster have in common; the tables and the hash of connections depend on it.
    lb_mode: how external traffic gets to endpoints of other nodes, unless a Service says otherwise.
    lb_dispatch: how packets to other nodes are wrapped, where those open it; VXLAN otherwise.
    lb_port, lb_vni: UDP port and network identifier of forwarded packets.
    lb_peers: nodes that were named by hand as speaking it, whatever their Node objects say.
    snat_only: this mode cannot forward packets with the client's address kept, whatever is asked for.
    """

    name: str = ""
    zone: str = ""
    addresses: tuple[str, ...] = ()
    detector: LocalDetector = LocalDetector()
    nodeports: NodePortAddresses = NodePortAddresses()
    masquerade_all: bool = False
    masquerade_mark: int = 0x4000
    reject_unknown_ports: bool = True
    external_ips: bool = True
    host_ports: bool = False
    answer_ping: bool = False
    flowtable: int = 0
    most_backends: int = MOST_BACKENDS
    lb_algorithm: Algorithm = Algorithm.RANDOM
    maglev_table_size: int = DEFAULT_TABLE_SIZE
    hash_seed: str = DEFAULT_SEED
    lb_mode: LbMode = LbMode.SNAT
    lb_port: int = DEFAULT_PORT
    lb_vni: int = DEFAULT_VNI
    lb_peers: tuple[TunnelPeer, ...] = ()
    snat_only: bool = False
    lb_dispatch: Dispatch = Dispatch.VXLAN

    @property
    def offer(self) -> TunnelOffer:
        """What this node announces: it opens every format, whatever it sends."""
        return TunnelOffer(self.lb_port, self.lb_vni, MORE)

    @property
    def guards_first(self) -> bool:
        """True if source ranges apply before the check for endpoints (nftables and ebpf modes; iptables mode
        rejects all sources if there are no endpoints)."""
        return self.reject_unknown_ports

    def primary(self, family: Family) -> str:
        """Return this node's primary address of a family, or "" if it has none."""
        return next((a for a in self.addresses if family_of(a) is family), "")

    def is_local(self, address: str) -> bool:
        """True if the address is this node's own (loopback included)."""
        return address in self.addresses or is_loopback(address)

    def answers_node_ports(self, address: str) -> bool:
        """True if node ports answer on this destination address."""
        if is_loopback(address):
            return self.nodeports.loopback_ipv6 if ":" in address else self.nodeports.loopback
        return self.is_local(address) if self.nodeports.any_local else address in self.nodeports.addresses

    def source(self, address: str, interface: str = "") -> Source:
        """Classify a packet's source address."""
        if self.detector.matches(address, interface):
            return Source.POD
        return Source.NODE if self.is_local(address) else Source.OUTSIDE
