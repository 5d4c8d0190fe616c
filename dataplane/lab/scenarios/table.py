"""The scenario table: one Service for each combination of policies and endpoint placement, one cell for each way in.

Service type x external and internal traffic policy x where the endpoints are x where the client is x protocol x family.
What must happen in a cell is not written here: the oracle says it.
"""

import enum
from collections.abc import Iterator
from typing import NamedTuple

from dataplane.lab.spec import LabSpec, Topology
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ModelObject,
    Service,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.plan.types import FrontendKind

PORT = 80
TARGET_PORT = 8080
SPEC = LabSpec(nodes=2, pods=3)
"""Two nodes with three pods: endpoints are pods 1 and 2 of each, pod 3 is only ever a client."""


class Placement(enum.StrEnum):
    """Where a Service's endpoints are, seen from node 1."""

    HERE = "here"
    ELSEWHERE = "elsewhere"
    BOTH = "both"
    ITSELF = "itself"
    NONE = "none"
    TERMINATING = "terminating"


_PODS = {
    Placement.HERE: ("pod1-1", "pod1-2"),
    Placement.ELSEWHERE: ("pod2-1", "pod2-2"),
    Placement.BOTH: ("pod1-1", "pod2-1"),
    Placement.ITSELF: ("pod1-1",),
    Placement.NONE: (),
    Placement.TERMINATING: ("pod1-1", "pod2-1"),
}

SOURCES = {
    "pod on this node": "pod1-3",
    "pod elsewhere": "pod2-3",
    "the node itself": "node1",
    "outside": "client",
    "the endpoint itself": "pod1-1",
}
"""Where a packet comes from -> the place in the lab."""


class Cell(NamedTuple):
    """One way to one Service. `decides`: name of the node whose rules meet the packet first."""

    service: str
    kind: FrontendKind
    source: str
    place: str
    decides: str
    address: str
    port: int
    protocol: Protocol
    family: Family

    def __str__(self) -> str:
        way = f"{self.kind.value} {self.protocol.name} {self.family.name}"
        return f"{self.service}: {way} from {self.source} ({self.place})"


class TableService(NamedTuple):
    """One Service of the table with its endpoints."""

    service: Service
    slices: tuple[EndpointSlice, ...]


def _service(number: int, placement: Placement, external_local: bool, internal_local: bool, ipv6: bool) -> Service:
    def addresses(four: str, six: str) -> tuple[str, ...]:
        return (f"{four}{number}", f"{six}{number:x}") if ipv6 else (f"{four}{number}",)

    external, internal = ("local" if flag else "cluster" for flag in (external_local, internal_local))
    return Service(
        namespace="table",
        name=f"{placement}-external-{external}-internal-{internal}",
        type=ServiceType.LOAD_BALANCER,
        cluster_ips=addresses("10.96.1.", "fd00:10:96::1:"),
        external_ips=addresses("203.0.113.", "fd00:203:113::1:"),
        load_balancer_ips=addresses("192.0.2.", "fd00:192:2::1:"),
        ports=(
            ServicePortSpec("tcp", Protocol.TCP, PORT, 31000 + number),
            ServicePortSpec("udp", Protocol.UDP, PORT, 31000 + number),
        ),
        external_local=external_local,
        internal_local=internal_local,
    )


def _endpoint(topology: Topology, name: str, family: Family, placement: Placement) -> Endpoint:
    pod = next(pod for node in topology.nodes for pod in node.pods if pod.name == name)
    going = placement is Placement.TERMINATING
    return make_endpoint(pod.addresses[family], ready=not going, serving=True, terminating=going, node=pod.node)


def _slices(topology: Topology, service: Service, placement: Placement, ipv6: bool) -> tuple[EndpointSlice, ...]:
    ports = tuple(EndpointPort(protocol.text, protocol, TARGET_PORT) for protocol in (Protocol.TCP, Protocol.UDP))
    return tuple(
        EndpointSlice(
            service.namespace,
            f"{service.name}-{family.name.lower()}",
            service.name,
            family,
            ports,
            tuple(_endpoint(topology, name, family, placement) for name in _PODS[placement]),
        )
        for family in ((Family.IPV4, Family.IPV6) if ipv6 else (Family.IPV4,))
    )


def services(topology: Topology, ipv6: bool) -> list[TableService]:
    """Every Service of the table for a lab of shape `SPEC`."""
    found = []
    combinations = [(p, e, i) for p in Placement for e in (False, True) for i in (False, True)]
    for number, (placement, external_local, internal_local) in enumerate(combinations, start=1):
        service = _service(number, placement, external_local, internal_local, ipv6)
        found.append(TableService(service, _slices(topology, service, placement, ipv6)))
    return found


def objects(table: list[TableService]) -> list[ModelObject]:
    """Everything in the table, as a source of objects would deliver it."""
    found: list[ModelObject] = []
    for item in table:
        found += [item.service, *item.slices]
    return found


def _ways(service: Service, topology: Topology) -> Iterator[tuple[FrontendKind, str, int]]:
    """Frontend kind, address and whether it is the node port (0: the Service port) for each way to a Service."""
    kinds = (
        (FrontendKind.CLUSTER_IP, service.cluster_ips),
        (FrontendKind.EXTERNAL_IP, service.external_ips),
        (FrontendKind.LOAD_BALANCER, service.load_balancer_ips),
        (FrontendKind.NODE_PORT, tuple(topology.nodes[0].addresses.values())),
    )
    for kind, group in kinds:
        for address in group:
            yield kind, address, 1 if kind is FrontendKind.NODE_PORT else 0


def cells(table: list[TableService], topology: Topology) -> list[Cell]:
    """Every cell. Packets to virtual addresses are decided by the client's own node (from outside: node 1, where
    the client's route leads), packets to node 1's node ports by node 1."""
    places = {place.name: getattr(place, "node", place.name) for place in topology.places()}
    found = []
    for item in table:
        for kind, address, is_node_port in _ways(item.service, topology):
            for source, place in SOURCES.items():
                own = places[place]
                decides = own if own.startswith("node") and not is_node_port else "node1"
                for port in item.service.ports:
                    number = port.node_port if is_node_port else port.port
                    family = Family.IPV6 if ":" in address else Family.IPV4
                    if family in topology.nodes[0].addresses:
                        found.append(
                            Cell(
                                item.service.name, kind, source, place, decides, address, number, port.protocol, family
                            )
                        )
    return found
