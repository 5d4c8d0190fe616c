"""A short, honest comparison: new connections through the last of many Services, against the same pod directly.

Each mode has a node of the lab to itself; a pod there connects to another pod there, directly and through the Service.
All are measured in one run, in rounds of shuffled order, so that a noisy machine is noisy to everyone.
"""

import random
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import NodeProxy, PlaneMaker
from dataplane.lab.traffic.connects import ConnectClient, Sample, start_servers
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointPort, EndpointSlice, Service, ServicePortSpec, make_endpoint

PORT = 80
SERVER_PORT = 9090
ROUNDS = 8
CONNECTIONS = 250


class Row(msgspec.Struct, frozen=True):
    """One mode's figures. rate: connections per second; ratio: median over the rounds of rate / direct's rate.

    load_seconds: from objects to kernel, planning included. p50, p99: microseconds of one connect.
    """

    mode: str
    services: int
    load_seconds: float
    rate: float
    direct_rate: float
    ratio: float
    p50: float
    p99: float
    direct_p50: float
    direct_p99: float


def many_services(count: int, backend: str, endpoints: int = 5) -> list[Service | EndpointSlice]:
    """`count` Services, sorted by name, of which only the last leads to a real pod, on every one of its endpoints.

    The others have made-up endpoints that nobody connects to.
    """
    found: list[Service | EndpointSlice] = []
    for number in range(count):
        high, low = divmod(number, 250)
        last = number == count - 1
        name = f"svc-{number:06d}"
        found.append(
            Service(
                "many", name, cluster_ips=(f"10.97.{high}.{low + 1}",), ports=(ServicePortSpec("", Protocol.TCP, PORT),)
            )
        )
        ports = (EndpointPort("", Protocol.TCP, SERVER_PORT),)
        addresses = [backend] if last else [f"10.{128 + e}.{high}.{low + 1}" for e in range(endpoints)]
        items = tuple(make_endpoint(address, node="elsewhere") for address in addresses)
        found.append(EndpointSlice("many", name, name, Family.IPV4, ports, items))
    return found


def last_cluster_ip(count: int) -> str:
    """clusterIP of the last of `count` Services."""
    high, low = divmod(count - 1, 250)
    return f"10.97.{high}.{low + 1}"


def _measure(
    clients: Mapping[str, ConnectClient], targets: Mapping[str, Mapping[str, tuple[str, int]]], seed: int
) -> dict[str, dict[str, list[Sample]]]:
    """Samples by mode and way ("direct", "service"), one a round."""
    order = [(mode, way) for mode in clients for way in ("direct", "service")]
    samples: dict[str, dict[str, list[Sample]]] = {mode: {"direct": [], "service": []} for mode in clients}
    shuffle = random.Random(seed)
    for number in range(ROUNDS + 1):
        shuffle.shuffle(order)
        for mode, way in order:
            sample = clients[mode].measure(*targets[mode][way], CONNECTIONS)
            if number:  # the first round only warms caches up
                samples[mode][way].append(sample)
    return samples


def _row(mode: str, services: int, load_seconds: float, samples: Mapping[str, Sequence[Sample]]) -> Row:
    def median(values: Iterable[float]) -> float:
        return statistics.median(values)

    direct, service = samples["direct"], samples["service"]
    return Row(
        mode=mode,
        services=services,
        load_seconds=load_seconds,
        rate=median(s.rate for s in service),
        direct_rate=median(s.rate for s in direct),
        ratio=median(s.rate / d.rate for s, d in zip(service, direct, strict=True)),
        p50=median(s.percentile(0.5) for s in service),
        p99=median(s.percentile(0.99) for s in service),
        direct_p50=median(s.percentile(0.5) for s in direct),
        direct_p99=median(s.percentile(0.99) for s in direct),
    )


def compare(lab: Lab, makers: Mapping[str, PlaneMaker], services: int, seed: int = 1) -> list[Row]:
    """Measure each mode on a node of its own, with `services` Services loaded there.

    The lab needs as many nodes as there are modes, each with two pods. Nodes are left clean.
    """
    clients: dict[str, ConnectClient] = {}
    targets: dict[str, dict[str, tuple[str, int]]] = {}
    proxies: dict[str, NodeProxy] = {}
    seconds: dict[str, float] = {}
    try:
        for node, (mode, make) in zip(lab.nodes, makers.items(), strict=False):
            backend = node.pods[0].addresses[Family.IPV4]
            start_servers(lab, node.pods[:1], SERVER_PORT)
            proxies[mode] = NodeProxy(lab, node, mode, make)
            objects = many_services(services, backend)
            started = time.perf_counter()
            proxies[mode].update(objects, ())
            seconds[mode] = time.perf_counter() - started
            clients[mode] = ConnectClient(lab, node.pods[1])
            targets[mode] = {"direct": (backend, SERVER_PORT), "service": (last_cluster_ip(services), PORT)}
        samples = _measure(clients, targets, seed)
        return [_row(mode, services, seconds[mode], samples[mode]) for mode in clients]
    finally:
        for client in clients.values():
            client.close()
        for proxy in proxies.values():
            with netns(proxy.node.netns):
                proxy.plane.cleanup()
