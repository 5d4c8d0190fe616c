"""The modes that every behaviour is proved in, and how their planes are made for a node of the lab."""

import os

from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import Node
from dataplane.oracle.keeps import Keeps
from dataplane.planes.base import Plane
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from dataplane.policy.forwarding import LbMode

MODES = ("iptables", "nftables", "ebpf")
"""ebpf: every hook."""
EBPF_VARIANTS = {
    "ebpf": PlaneOptions(),
    "ebpf-parity": PlaneOptions(kube_proxy_masquerade=True),
    "ebpf-connect": PlaneOptions(hooks=("connect",)),
    "ebpf-tc": PlaneOptions(hooks=("tc",)),
    "ebpf-xdp-parity": PlaneOptions(hooks=("tc", "xdp"), kube_proxy_masquerade=True),
}
VARIANTS = ("iptables", "nftables", *EBPF_VARIANTS)


def instance(lab: Lab, node: Node) -> str:
    """Name of the pins of one of this run's nodes."""
    return f"hp-{os.getpid()}-{lab.spec.name}-{node.name}"


def lab_proxy(lab: Lab, variant: str, lb_mode: LbMode | None = None) -> LabProxy:
    """A proxy in this mode, or variant of the ebpf mode, on every node of a lab. lb_mode: see LabProxy."""
    options = EBPF_VARIANTS.get(variant)

    def make(lab: Lab, node: Node) -> Plane:
        if options is None:
            return mode_of(variant).make()
        return mode_of("ebpf").make(Making(node_options(lab, node, options)))

    keeps: frozenset[Keeps] = frozenset()
    if options is not None and not options.kube_proxy_masquerade:
        hooks = {Keeps.PODS: "connect", Keeps.LOCAL: "tc"}
        keeps = frozenset(kept for kept, hook in hooks.items() if hook in options.hooks)
    return LabProxy(lab, variant if options is None else "ebpf", make, keeps, lb_mode)


def node_options(lab: Lab, node: Node, options: PlaneOptions) -> PlaneOptions:
    """The options for one node of a lab: its own control group, pins of their own name."""
    return PlaneOptions(
        options.hooks,
        str(lab.cgroup(node.name)),
        kube_proxy_masquerade=options.kube_proxy_masquerade,
        instance=instance(lab, node),
    )
