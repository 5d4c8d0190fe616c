"""Stale UDP flows, for every plane: found from the change, removed from the kernel's conntrack."""

from dataplane.kernel.conntrack import delete_udp
from dataplane.plan.change import PlanChange
from dataplane.plan.types import Plan
from dataplane.plan.udp import stale_udp
from dataplane.policy.node import NodeConfig


def clean_stale_udp(change: PlanChange, node: NodeConfig, loaded: Plan | None = None) -> int:
    """Remove the conntrack entries that a change made stale. Call it after the plane has applied the change.

    loaded: the plan, after a load; then entries from before it are looked at as well.

    out: how many kinds of flow were cleaned. Raises ConntrackError.
    """
    stale = stale_udp(change, node, loaded)
    if stale:
        delete_udp(stale)
    return len(stale)
