"""Stale UDP flows, for every plane: found from the change, removed from the kernel's conntrack."""

from dataplane.kernel.netlink.conntrack import Cleaned, delete_udp
from dataplane.model.net import Family
from dataplane.plan.change import PlanChange
from dataplane.plan.types import Plan
from dataplane.plan.udp import stale_udp
from dataplane.policy.node import NodeConfig


def clean_stale_udp(change: PlanChange, node: NodeConfig, loaded: Plan | None = None) -> dict[Family, Cleaned]:
    """Remove the conntrack entries that a change made stale. Call it after the plane has applied the change.

    loaded: the plan, after a load; then entries from before it are looked at as well.

    out: the result for each family that had candidates. Raises ConntrackError.
    """
    return delete_udp(stale_udp(change, node, loaded))
