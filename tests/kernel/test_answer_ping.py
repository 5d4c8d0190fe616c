"""`--answer-ping`: real echo requests to addresses of Services, from outside, from pods and from the node itself."""

import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from dataplane.kernel.namespaces import netns
from dataplane.lab import proxy as lab_proxies
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec, Node, PodLink
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import FrontendKind, SourceRanges
from dataplane.planes.nftables.ping import answered_pings
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.policy.node import NodeConfig
from tests.kernel.modes import lab_proxy
from tests.kernel.nftables_net import LB, NODE_CONFIG, VIP, Network, entry, network, plan_of, pods
from tests.kernel.test_behaviours import VIP as LAB_VIP
from tests.kernel.test_behaviours import endpoints, service

BOTH = pytest.mark.parametrize("version", [4, 6])
ANSWERING = msgspec.structs.replace(NODE_CONFIG, answer_ping=True)
PATIENCE, QUIET = 60.0, 0.5
"""Seconds for an answer that must come, and after which silence is believed."""
_REQUEST = {4: 8, 6: 128}
_series = itertools.count(1000)
_REPLY = {4: 0, 6: 129}


def _sum(data: bytes) -> int:
    """The checksum of the Internet (RFC 1071); 0 over data that has a right one."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(namespace: str, address: str, count: int = 1, series: int = 0, wait: float = PATIENCE) -> int:
    """Send requests of one series, a new one unless it is named; how many were answered, from this address and with
    what was sent."""
    series = series or next(_series)
    version = 6 if ":" in address else 4
    family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if version == 6 else (socket.AF_INET, 1)
    answered = 0
    with netns.in_netns(namespace, socket.socket, family, socket.SOCK_RAW, protocol) as sock:
        for number in range(count):
            rest = struct.pack("!HH", series, number) + os.urandom(64)
            checksum = _sum(struct.pack("!BBH", _REQUEST[version], 0, 0) + rest) if version == 4 else 0
            try:
                sock.sendto(struct.pack("!BBH", _REQUEST[version], 0, checksum) + rest, (address, 0))
            except OSError:  # rejected right here
                continue
            answered += _answer(sock, version, address, rest, wait)
    return answered


def _answer(sock: socket.socket, version: int, address: str, sent: bytes, wait: float) -> bool:
    sock.settimeout(wait)
    while True:
        try:
            data, sender = sock.recvfrom(500)
        except TimeoutError:
            return False
        message = data[(data[0] & 15) * 4 :] if version == 4 else data
        if message[0] == _REPLY[version] and message[4:] == sent:
            assert sender[0] == address
            assert version == 6 or (_sum(message) == 0 and _sum(data[:20]) == 0 and data[8] > 32)
            return True


@pytest.fixture
def net(make_namespace: Callable[[str], str]) -> Iterator[Network]:
    with network(make_namespace) as made:
        yield made


@BOTH
def test_addresses_that_lead_to_an_endpoint_answer(net: Network, version: int) -> None:
    plane = netns.in_netns(net.node, NftablesPlane)
    cluster = entry(version, pods(version, 0, 1), name="a")
    balanced = entry(version, pods(version, 0), kind=FrontendKind.LOAD_BALANCER, address=LB[version], name="b")
    places = (net.client, net.pods[0], net.pods[2], net.node)
    plane.load(plan_of(cluster, balanced))
    assert [ping(place, VIP[version], wait=QUIET) for place in places] == [0] * 4, "not asked for"
    assert netns.in_netns(net.node, answered_pings) is None
    plane.load(plan_of(cluster, balanced, node=ANSWERING))
    for place in places:
        assert (ping(place, VIP[version], 3), ping(place, LB[version], 2)) == (3, 2), place
    assert netns.in_netns(net.node, answered_pings) == 20
    # Without endpoints it is refused as ever, and answered again once there are some.
    nobody = entry(version, (), name="a")
    assert [ping(place, VIP[version], series=7) for place in places] == [1] * 4
    plane.apply(PlanChange((EntryChange(cluster, nobody),)))
    assert [ping(place, VIP[version], wait=QUIET) for place in places] == [0] * 4
    known = [ping(place, VIP[version], series=7, wait=QUIET) for place in places]
    assert known == [0] * 4, "nor is who has been answered before"
    assert ping(net.client, LB[version]) == 1
    plane.apply(PlanChange((EntryChange(nobody, cluster), EntryChange(balanced, None))))
    assert [ping(place, VIP[version]) for place in places] == [1] * 4
    assert ping(net.client, LB[version], wait=QUIET) == 0
    plane.load(plan_of(cluster))
    assert ping(net.client, VIP[version], wait=QUIET) == 0
    plane.load(plan_of(cluster, node=ANSWERING))
    plane.cleanup()
    assert netns.in_netns(net.node, answered_pings) is None


@BOTH
def test_an_address_answers_as_long_as_one_of_its_services_does(net: Network, version: int) -> None:
    """And with source ranges it does not: they say who may come in."""
    plane = netns.in_netns(net.node, NftablesPlane)
    first = entry(version, pods(version, 0), name="a")
    second = entry(version, pods(version, 1), name="b", port=81)
    limited = entry(
        version, pods(version, 0), kind=FrontendKind.LOAD_BALANCER, address=LB[version], name="c",
        ranges=SourceRanges(("192.0.2.0/24",) if version == 4 else ("2001:db8::/64",)),
    )  # fmt: skip
    plane.load(plan_of(first, second, limited, node=ANSWERING))
    plane.apply(PlanChange((EntryChange(first, None),)))
    assert (ping(net.client, VIP[version]), ping(net.client, LB[version], wait=QUIET)) == (1, 0)
    plane.apply(PlanChange((EntryChange(second, None),)))
    assert ping(net.client, VIP[version], wait=QUIET) == 0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    spec = LabSpec(name=f"ping{os.getpid()}", nodes=2, pods=(2, 1), ipv6=True, pod_link=PodLink.BRIDGE)
    with Lab.up(spec) as lab:
        yield lab


@pytest.mark.parametrize("variant", ["nftables", "ebpf"])
def test_every_mode_answers_alike(lab: Lab, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lab_proxies.node_config

    def answering(spec: LabSpec, node: Node, mode: str, *forwarding: Any) -> NodeConfig:
        return msgspec.structs.replace(plain(spec, node, mode, *forwarding), answer_ping=True)

    monkeypatch.setattr(lab_proxies, "node_config", answering)
    places = [lab.place(name).netns for name in ("client", "pod1-1", "pod2-1", "node1")]
    with lab_proxy(lab, variant) as proxy:
        proxy.update([service(), *endpoints(lab, "pod1-1", "pod2-1")])
        for address in LAB_VIP.values():
            assert [ping(place, address, 2) for place in places] == [2] * 4
        proxy.update(endpoints(lab))
        for address in LAB_VIP.values():
            assert [ping(place, address, wait=QUIET) for place in places] == [0] * 4
