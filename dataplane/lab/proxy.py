"""The lab's Service proxies: on every node a planner and a plane of its own, fed like a daemon's."""

from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.kernel.netlink.conntrack import forget_all
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, LabSpec, Node
from dataplane.model.objects import ModelObject, ObjectRef
from dataplane.oracle.decide import Oracle
from dataplane.oracle.keeps import Keeps
from dataplane.plan.change import PlanChange
from dataplane.plan.planner import Planner
from dataplane.planes.base import Plane
from dataplane.planes.conntrack import clean_stale_udp
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from dataplane.policy.algorithm import DEFAULT_TABLE_SIZE
from dataplane.policy.forwarding import MORE, LbMode, TunnelPeer
from dataplane.policy.node import MOST_BACKENDS, LocalDetector, NodeConfig, NodePortAddresses
from dataplane.policy.settings import Promises

PlaneMaker = Callable[[Lab, Node], Plane]
"""Makes the plane of a node; called, like everything the plane does, inside the node's namespace."""


def lb_peers(nodes: Iterable[Node], node: Node) -> tuple[TunnelPeer, ...]:
    """Return the other nodes of a lab as this one is to know them: what announcements bring about in a cluster."""
    return tuple(
        TunnelPeer(other.name, address, MORE)
        for other in nodes
        if other != node
        for address in other.addresses.values()
    )


def node_config(
    spec: LabSpec, node: Node, mode: str, lb_mode: LbMode = LbMode.SNAT, peers: tuple[TunnelPeer, ...] = ()
) -> NodeConfig:
    """Return the NodeConfig of a lab node, with each mode's own defaults for node ports (kube-proxy's). lb_mode, peers:
    see NodeConfig; they have no effect in a mode that can only do SNAT."""
    own = (*node.addresses.values(), *node.second.values())
    like_iptables = mode_of(mode).promises is Promises.IPTABLES
    every_address = NodePortAddresses(any_local=True, loopback=True)
    return NodeConfig(
        name=node.name,
        addresses=own,
        detector=LocalDetector(cidrs=tuple(CLUSTER_CIDR[family] for family in spec.families)),
        nodeports=every_address if like_iptables else NodePortAddresses(addresses=tuple(node.addresses.values())),
        reject_unknown_ports=not like_iptables,
        most_backends=0 if like_iptables else MOST_BACKENDS,
        lb_mode=lb_mode,
        lb_peers=peers,
        snat_only=bool(mode_of(mode).why_only_snat(PlaneOptions())),
        maglev_table_size=DEFAULT_TABLE_SIZE if mode_of(mode).promises is Promises.CONNECT_TIME else 0,
    )


class NodeProxy:
    """One node's proxy: its plan, and the plane that holds it in the node's namespace. lb_mode: see LabProxy."""

    def __init__(self, lab: Lab, node: Node, mode: str, make: PlaneMaker, lb_mode: LbMode | None = None) -> None:
        self.node = node
        peers = lb_peers(lab.nodes, node) if lb_mode is not None else ()
        self.planner = Planner(node_config(lab.spec, node, mode, lb_mode or LbMode.SNAT, peers))
        with netns(node.netns):
            self.plane = make(lab, node)
            self.plane.load(self.planner.plan)

    def update(self, upserts: Iterable[ModelObject], deletes: Iterable[ObjectRef]) -> PlanChange:
        """Take in objects and bring the kernel up to date."""
        change = self.planner.update(upserts, deletes)
        if change:
            with netns(self.node.netns):
                self.plane.apply(change)
                clean_stale_udp(change, self.planner.plan.node)
        return change

    def stand_aside(self, aside: bool) -> None:
        """Have the plane underneath serve everything, or no longer; nothing where there is none."""
        self.plane.stand_aside(aside)

    def cleanup(self) -> None:
        """Remove the plane's every trace from the node."""
        with netns(self.node.netns):
            self.plane.cleanup()


class LabProxy:
    """A proxy on every node of a lab, in one mode. As a context manager it leaves the nodes clean: no rules, and no
    flows either, since the kernel asks no nat rule about a flow that it knows (a SYN that one mode let out unanswered
    would keep its port from being refused by the next one).

    keeps: which clients keep their address where the policy masquerades. lb_mode: the way of external traffic to other
    nodes; None: SNAT, and no node takes forwarded packets, whatever Services ask for.
    """

    def __init__(
        self,
        lab: Lab,
        mode: str,
        make: PlaneMaker,
        keeps: frozenset[Keeps] = frozenset(),
        lb_mode: LbMode | None = None,
    ) -> None:
        self.mode, self.keeps, self.lb_mode = mode, keeps, lb_mode
        self.nodes = {node.name: NodeProxy(lab, node, mode, make, lb_mode) for node in lab.nodes}

    def update(self, upserts: Iterable[ModelObject] = (), deletes: Iterable[ObjectRef] = ()) -> None:
        """Tell every node of objects that appeared, changed or went."""
        upserts, deletes = list(upserts), list(deletes)
        for proxy in self.nodes.values():
            proxy.update(upserts, deletes)

    def counters(self) -> dict[str, int]:
        """How often each way out of each hook was taken on all nodes, by `hook:reason`; none where none are counted."""
        found: Counter[str] = Counter()
        for proxy in self.nodes.values():
            with netns(proxy.node.netns):
                traffic = proxy.plane.traffic()
            found.update({f"{way.hook}:{way.reason}": way.times for way in (traffic.hook_exits if traffic else ())})
        return dict(found)

    def oracles(self) -> dict[str, Oracle]:
        """An oracle for each node's plan as it is now."""
        return {name: Oracle(proxy.planner.plan) for name, proxy in self.nodes.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proxy in self.nodes.values():
            proxy.cleanup()
            in_netns(proxy.node.netns, forget_all)
