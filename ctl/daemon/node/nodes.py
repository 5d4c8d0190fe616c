"""This node as the daemon sees it: options, configuration, its Node object and the kernel's addresses together."""

from collections.abc import Sequence

import msgspec

from ctl.config import KubeProxyConfiguration
from ctl.context import namespace_addresses
from ctl.lb_options import LbOptions
from dataplane.model.objects import Node
from dataplane.planes.mode import Mode
from dataplane.planes.options import PlaneOptions
from dataplane.policy.node import NodeConfig
from dataplane.policy.settings import node_config


class NodeOptions(msgspec.Struct, frozen=True):
    """What the command line says of this node. zone None, node_ips empty: as the Node object and the kernel say.
    host_ports: hostPorts of its Pods are published. answer_ping, flowtable: see NodeConfig."""

    name: str
    node_ips: tuple[str, ...] = ()
    zone: str | None = None
    host_ports: bool = False
    answer_ping: bool = False
    flowtable: int = 0


def describe(
    mode: Mode,
    config: KubeProxyConfiguration,
    options: NodeOptions,
    node: Node | None,
    plane: PlaneOptions,
    lb: LbOptions,
) -> NodeConfig:
    """The NodeConfig as of now; asks the kernel for the namespace's addresses unless they were given. plane: of the
    mode's plane.

    The Node object's addresses lead, as far as the kernel has them.
    """
    node_ips: Sequence[str] = options.node_ips
    interfaces: Sequence[str] = ()
    if not node_ips:
        interfaces = namespace_addresses()
        node_ips = [address for address in (node.addresses if node else ()) if address in interfaces]
    found = node_config(
        mode.promises,
        config.proxy_settings(),
        node_name=options.name,
        zone=(node.zone if node else "") if options.zone is None else options.zone,
        node_ips=node_ips,
        interface_addresses=interfaces,
        node_pod_cidrs=node.pod_cidrs if node else (),
        at_connect=plane.at_connect,
    )
    found = lb.applied(found, mode, plane)
    return msgspec.structs.replace(
        found, host_ports=options.host_ports, answer_ping=options.answer_ping, flowtable=options.flowtable
    )
