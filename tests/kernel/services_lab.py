"""A lab of two nodes that forward to each other's endpoints, by Services as an API server has them. Node 1 has tc and
XDP, node 2 tc alone."""

import itertools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from msgspec.structs import replace

from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import LabSpec, Node
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import Endpoint, EndpointSlice, ObjectRef, Service, ServiceType, make_endpoint
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.attach.devices import DeviceSelection
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.policy.forwarding import LbMode, TunnelPeer
from tests.kernel.ebpf_lab import SMALL
from tests.kernel.forwarding_lab import ask, host
from tests.kernel.test_behaviours import endpoints, service

PODS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
FAMILIES = (Family.IPV4, Family.IPV6)
PROTOCOLS = (Protocol.TCP, Protocol.UDP)
KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
EXTERNAL = {Family.IPV4: "203.0.113.77", Family.IPV6: "2001:db8:77::77"}
NODE_PORT, PORT = 30091, 8080
SOURCES = {
    Family.IPV4: [f"198.51.100.{number}" for number in range(30, 42)],
    Family.IPV6: [f"fd00:198:51:100::{number}" for number in range(30, 42)],
}
"""More addresses of the outside client."""
_ports = itertools.cycle(range(10000, 30000))


def web(mode: str, **fields: object) -> Service:
    """A Service over TCP and UDP at a node port and a load-balancer IP, with this forwarding mode."""
    made = service(*PROTOCOLS, node_port=NODE_PORT, type=ServiceType.LOAD_BALANCER)
    return replace(made, load_balancer_ips=tuple(EXTERNAL.values()), forwarding_mode=mode, **fields)


class Held:
    """A connection, or a socket for datagrams, that is used again and again. server: who answered first, client: whom
    it saw."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.server, self.client = self.ask()

    def ask(self) -> tuple[str, str]:
        """One exchange: who answered, and whom it saw, address and port."""
        return ask(self.sock)

    def goes_on(self) -> bool:
        """Whether it leads where it led, and is known there by the same address."""
        return self.ask() == (self.server, self.client)

    @property
    def known_as(self) -> str:
        """The client's address as the server saw it first."""
        return host(self.client)


class ServicesLab:
    """The lab and its proxies."""

    def __init__(self, lab: Lab, proxy: LabProxy) -> None:
        self.lab, self.proxy = lab, proxy
        self.clients = lab.client.addresses

    def serve(self, mode: str, *places: str, **fields: object) -> None:
        """Have a new Service with this mode lead to pods, or to nodes' own addresses."""
        self.proxy.update(deletes=[ObjectRef("Service", "default", "web")])
        self.proxy.update([web(mode, **fields), *self.slices(*places)])

    def slices(self, *places: str, **conditions: bool) -> list[EndpointSlice]:
        """Slices of both families with these places as endpoints in this condition."""

        def name(place: str) -> str:
            return place if place.startswith("node") else f"node{place[3]}"

        def made(place: str, family: Family) -> Endpoint:
            endpoint = make_endpoint(self.lab.place(place).addresses[family], node=name(place))
            return replace(endpoint, traits=replace(endpoint.traits, **conditions))

        return [
            replace(piece, endpoints=tuple(made(place, piece.family) for place in places))
            for piece in endpoints(self.lab)
        ]

    def socket(
        self,
        family: Family,
        kind: socket.SocketKind,
        *,
        to: tuple[str, int] | None = None,
        source: str = "",
        options: Sequence[tuple[int, int, bytes]] = (),
    ) -> socket.socket:
        """A socket of the outside client, connected, to the load-balancer IP if nothing else is said. From a port that
        none came from before: of one chosen at random, programs or connection tracking may still know a flow."""
        with netns(self.lab.client.netns):
            sock = socket.socket(family.socket_family, kind)
        sock.settimeout(60)
        for option in options:
            sock.setsockopt(*option)
        sock.bind((source, next(_ports)))
        sock.connect(to or (EXTERNAL[family], 80))
        return sock

    @contextmanager
    def held(self, count: int, families: Sequence[Family] = FAMILIES) -> Iterator[list[Held]]:
        """So many connections and as many sockets for datagrams of each family, which are closed at the end."""
        with ExitStack() as stack:
            yield [
                Held(stack.enter_context(self.socket(family, kind)))
                for family in families
                for kind in KINDS
                for _ in range(count)
            ]

    def set_peers(self, node: str, *others: str) -> None:
        """Have a node know these others as those that take what it forwards, and no more."""
        each = self.proxy.nodes[node]
        now = each.planner.plan.node
        peers = tuple(
            TunnelPeer(other.name, address)
            for other in self.lab.nodes
            if other.name in others
            for address in other.addresses.values()
        )
        change = each.planner.set_node(replace(now, lb_peers=peers))
        with netns(each.node.netns):
            each.plane.apply(change)


def _nothing(lab: Lab) -> None:
    """Leave a lab as it is."""


@contextmanager
def services_lab(
    word: str, prepare: Callable[[Lab], None] = _nothing, uplinks: tuple[str, ...] = ()
) -> Iterator[ServicesLab]:
    """The lab, with two pods on each node, and echo servers in pods and nodes. prepare: called before nodes have
    programs. uplinks: globs, none: they are found."""

    def make(lab: Lab, node: Node) -> Plane:
        sizes = replace(SMALL, slots=1 << 17)  # with room for Maglev tables
        hook = PacketHook(DeviceSelection(uplinks=uplinks), xdp=node.name == "node1")
        return EbpfPlane(NftablesPlane(), [hook], sizes)

    spec = LabSpec(name=f"{word}{os.getpid()}", nodes=2, pods=2, ipv6=True)
    with Lab.up(spec) as lab:
        prepare(lab)
        with LabProxy(lab, "ebpf", make, lb_mode=LbMode.SNAT) as proxy, Links(lab.client.netns) as links:
            lab.start_echo([*lab.pods, *lab.nodes], [PORT])
            for family, length in ((Family.IPV4, 24), (Family.IPV6, 64)):
                for address in SOURCES[family]:
                    links.address("eth0", f"{address}/{length}", deprecated=True)
            yield ServicesLab(lab, proxy)
