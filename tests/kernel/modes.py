"""The modes that every behaviour is proved in, and how their planes are made for a node of the lab."""

from ctl.loaded import make_plane
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import Node
from dataplane.planes.base import Plane

MODES = ("iptables", "nftables")


def lab_proxy(lab: Lab, mode: str) -> LabProxy:
    """A proxy in this mode on every node of a lab."""

    def make(lab: Lab, node: Node) -> Plane:
        return make_plane(mode)

    return LabProxy(lab, mode, make)
