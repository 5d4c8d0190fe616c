"""One client of a Service has one endpoint, whichever hook or plane its first packet meets: session affinity in a lab
whose pods hang on a bridge, where a client may have begun to connect before its Service's rules are there."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.nft.transaction import Nft
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import LabSpec, PodLink
from dataplane.lab.traffic.probe import Outcome, Probe
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointSlice, Service
from dataplane.plan.change import PlanChange
from dataplane.planes.ebpf.plane import EbpfPlane
from tests.kernel.modes import lab_proxy
from tests.kernel.test_behaviours import VIP, endpoints, service

PODS = ("pod1-1", "pod1-2", "pod1-3", "pod2-1")
CLIENT = "pod1-4"
PLACES = (CLIENT, "node1")
ROUNDS = 6
BEFORE_RULES = 0.5
"""Seconds from connect(2) to its Service: the SYN has met nobody, and is sent again after a second."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    spec = LabSpec(name=f"ap{os.getpid()}", nodes=2, pods=(4, 1), ipv6=True, pod_link=PodLink.BRIDGE)
    with Lab.up(spec) as lab:
        lab.start_echo(PODS, (8080,))
        yield lab


@pytest.fixture(params=("nftables", "ebpf", "ebpf-connect", "ebpf-tc"))
def proxy(request: pytest.FixtureRequest, lab: Lab) -> Iterator[LabProxy]:
    with lab_proxy(lab, request.param) as proxy:
        yield proxy


@contextmanager
def silence(lab: Lab) -> Iterator[None]:
    """On node 1, what is addressed to a clusterIP when it leaves is lost without a word."""
    with netns(lab.place("node1").netns):
        nft = Nft()
    commands = ["add table inet lost", "add chain inet lost out { type filter hook postrouting priority 0; }"]
    commands += [
        "add rule inet lost out ip daddr 10.96.0.0/16 drop",
        "add rule inet lost out ip6 daddr fd00:10:96::/48 drop",
    ]
    nft.run("\n".join(commands))
    try:
        yield
    finally:
        nft.run("delete table inet lost")


def sticky(*protocols: Protocol, number: int = 1) -> Service:
    """A Service with session affinity, with a name and addresses of its own."""
    ips = (VIP[Family.IPV4].replace("7.1", f"7.{number}"), VIP[Family.IPV6].replace("7:1", f"7:{number}"))
    return replace(service(*protocols, affinity_seconds=600), name=f"web{number}", cluster_ips=ips)


def slices(lab: Lab, number: int) -> list[EndpointSlice]:
    """The endpoints of one of these Services: every echo server."""
    made = endpoints(lab, *PODS, name=f"web{number}")
    return [replace(one, service=f"web{number}") for one in made]


def ask(lab: Lab, addresses: Sequence[str], count: int) -> dict[tuple[str, str], set[str]]:
    """Who answers clients in both places at each address; every attempt must be answered."""
    probes = [Probe(address, 80, count=count, timeout=60.0) for address in addresses]
    found = {}
    for place, results in lab.probe_all(dict.fromkeys(PLACES, probes)).items():
        for address, result in zip(addresses, results, strict=True):
            assert result.count(Outcome.ANSWERED) == count, (place, address, result.outcomes)
            found[place, address] = set(result.servers)
    return found


def test_who_connected_before_the_rules_keeps_that_endpoint(lab: Lab, proxy: LabProxy) -> None:
    """Six Services, two families, a pod and the node itself: a quarter each by chance."""
    services = [sticky(number=number) for number in range(1, ROUNDS + 1)]
    addresses = [address for wanted in services for address in wanted.cluster_ips]
    objects = [made for number in range(1, ROUNDS + 1) for made in slices(lab, number)]
    lab.probe_all({place: [Probe("127.0.0.1", 1)] for place in PLACES})  # its agents run from now on
    with silence(lab), ThreadPoolExecutor(1) as pool:
        early = pool.submit(ask, lab, addresses, 1)
        time.sleep(BEFORE_RULES)
        assert not early.done()
        proxy.update([*services, *objects])
        first = early.result()
    assert ask(lab, addresses, 4) == first
    assert len(set(map(str, first.values()))) > 1


def test_who_connects_while_the_planes_change_keeps_that_endpoint(lab: Lab, proxy: LabProxy) -> None:
    """A change reaches the slow path and the maps at two moments; here clients connect between the two."""
    services = [sticky(number=number) for number in range(1, ROUNDS + 1)]
    addresses = [address for wanted in services for address in wanted.cluster_ips]
    plane, early = proxy.nodes["node1"].plane, []
    slow = plane.slow if isinstance(plane, EbpfPlane) else plane
    apply = slow.apply

    def apply_and_ask(change: PlanChange) -> None:
        apply(change)
        early.append(ask(lab, addresses, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slow, "apply", apply_and_ask)
        proxy.update([*services, *(made for number in range(1, ROUNDS + 1) for made in slices(lab, number))])
    assert [ask(lab, addresses, 4)] == early


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.name)
def test_every_way_to_send_meets_the_same_endpoint(lab: Lab, proxy: LabProxy, family: Family) -> None:
    """Sockets that are bound to an address or port, connected datagrams, single ones: all are this one client."""
    source = lab.place(CLIENT).addresses[family]
    proxy.update([sticky(Protocol.TCP, Protocol.UDP), *slices(lab, 1)])
    tcp = Probe(VIP[family], 80, count=3, timeout=60.0)
    udp = Probe(VIP[family], 80, Protocol.UDP, count=3, timeout=60.0)
    bound = (replace(tcp, source=source), replace(tcp, source_port=41001, count=1))
    for probes in ((tcp, *bound), (udp, replace(udp, connected=False), replace(udp, source=source))):
        seen = set()
        for result in lab.probe(CLIENT, *probes, concurrency=1):
            assert result.count(Outcome.ANSWERED) == len(result.attempts), result.outcomes
            seen |= set(result.servers)
        assert len(seen) == 1
