"""Planes for the nodes of a lab that a command brings up and takes down itself."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataplane.lab.lab import Lab
    from dataplane.lab.proxy import PlaneMaker


def maker(mode: str, instances: str) -> "PlaneMaker":
    """Planes of nodes: each with the node's own control group, and pins whose names begin with `instances`."""
    from dataplane.lab.spec import Node
    from dataplane.planes.base import Plane
    from dataplane.planes.mode import Making
    from dataplane.planes.options import PlaneOptions
    from dataplane.planes.registry import mode_of

    def make(lab: "Lab", node: Node) -> Plane:
        options = PlaneOptions(cgroup=str(lab.cgroup(node.name)), instance=f"{instances}{node.name}")
        return mode_of(mode).make(Making(options))

    return make
