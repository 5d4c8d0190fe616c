"""Names of the addresses in a picture: nodes and pods, by what Kubernetes' objects or a lab say of them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from dataplane.model.net import contains, family_of
from dataplane.model.objects import EndpointSlice, ModelObject, Node, Pod

if TYPE_CHECKING:
    from dataplane.lab.spec import Topology


class Names(msgspec.Struct, frozen=True):
    """node_of: an address of a pod or endpoint -> its node's name. pods: such an address -> the pod's name. addresses:
    a node's name -> its addresses. cidrs: a node's name -> its pod ranges. outside: the outside client's addresses ->
    its name."""

    node_of: dict[str, str] = msgspec.field(default_factory=dict)
    pods: dict[str, str] = msgspec.field(default_factory=dict)
    addresses: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    cidrs: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    outside: dict[str, str] = msgspec.field(default_factory=dict)

    def node(self, address: str) -> str:
        """The name of the node that an address is on, "" if it is not known."""
        found = self.node_of.get(address, "")
        return found or next((name for name, cidrs in self.cidrs.items() if contains(cidrs, address)), "")

    def address(self, node: str, like: str) -> str:
        """The first address of a node of the family of `like`, "" if none is known."""
        family = family_of(like)
        return next((each for each in self.addresses.get(node, ()) if family_of(each) is family), "")

    def whose(self, address: str) -> str:
        """The name of the node that has an address, "" if it is not known."""
        return next((name for name, addresses in self.addresses.items() if address in addresses), "")


def names_in(objects: Iterable[ModelObject], lab: "Topology | None" = None) -> Names:
    """What Nodes, Pods and EndpointSlices say, and of all else a lab."""
    found = names_of_lab(lab) if lab is not None else Names()
    for item in objects:
        if isinstance(item, Node):
            found.addresses[item.name] = item.addresses
            found.cidrs[item.name] = item.pod_cidrs
        elif isinstance(item, EndpointSlice):
            for endpoint in item.endpoints:
                if endpoint.node:
                    found.node_of[endpoint.address] = endpoint.node
        elif isinstance(item, Pod) and not item.host_network:
            for address in item.addresses:
                found.pods[address] = item.name
                found.node_of[address] = item.node or found.node_of.get(address, "")
    return found


def names_of_lab(topology: "Topology") -> Names:
    """Everybody in a lab."""
    found = Names()
    for node in topology.nodes:
        found.addresses[node.name] = (*node.addresses.values(), *node.second.values())
        for pod in node.pods:
            for address in pod.addresses.values():
                found.pods[address], found.node_of[address] = pod.name, node.name
    for addresses in (topology.client.addresses, *topology.client.via.values()):
        found.outside.update(dict.fromkeys(addresses.values(), topology.client.name))
    return found
