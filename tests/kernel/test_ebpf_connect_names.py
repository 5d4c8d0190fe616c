"""From whom a UDP socket hears: from whom it asked, over the complete slow path, which takes what a socket cannot tell
apart by itself."""

import socket
from collections.abc import Iterator

import pytest

from dataplane.kernel.namespaces import netns
from dataplane.kernel.netlink.links import Links
from dataplane.model.net import Family, Protocol
from dataplane.plan.types import PlanEntry
from dataplane.planes.ebpf.attach.programs import ConnectHook
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.policy.endpoints import Backend
from tests.kernel.ebpf_lab import (
    BACKEND_PORT,
    BACKENDS,
    CLUSTER_IP,
    SMALL,
    Node,
    Process,
    built_node,
    plan_of,
    service,
)

SECOND = {Family.IPV4: "172.30.0.20", Family.IPV6: "fd00:30::20"}
FAMILIES = (Family.IPV4, Family.IPV6)


class Talk:
    """A UDP socket of a pod. mapped: an IPv6 socket that uses IPv4-mapped addresses."""

    def __init__(self, pod: Process, family: Family, mapped: bool) -> None:
        self._pod, self._mapped = pod, mapped
        kind = socket.AF_INET6 if mapped else family.socket_family
        pod.call("open", "s", kind, socket.SOCK_DGRAM)

    def name(self, address: str) -> str:
        """An address as this socket writes it."""
        return f"::ffff:{address}" if self._mapped else address

    def ask(self, address: str, port: int) -> str:
        """sendto; out: who answered. It must be heard from whom it was asked."""
        server, sender = self._pod.call("ask_at", "s", self.name(address), port)
        assert sender == (self.name(address), port)
        return str(server)

    def connect(self, address: str, port: int) -> None:
        assert self._pod.call("connect", "s", self.name(address), port) == (self.name(address), port)

    def disconnect(self) -> None:
        self._pod.call("disconnect", "s")

    def close(self) -> None:
        self._pod.call("close", "s")


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with built_node("name") as node:
        with Links(node.names["node"]) as links:  # a node has a way to addresses that nobody has: its default route
            for cidr in ("172.30.0.0/16", "fd00:30::/64"):
                links.route(cidr, device="to-back")
        yield node


@pytest.fixture(scope="module")
def plane(node: Node) -> Iterator[EbpfPlane]:
    with netns.netns(node.names["node"]):
        plane = EbpfPlane(NftablesPlane(), [ConnectHook(node.group)], SMALL)
        plane.load(plan_of(*(entry for family in FAMILIES for entry in services(family))))
    try:
        yield plane
    finally:
        with netns.netns(node.names["node"]):
            plane.cleanup()


def services(family: Family) -> list[PlanEntry]:
    """Three endpoints behind one address, and one of them behind another address as well."""
    one = (Backend(BACKENDS[family][0], BACKEND_PORT),)
    return [
        service(f"three-{family.name}", Protocol.UDP, family),
        service(f"one-{family.name}", Protocol.UDP, family, backends=one, address=SECOND[family]),
    ]


@pytest.fixture(params=["IPv4", "IPv6", "IPv4-mapped"])
def kind(request: pytest.FixtureRequest) -> tuple[Family, bool]:
    return Family.IPV6 if request.param == "IPv6" else Family.IPV4, request.param == "IPv4-mapped"


@pytest.fixture(params=["pod", "node"])
def talk(request: pytest.FixtureRequest, node: Node, plane: EbpfPlane, kind: tuple[Family, bool]) -> Iterator[Talk]:
    talk = Talk(node.process(request.param), *kind)
    yield talk
    talk.close()


def test_a_connected_socket_that_names_its_peer_is_answered(talk: Talk, kind: tuple[Family, bool]) -> None:
    vip = CLUSTER_IP[kind[0]]
    talk.connect(vip, 80)
    assert len({talk.ask(vip, 80) for _ in range(12)}) == 1


def test_asked_by_the_service_and_then_directly(talk: Talk, kind: tuple[Family, bool]) -> None:
    family = kind[0]
    for _ in range(3):
        server = talk.ask(CLUSTER_IP[family], 80)
        assert talk.ask(server, BACKEND_PORT) == server
        for other in BACKENDS[family]:
            assert talk.ask(other, BACKEND_PORT) == other
        assert talk.ask(CLUSTER_IP[family], 80) in BACKENDS[family]


def test_asked_directly_and_then_by_the_service(talk: Talk, kind: tuple[Family, bool]) -> None:
    family = kind[0]
    for address in BACKENDS[family]:
        assert talk.ask(address, BACKEND_PORT) == address
    for _ in range(3):
        assert talk.ask(SECOND[family], 80) == BACKENDS[family][0]
        assert talk.ask(BACKENDS[family][0], BACKEND_PORT) == BACKENDS[family][0]


def test_two_services_over_one_endpoint(talk: Talk, kind: tuple[Family, bool]) -> None:
    family = kind[0]
    for _ in range(3):
        assert talk.ask(SECOND[family], 80) == BACKENDS[family][0]
        first = talk.ask(CLUSTER_IP[family], 80)
        assert {talk.ask(CLUSTER_IP[family], 80) for _ in range(4)} == {first}


def test_connected_anew(talk: Talk, kind: tuple[Family, bool]) -> None:
    """To another Service, to an endpoint by its own name, to nobody."""
    family = kind[0]
    for address, port in ((CLUSTER_IP[family], 80), (SECOND[family], 80), (BACKENDS[family][0], BACKEND_PORT)) * 2:
        talk.connect(address, port)
        talk.ask(address, port)


def test_disconnected_by_hand(talk: Talk, kind: tuple[Family, bool]) -> None:
    """connect(AF_UNSPEC) undoes connect; what is asked then is heard by the name that it was asked by. An IPv6 socket
    goes on hearing only its last peer's address, Service or not (Linux 6.18; findings/udp6-disconnect.sh)."""
    family = kind[0]
    asked = [(SECOND[family], 80), (BACKENDS[family][0], BACKEND_PORT)]
    for address, port in asked if family is Family.IPV6 else [*asked, (CLUSTER_IP[family], 80)]:
        talk.connect(SECOND[family], 80)
        talk.disconnect()
        talk.ask(address, port)
