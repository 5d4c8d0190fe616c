"""A pod's device that goes, and another one in its place with the same addresses."""

import socket

from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.build import _POD_GATEWAY as POD_GATEWAY
from dataplane.lab.lab import Lab
from dataplane.lab.spec import Node, Pod
from dataplane.model.net import Family


def _ends(lab: Lab, name: str) -> tuple[Pod, Node]:
    pod = lab.place(name)
    assert isinstance(pod, Pod)
    return pod, next(node for node in lab.nodes if node.name == pod.node)


def remove_device(lab: Lab, name: str) -> int:
    """Delete a pod's device; returns its ifindex. Of pods on plain veths, as all here."""
    pod, node = _ends(lab, name)
    with netns(node.netns):
        index = socket.if_nametoindex(pod.device)
    lab.run(node, ["ip", "link", "del", pod.device])
    return index


def add_device(lab: Lab, name: str, index: int = 0) -> None:
    """Give a pod a new device, with what the lab gave the old one. index: its ifindex; 0 = any."""
    pod, node = _ends(lab, name)
    more = ["index", str(index)] if index else []
    inside = str(lab.processes()[name][0])
    lab.run(node, ["ip", "link", "add", pod.device, *more, "type", "veth", "peer", "name", "eth0", "netns", inside])
    with Links(node.netns) as links, Links(pod.netns) as far:
        links.up(pod.device)
        far.up("eth0")
        for family, address in pod.addresses.items():
            if family is Family.IPV6:
                links.address(pod.device, "fe80::1/64")
            hop = POD_GATEWAY[family]
            far.address("eth0", f"{address}/{family.bits}")
            far.neighbour("eth0", hop, links.mac(pod.device))
            if family is Family.IPV4:
                far.route(f"{hop}/32", device="eth0")
            far.route("::/0" if family is Family.IPV6 else "0.0.0.0/0", device="eth0", via=hop)
            links.route(f"{address}/{family.bits}", device=pod.device, source=node.addresses[family])
