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
from dataplane.planes.registry import mode_of
from dataplane.policy.node import MOST_BACKENDS, LocalDetector, NodeConfig, NodePortAddresses
from dataplane.policy.settings import Promises

PlaneMaker = Callable[[Lab, Node], Plane]
"""Makes the plane of a node; called, like everything the plane does, inside the node's namespace."""


def node_config(spec: LabSpec, node: Node, mode: str) -> NodeConfig:
    """Return the NodeConfig of a lab node, with each mode's own defaults for node ports (kube-proxy's)."""
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
    )


class NodeProxy:
    """One node's proxy: its plan, and the plane that holds it in the node's namespace."""

    def __init__(self, lab: Lab, node: Node, mode: str, make: PlaneMaker) -> None:
        self.node = node
        self.planner = Planner(node_config(lab.spec, node, mode))
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

    keeps: which clients keep their address where the policy masquerades.
    """

    def __init__(self, lab: Lab, mode: str, make: PlaneMaker, keeps: frozenset[Keeps] = frozenset()) -> None:
        self.mode, self.keeps = mode, keeps
        self.nodes = {node.name: NodeProxy(lab, node, mode, make) for node in lab.nodes}

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
