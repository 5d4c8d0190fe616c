"""What becomes of flows between nodes when modes, endpoints and ways change: living connections go on."""

import json
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.traffic.probe import Outcome, Probe
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import PlanChange
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.forwarding import Forwarding
from tests.kernel.forwarding_lab import INGRESS, NODE_PORT, PORT, ForwardingLab, ask, forwarding_lab, host
from tests.kernel.packet_lab import counted

FAMILIES = (Family.IPV4, Family.IPV6)
HELD = 12
PODS = {"pod1-1", "pod2-1", "pod3-1"}


@pytest.fixture(scope="module")
def made() -> Iterator[ForwardingLab]:
    """The lab with XDP, and with clients and pods whose packets have finished checksums, or XDP would leave all to
    tc."""
    with forwarding_lab("flow", xdp=True) as lab:
        for place in (lab.lab.client, *lab.lab.pods):
            with Links(place.netns) as links:
                links.set_tx_checksum("eth0", False)
        yield lab


class Connection:
    """A connection of the outside client that is used again and again."""

    def __init__(self, made: ForwardingLab, address: str, port: int, own_port: int = 0) -> None:
        family = Family.IPV6 if ":" in address else Family.IPV4
        with netns(made.lab.client.netns):
            self.sock = socket.socket(family.socket_family, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        if own_port:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind((made.lab.client.addresses[family], own_port))
        self.sock.connect((address, port))
        self.server, self.client = self.ask()

    def ask(self) -> tuple[str, str]:
        """One exchange: who answered, and whom it saw."""
        server, client = ask(self.sock)
        return server, host(client)


def opened_to(made: ForwardingLab, address: str, port: int, count: int) -> list[Connection]:
    """So many connections, and more until every pod has one, which chance puts off for as long as it likes."""
    found: list[Connection] = []
    while len(found) < count or {connection.server for connection in found} != PODS:
        found.append(Connection(made, address, port))
        assert len(found) < count + 200, Counter(connection.server for connection in found)
    return found


def opened(made: ForwardingLab, family: Family, count: int = HELD) -> list[Connection]:
    """Connections to the node port of node 1, to all pods."""
    return opened_to(made, made.lab.nodes[0].addresses[family], NODE_PORT, count)


def used(connections: list[Connection]) -> None:
    """All of them still lead where they led, and are known there by the same address."""
    for connection in connections:
        assert connection.ask() == (connection.server, connection.client)


def test_connections_outlive_changes_of_mode(made: ForwardingLab) -> None:
    held: list[Connection] = []
    before = made.proxy.counters()
    for way in (Forwarding.SNAT, Forwarding.TUNNEL, Forwarding.DSR, Forwarding.SNAT, Forwarding.DSR, Forwarding.TUNNEL):
        made.use(way)
        fresh = [connection for family in FAMILIES for connection in opened(made, family)]
        held += fresh
        used(held)
        clients = {connection.client for connection in fresh}
        assert (clients == set(made.lab.client.addresses.values())) is (way is not Forwarding.SNAT)
    assert {connection.server for connection in held} == PODS
    now = made.proxy.counters()
    assert all(now[name] > before.get(name, 0) for name in ("xdp:forwarded", "xdp:flow", "xdp:reply")), now
    for connection in held:
        connection.sock.close()


@pytest.mark.parametrize("way", [Forwarding.DSR, Forwarding.TUNNEL])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_node_gets_another_address(made: ForwardingLab, way: Forwarding, family: Family) -> None:
    """The endpoint's, or that of the one that took the connection: nobody gets what is sent to the one before."""
    made.use(way)
    first, second, _ = made.lab.nodes
    held = [connection for connection in opened(made, family) if connection.server == "pod2-1"]
    used(held)
    for here, there in ((first, second), (second, first)):
        old, new = there.addresses[family], there.second[family]
        plane = made.proxy.nodes[here.name].plane
        with netns(here.netns), Links(here.netns) as links:
            before = neighbour(made, here.name, old)
            links.neighbour(here.uplink, new, before)
            links.neighbour(here.uplink, old, "02:00:00:00:00:01")
            try:
                plane.apply(PlanChange(tunnel_moves={old: new}))
                used(held)
            finally:
                plane.apply(PlanChange(tunnel_moves={new: old}))
                links.neighbour(here.uplink, old, before)
        used(held)
    for connection in held:
        connection.sock.close()


def neighbour(made: ForwardingLab, where: str, address: str) -> str:
    """The hardware address that a place of the lab knows for an address."""
    made.lab.run(where, ["ping", "-c", "1", address])
    [found] = json.loads(made.lab.run(where, ["ip", "-j", "neigh", "show", "to", address]).stdout)
    return str(found["lladdr"])


@pytest.mark.parametrize("way", [Forwarding.DSR, Forwarding.TUNNEL])
def test_an_endpoint_that_is_removed(made: ForwardingLab, way: Forwarding) -> None:
    """Its connections go on, nothing new comes, and datagrams find another one at once."""
    made.use(way)
    lab = made.lab
    address = lab.nodes[0].addresses[Family.IPV4]
    held = opened(made, Family.IPV4, 3 * HELD)
    assert {connection.server for connection in held} == PODS
    datagrams = Probe(address, NODE_PORT, Protocol.UDP, 60, timeout=60)
    assert {a.servers[0] for a in lab.probe("client", datagrams)[0].attempts} == PODS
    made.leave("pod3-1")
    try:
        used(held)
        for probe in (Probe(address, NODE_PORT, Protocol.TCP, 60, timeout=60), datagrams):
            [result] = lab.probe("client", probe)
            assert {a.outcome for a in result.attempts} == {Outcome.ANSWERED}
            assert {a.servers[0] for a in result.attempts} == {"pod1-1", "pod2-1"}
    finally:
        made.use(way)
    used(held)
    for connection in held:
        connection.sock.close()


def test_an_endpoint_that_only_its_own_node_knows_has_gone(made: ForwardingLab) -> None:
    """Node 1 goes on choosing it for a while: such packets are dropped by name, and the client's next SYN, for which
    node 1 has learnt it, finds another one."""
    made.use(Forwarding.DSR)
    address = made.lab.nodes[0].addresses[Family.IPV4]
    made.leave("pod3-1", "node3")
    with counted(made.proxy) as ways:
        [result] = made.lab.probe("client", Probe(address, NODE_PORT, Protocol.UDP, 60, timeout=5), concurrency=60)
    lost = [a for a in result.attempts if a.outcome is Outcome.TIMEOUT]
    assert ways["tc_ingress:tunnel_endpoint"] == len(lost) > 0
    made.leave("pod3-1")
    [result] = made.lab.probe("client", Probe(address, NODE_PORT, Protocol.TCP, 60, timeout=60))
    assert {a.servers[0] for a in result.attempts} == {"pod1-1", "pod2-1"}
    made.use(Forwarding.DSR)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", [Forwarding.DSR, Forwarding.TUNNEL])
def test_straight_to_the_endpoint_from_the_same_port(made: ForwardingLab, way: Forwarding, family: Family) -> None:
    """A client's connections to all pods, and one from the same port that is forwarded to one of them, which begins
    before or after: the pod tells them apart, and each goes on."""
    made.use(way)
    node_port = (made.lab.nodes[0].addresses[family], NODE_PORT)
    pods = {pod.name: (pod.addresses[family], PORT) for pod in made.lab.pods}
    reached: set[str] = set()
    ports = iter(range(21000, 21200))
    while (port := next(ports)) < 21016 or reached != set(pods):  # chance puts off the last pod for as long as it likes
        first = [Connection(made, *node_port, port)] if port % 2 else []
        straight = [Connection(made, *pod, port) for pod in pods.values()]
        forwarded = first or [Connection(made, *node_port, port)]
        used([*straight, *forwarded, *straight])
        assert [connection.server for connection in straight] == list(pods)
        reached.add(forwarded[0].server)
        for connection in (*straight, *forwarded):
            connection.sock.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", [Forwarding.DSR, Forwarding.TUNNEL])
def test_a_client_comes_by_its_endpoints_own_node(made: ForwardingLab, way: Forwarding, family: Family) -> None:
    """The network moves a connection to the load-balancer IP from node 1 to node 2, and back: its endpoint's node goes
    on with it, and answers go where it comes from."""
    made.use(way)
    try:
        connections = opened_to(made, INGRESS[family], 80, 2 * HELD)
        moved = [connection for connection in connections if connection.server == "pod2-1"]
        for entry in ("node2", "node1", "node2"):
            made.lab.set_entry(entry)
            used(moved)
    finally:
        made.lab.set_entry("node1")
    for connection in connections:
        connection.sock.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", [Forwarding.DSR, Forwarding.TUNNEL])
def test_a_connection_moves_to_another_node(made: ForwardingLab, way: Forwarding, family: Family) -> None:
    """The network moves connections from node to node, as when one of them dies. By a Maglev table each finds the same
    endpoint, so all go on; by chance those of an endpoint elsewhere are lost."""
    made.use(way, algorithm=Algorithm.MAGLEV)
    try:
        connections = opened_to(made, INGRESS[family], 80, 2 * HELD)
        for entry in ("node2", "node3", "node1", "node3"):
            made.lab.set_entry(entry)
            used(connections)
    finally:
        made.lab.set_entry("node1")
        made.use(way)
    for connection in connections:
        connection.sock.close()
