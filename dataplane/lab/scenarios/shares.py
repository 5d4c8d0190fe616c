"""Who gets how much external traffic, and whom the pods see as its client: in any lab, by every node, in both families.

The Services named imbalance-* of the examples have the same pods, one on node 1 and two on node 2, under policy Local,
policy Cluster, tunnel and dsr. The client sends each of both nodes the same number of connections, to a load-balancer
IP and to the node ports. Wanted shares and clients are the oracle's, as in the scenario table.
"""

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.scenarios.ground import Ground, Proxies
from dataplane.lab.scenarios.showcase import CHI_SQUARE_2, IMBALANCE, MANIFEST
from dataplane.lab.scenarios.table import Cell
from dataplane.lab.scenarios.verify import FALLBACKS, PATIENCE, Judge
from dataplane.lab.spec import LabError, Topology
from dataplane.lab.traffic.probe import Probe, ProbeResult
from dataplane.model.net import Family, Protocol, canonical_address
from dataplane.model.objects import ModelObject, Service
from dataplane.oracle.decide import Decision, Packet
from dataplane.plan.types import FrontendKind

ENTRIES = ("node1", "node2")
REQUESTS = 300
"""Connections by each of the nodes to each address."""
_PREFIX = "imbalance-"
_BALANCER_IPV6 = "fd00:203:113::"
"""IPv6 addresses of these Services; the last byte is that of the IPv4 address, which the manifest has."""


class Share(msgspec.Struct, frozen=True):
    """What came of one Service's connections by one kind of frontend. requests: answered ones by pod. kept: those whose
    pod saw the client's own address. findings: where packets and oracle disagree, with the node that they came by.
    """

    service: str
    kind: str
    family: str
    requests: dict[str, int]
    kept: int
    findings: list[str]

    def line(self) -> str:
        """A line of text."""
        total = max(1, sum(self.requests.values()))
        shares = " ".join(f"{pod} {100 * count / total:.0f}%" for pod, count in self.requests.items())
        result = f"; {len(self.findings)} DISAGREE" if self.findings else ""
        seen = f"{100 * self.kept / total:.0f}% see the client"
        return f"{self.service}, {self.kind}, {self.family}: {shares}, {seen}{result}"


class Way(NamedTuple):
    """The client's connections to one frontend by one node. source: the client's address that leads there."""

    cell: Cell
    source: str


def objects(topology: Topology) -> list[ModelObject]:
    """These Services with their EndpointSlices, in the lab's families. Raises LabError if the lab lacks their pods."""
    families = tuple(topology.nodes[0].addresses)
    known = {pod.name for node in topology.nodes for pod in node.pods}
    if not known.issuperset(IMBALANCE):
        raise LabError(f"the lab has no {', '.join(sorted(set(IMBALANCE) - known))}: bring it up with more pods")
    decoded = cluster_objects(MANIFEST.read_bytes(), {"imbalance": pods(topology, *IMBALANCE)}, families, MANIFEST.name)
    found: list[ModelObject] = []
    for item in decoded.objects:
        if item.name.startswith(_PREFIX):
            found.append(_dual(item) if isinstance(item, Service) and Family.IPV6 in families else item)
    return found


def _dual(service: Service) -> Service:
    """The Service as a load balancer of both families leaves it."""
    six = [
        canonical_address(f"{_BALANCER_IPV6}{ipaddress.IPv4Address(address).packed[-1]:x}")
        for address in service.load_balancer_ips
    ]
    return replace(service, load_balancer_ips=(*service.load_balancer_ips, *six))


def ways(topology: Topology, services: Collection[ModelObject], families: Collection[Family]) -> list[Way]:
    """Each way into these Services: to each load-balancer IP by each entry, and to each entry's own node port."""
    found = []
    for service in (item for item in services if isinstance(item, Service)):
        for name in ENTRIES:
            node = next(node for node in topology.nodes if node.name == name)
            port = service.ports[0]
            kinds = (
                *((FrontendKind.LOAD_BALANCER, address, port.port) for address in service.load_balancer_ips),
                *((FrontendKind.NODE_PORT, address, port.node_port) for address in node.addresses.values()),
            )
            for kind, address, number in kinds:
                family = Family.IPV6 if ":" in address else Family.IPV4
                if family in families:
                    source = f"outside by {name}"
                    cell = Cell(service.name, kind, source, "client", name, address, number, Protocol.TCP, family)
                    found.append(Way(cell, topology.client.via[name][family]))
    return found


def measure(
    lab: Ground, proxies: Proxies, found: Collection[Way], *, slowness: float = 1.0, requests: int = REQUESTS
) -> list[Share]:
    """Make `requests` connections by each way and hold what came of them against the oracle. The proxies must have
    loaded `objects`, and know each other for what asks for tunnel or dsr. Raises LabError."""
    oracles = proxies.oracles()
    probes = [
        Probe(w.cell.address, w.cell.port, count=requests, timeout=PATIENCE * slowness, source=w.source) for w in found
    ]
    results = lab.probe_all({"client": probes})["client"]
    judge = Judge(lab, proxies.mode, proxies.keeps, sum(proxies.counters().get(way, 0) for way in FALLBACKS))
    gathered: dict[tuple[str, FrontendKind, Family], list[tuple[Way, ProbeResult, list[str]]]] = {}
    for way, result in zip(found, results, strict=True):
        cell = way.cell
        decision = oracles[cell.decides].decide(Packet(way.source, cell.address, cell.port, cell.protocol))
        finding = judge.judge(cell, decision, result)
        said = [str(finding)] if finding else list(_unfair(lab, cell, decision, result))
        gathered.setdefault((cell.service, cell.kind, cell.family), []).append((way, result, said))
    return [_share(*key, rows) for key, rows in gathered.items()]


def _unfair(lab: Ground, cell: Cell, decision: Decision, result: ProbeResult) -> Iterator[str]:
    """Say so where the answered connections are not shared as the decision draws its backends."""
    names = {address: pod.name for pod in lab.pods for address in pod.addresses.values()}
    drawn = Counter(names[backend.address] for backend in decision.drawn)
    total = result.servers.total()
    expected = {pod: total * count / drawn.total() for pod, count in drawn.items()}
    if sum((result.servers[pod] - wanted) ** 2 / wanted for pod, wanted in expected.items()) >= CHI_SQUARE_2:
        yield f"{cell}: wanted {dict(drawn)} as shares, saw {dict(sorted(result.servers.items()))}"


def _share(service: str, kind: FrontendKind, family: Family, rows: list[tuple[Way, ProbeResult, list[str]]]) -> Share:
    servers = sum((result.servers for _, result, _ in rows), Counter[str]())
    return Share(
        service,
        kind.value,
        family.name.lower(),
        {pod: servers[pod] for pod in IMBALANCE},
        sum(result.clients[way.source] for way, result, _ in rows),
        [text for *_, said in rows for text in said],
    )
