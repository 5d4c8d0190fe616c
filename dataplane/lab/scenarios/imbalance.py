"""The dilemma of external traffic, measured: who gets how much of it, and whom the pods see as the client.

Three pods on two nodes, one and two, behind an outer balancer that gives both nodes the same share, or under weights as
many as they have pods (what `healthCheckNodePort` tells it). Policy Cluster balances and hides the client; policy Local
shows it and does not balance; tunnel and dsr do both.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.scenarios.cluster import Backing, pods
from dataplane.lab.spec import LabSpec
from dataplane.lab.traffic.connects import ConnectClient, Sample
from dataplane.lab.traffic.probe import Attempt, Outcome, Probe, split_port
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    EndpointPort,
    EndpointSlice,
    ModelObject,
    Service,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from dataplane.policy.forwarding import LbMode

SPEC = LabSpec(nodes=2, pods=(1, 2))
PODS = ("pod1-1", "pod2-1", "pod2-2")
REQUESTS = 600
CONNECTIONS = 250
ROUNDS = 5
TARGET_PORT, SERVER_PORT, PORT, TIMED_PORT = 8080, 9090, 80, 81
"""The echo servers' port and that of the servers that only accept, and the Service ports that lead to them."""


class Setup(msgspec.Struct, frozen=True):
    """One answer to the dilemma. asks: the way that it needs, "" where every mode has it. weighted: the outer balancer
    goes by the health-check weights."""

    name: str
    address: str
    local: bool = False
    asks: str = ""
    weighted: bool = False


SETUPS = (
    Setup("Cluster, snat", "203.0.113.21", asks="snat"),
    Setup("Local", "203.0.113.22", local=True),
    Setup("Local, weights outside", "203.0.113.22", local=True, weighted=True),
    Setup("Cluster, tunnel", "203.0.113.23", asks="tunnel"),
    Setup("Cluster, dsr", "203.0.113.24", asks="dsr"),
)


class Row(msgspec.Struct, frozen=True):
    """What one mode did with one setup. cannot: why the mode has it not; then there are no figures.

    requests: by pod, those that were answered. most: the most of one pod over the mean. kept: share of the answered
    requests whose pod saw the client's own address. seen: every address that a pod saw. rate: new connections a second
    from the client by way of node 1, median of rounds; p50, p99: microseconds of one. wire: bytes that the nodes'
    uplinks carried, in and out, for each of these connections.
    """

    mode: str
    setup: str
    cannot: str = ""
    requests: Mapping[str, int] = {}
    most: float = 0.0
    kept: float = 0.0
    seen: tuple[str, ...] = ()
    rate: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    wire: float = 0.0


def objects(backing: list[Backing]) -> list[ModelObject]:
    """A Service for each address of the setups, with the same pods behind it."""
    found: list[ModelObject] = []
    for number, setup in enumerate({setup.address: setup for setup in SETUPS}.values(), start=1):
        name = f"imbalance-{number}"
        found.append(
            Service(
                "default", name, ServiceType.LOAD_BALANCER, (f"10.96.20.{number}",), (), (setup.address,),
                (
                    ServicePortSpec("echo", Protocol.TCP, PORT, 31900 + 2 * number),
                    ServicePortSpec("timed", Protocol.TCP, TIMED_PORT, 31901 + 2 * number),
                ),
                external_local=setup.local,
                health_check_node_port=32900 + number if setup.local else 0,
                forwarding_mode=setup.asks,
            )
        )  # fmt: skip
        ports = (EndpointPort("echo", Protocol.TCP, TARGET_PORT), EndpointPort("timed", Protocol.TCP, SERVER_PORT))
        endpoints = tuple(make_endpoint(item.pod.addresses[Family.IPV4], node=item.pod.node) for item in backing)
        found.append(EndpointSlice("default", f"{name}-1", name, Family.IPV4, ports, endpoints))
    return found


def run(lab: Lab, proxy: LabProxy, variant: str = "", options: PlaneOptions | None = None) -> list[Row]:
    """Measure every setup in one mode. The echo servers must listen on TARGET_PORT, those of `connects` on SERVER_PORT;
    the proxies must know each other (LabProxy's lb_mode). variant: what the rows call the mode."""
    name, mode = variant or proxy.mode, mode_of(proxy.mode)
    why = mode.why_only_snat(options or PlaneOptions())
    proxy.update(objects(pods(lab.topology, *PODS)))
    client = ConnectClient(lab, lab.client)
    try:
        return [
            Row(name, setup.name, f"the {mode.name} mode {why}")
            if why and setup.asks not in ("", LbMode.SNAT.value)
            else _measure(lab, proxy, name, setup, client)
            for setup in SETUPS
        ]
    finally:
        client.close()


def _measure(lab: Lab, proxy: LabProxy, mode: str, setup: Setup, client: ConnectClient) -> Row:
    attempts = [a for a in _requests(lab, _shares(proxy, setup), setup) if a.outcome is Outcome.ANSWERED]
    requests = Counter(attempt.server for attempt in attempts)
    own = {address[Family.IPV4] for address in lab.client.via.values()}
    clients = Counter(split_port(attempt.client)[0] for attempt in attempts)
    samples, wire = _timed(lab, client, setup)
    return Row(
        mode,
        setup.name,
        requests={pod: requests[pod] for pod in PODS},
        most=max(requests[pod] for pod in PODS) * len(PODS) / max(1, len(attempts)),
        kept=sum(count for address, count in clients.items() if address in own) / max(1, len(attempts)),
        seen=tuple(sorted(clients)),
        rate=_median([sample.rate for sample in samples]),
        p50=_median([sample.percentile(0.5) for sample in samples]),
        p99=_median([sample.percentile(0.99) for sample in samples]),
        wire=wire,
    )


def _shares(proxy: LabProxy, setup: Setup) -> dict[str, int]:
    """How many requests the outer balancer gives to each node."""
    weights = dict.fromkeys(proxy.nodes, 1)
    if setup.weighted:
        for name, node in proxy.nodes.items():
            [check] = node.planner.plan.health_checks.values()
            weights[name] = check.local_endpoints
    return {name: REQUESTS * weight // sum(weights.values()) for name, weight in weights.items()}


def _requests(lab: Lab, shares: Mapping[str, int], setup: Setup) -> Iterator[Attempt]:
    """The outer balancer's requests, each node's from an address whose packets enter there."""
    via = lab.client.via
    probes = [
        Probe(setup.address, PORT, count=count, source=via[node][Family.IPV4])
        for node, count in shares.items()
        if count
    ]
    for result in lab.probe(lab.client, *probes):
        yield from result.attempts


def _timed(lab: Lab, client: ConnectClient, setup: Setup) -> tuple[list[Sample], float]:
    """Samples of new connections one after another, and the bytes of each on the nodes' uplinks."""
    client.measure(setup.address, TIMED_PORT, CONNECTIONS // 5)  # warms caches up
    before = _carried(lab)
    samples = [client.measure(setup.address, TIMED_PORT, CONNECTIONS) for _ in range(ROUNDS)]
    return samples, (_carried(lab) - before) / (ROUNDS * CONNECTIONS)


def _carried(lab: Lab) -> int:
    """Bytes that the uplinks of all nodes have received and sent so far."""
    return sum(in_netns(node.netns, _bytes, node.uplink) for node in lab.nodes)


def _bytes(device: str) -> int:
    with open("/proc/thread-self/net/dev", encoding="ascii") as file:
        fields = next(line.partition(":")[2].split() for line in file if line.strip().startswith(f"{device}:"))
    return int(fields[0]) + int(fields[8])


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
