"""What a Service does over time, in every mode, with real sockets: affinity, stale UDP, ports that differ by slice."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from itertools import product

import pytest
from msgspec.structs import replace
from pyroute2 import IPRoute

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import LabSpec, Node
from dataplane.lab.traffic.probe import Outcome, Probe, split_port
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
    ServiceCIDR,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.model.objects import Node as NodeObject
from dataplane.oracle.decide import Packet
from dataplane.plan.change import PlanChange
from dataplane.plan.places import Places
from dataplane.planes.conntrack import clean_stale_udp
from tests.kernel.modes import MODES, lab_proxy

VIP = {Family.IPV4: "10.96.7.1", Family.IPV6: "fd00:10:96::7:1"}
EXTERNAL = "203.0.113.77"
PORTS = (8080, 8081)
CLIENT = "pod1-4"
_NODAD = 2
FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.name)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name=f"b{os.getpid()}", nodes=2, pods=(4, 1), ipv6=True)) as lab:
        lab.start_echo([pod for pod in lab.pods if pod.name != CLIENT], PORTS)
        yield lab


@pytest.fixture(params=MODES)
def proxy(request: pytest.FixtureRequest, lab: Lab) -> Iterator[LabProxy]:
    with lab_proxy(lab, request.param) as proxy:
        yield proxy


def service(*protocols: Protocol, node_port: int = 0, **fields: object) -> Service:
    ports = tuple(ServicePortSpec(p.text, p, 80, node_port) for p in protocols or (Protocol.TCP,))
    kind = ServiceType.NODE_PORT if node_port else ServiceType.CLUSTER_IP
    return replace(Service("default", "web", kind, tuple(VIP.values()), ports=ports), **fields)


def endpoints(lab: Lab, *pods: str, name: str = "web", port: int = PORTS[0]) -> list[EndpointSlice]:
    """Slices of both families with these pods as ready endpoints."""
    made = []
    for family in Family:
        items = tuple(make_endpoint(lab.place(pod).addresses[family], node=f"node{pod[3]}") for pod in pods)
        ports = tuple(EndpointPort(protocol.text, protocol, port) for protocol in (Protocol.TCP, Protocol.UDP))
        made.append(EndpointSlice("default", f"{name}-{family.name}", "web", family, ports, items))
    return made


def servers(lab: Lab, family: Family, count: int = 20, **options: object) -> set[str]:
    """Who answers `count` connections of the client; every one must be answered."""
    probe = replace(Probe(VIP[family], 80, count=count, timeout=60.0), **options)
    (result,) = lab.probe(CLIENT, probe)
    assert result.count(Outcome.ANSWERED) == count, result.outcomes
    return set(result.servers)


def patience(wanted: Outcome) -> float:
    """Seconds for an outcome: silence is believed after one, anything else may take a busy machine long."""
    return 1.0 if wanted is Outcome.TIMEOUT else 60.0


def outcome(lab: Lab, probe: Probe, place: str = CLIENT) -> Outcome:
    return lab.probe(place, probe)[0].attempts[0].outcome


@FAMILIES
def test_affinity_sticks_moves_only_with_its_endpoint_and_expires(lab: Lab, proxy: LabProxy, family: Family) -> None:
    pods = ("pod1-1", "pod1-2", "pod1-3", "pod2-1")
    proxy.update([service(affinity_seconds=600), *endpoints(lab, *pods)])
    (mine,) = servers(lab, family)
    others = [pod for pod in pods if pod != mine]
    # Endpoints come and go, but not this one: the client stays.
    proxy.update(endpoints(lab, mine, others[0]))
    assert servers(lab, family) == {mine}
    proxy.update(endpoints(lab, *pods))
    assert servers(lab, family) == {mine}
    # Its own endpoint goes: the client moves at once, and then stays there even when the old one is back.
    proxy.update(endpoints(lab, *others))
    (now,) = servers(lab, family)
    assert now in others
    proxy.update(endpoints(lab, *pods))
    assert servers(lab, family) == {now}
    # After the timeout it is chosen anew: in twelve periods some choice differs (one in 4^12 would not).
    proxy.update([service(affinity_seconds=2)])
    (now,) = servers(lab, family, 1)
    seen = {now}
    for _ in range(12):
        time.sleep(2.2)
        seen |= servers(lab, family, 1)
        if len(seen) > 1:
            break
    assert len(seen) > 1


@FAMILIES
def test_affinity_lasts_from_the_last_new_connection(lab: Lab, proxy: LabProxy, family: Family) -> None:
    timeout = 5.0
    proxy.update([service(affinity_seconds=5), *endpoints(lab, "pod1-1", "pod1-2", "pod1-3", "pod2-1")])
    began = last = time.monotonic()
    (mine,) = servers(lab, family)
    while last - began < timeout + 1:  # longer than the timeout together, each much shorter
        time.sleep(1.5)
        before, last = last, time.monotonic()
        found = servers(lab, family, 2)
        if time.monotonic() - before < timeout:
            assert found == {mine}
        else:  # on a busy machine the timeout was over meanwhile: from the beginning
            began, (mine,) = last, found


@FAMILIES
def test_udp_flow_follows_every_change(lab: Lab, proxy: LabProxy, family: Family) -> None:
    """One client socket address, used all the time: its conntrack entry must never outlive the decision it holds."""
    node = lab.place("node1").addresses[family]
    flow = Probe(VIP[family], 80, Protocol.UDP, source_port=45001, timeout=60.0)
    port = Probe(node, 30080, Protocol.UDP, source_port=45002, timeout=60.0)

    def ask(probe: Probe) -> str:
        attempt = lab.probe(CLIENT, probe)[0].attempts[0]
        return attempt.server or attempt.outcome

    udp = service(Protocol.UDP, node_port=30080)
    proxy.update([udp, *endpoints(lab, "pod1-1")])
    assert (ask(flow), ask(port)) == ("pod1-1", "pod1-1")
    proxy.update(endpoints(lab, "pod1-2"))  # endpoint replaced
    assert (ask(flow), ask(port)) == ("pod1-2", "pod1-2")
    proxy.update(endpoints(lab))  # scaled to zero
    assert (ask(flow), ask(port)) == (Outcome.REFUSED, Outcome.REFUSED)
    proxy.update(endpoints(lab, "pod1-3"))  # and back
    assert (ask(flow), ask(port)) == ("pod1-3", "pod1-3")
    proxy.update([service(Protocol.UDP, node_port=30081)])  # node port changed
    assert ask(port) != "pod1-3"
    assert ask(replace(port, port=30081)) == "pod1-3"
    proxy.update([], [udp.ref])  # Service deleted
    assert ask(flow) not in {"pod1-1", "pod1-2", "pod1-3"}
    proxy.update([udp])  # and created again, while the client kept sending
    assert (ask(flow), ask(port)) == ("pod1-3", "pod1-3")


@FAMILIES
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_udp_flows_stay_while_their_endpoint_serves(lab: Lab, mode: str, family: Family) -> None:
    """To a pod that drains, by clusterIP and node port, through changes of policy and a load by another mode."""
    node = lab.place("node1").addresses[family]
    flow = Probe(VIP[family], 80, Protocol.UDP, source_port=45101, timeout=60.0)
    port = Probe(node, 30083, Protocol.UDP, source_port=45102, timeout=60.0)

    def ask() -> set[str]:
        return {attempt.server or attempt.outcome for p in (flow, port) for attempt in lab.probe(CLIENT, p)[0].attempts}

    def slices(**conditions: bool) -> list[EndpointSlice]:
        """pod1-1 in this condition, pod1-2 ready."""

        def with_conditions(endpoint: Endpoint) -> Endpoint:
            return replace(endpoint, traits=replace(endpoint.traits, **conditions))

        return [
            replace(piece, endpoints=(with_conditions(piece.endpoints[0]), piece.endpoints[1]))
            for piece in endpoints(lab, "pod1-1", "pod1-2")
        ]

    udp = service(Protocol.UDP, node_port=30083)
    draining = slices(ready=False, terminating=True)
    with lab_proxy(lab, mode) as proxy:
        proxy.update([udp, *endpoints(lab, "pod1-1")])
        assert ask() == {"pod1-1"}
        for change in (draining, [replace(udp, external_local=True)], [replace(udp, internal_local=True)]):
            proxy.update(change)
            assert ask() == {"pod1-1"}, change
        second = MODES[1 - MODES.index(mode)]
        with lab_proxy(lab, second) as other:
            other.update([udp, *draining])
            planner = other.nodes["node1"].planner
            with netns(lab.nodes[0].netns):
                clean_stale_udp(PlanChange(), planner.plan.node, planner.plan)  # as after a load
            assert ask() == {"pod1-1"}
            other.update(slices(ready=False, serving=False, terminating=True))
            assert ask() == {"pod1-2"}


@FAMILIES
def test_established_tcp_stays_when_other_endpoints_change(lab: Lab, proxy: LabProxy, family: Family) -> None:
    proxy.update([service(), *endpoints(lab, "pod1-1")])
    probe = Probe(VIP[family], 80, packets=2, timeout=60.0)
    proxy.update(endpoints(lab, "pod1-1", "pod1-2"))
    (result,) = lab.probe(CLIENT, replace(probe, count=20))
    assert all(len(attempt.servers) == 2 and len(set(attempt.servers)) == 1 for attempt in result.attempts)


def connection(lab: Lab, family: Family, place: str, source_port: int, address: str, port: int) -> socket.socket:
    """A TCP connection from this port, which others may be using too."""
    with netns(lab.place(place).netns):
        sock = socket.socket(family.socket_family, socket.SOCK_STREAM)
    sock.settimeout(60)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((lab.place(place).addresses[family], source_port))
    sock.connect((address, port))
    return sock


@FAMILIES
@pytest.mark.parametrize("first", ["own node", "other node"])
def test_two_nodes_point_one_source_port_at_one_endpoint(lab: Lab, proxy: LabProxy, family: Family, first: str) -> None:
    """A pod's connections to a clusterIP, which its own node translates, and to another node's port, from one source
    port: neither node masquerades, so the endpoint would see them as one."""
    proxy.update([service(node_port=30077, external_local=True), *endpoints(lab, "pod1-1")])
    ways = {"own node": (VIP[family], 80), "other node": (lab.nodes[0].addresses[family], 30077)}
    order = sorted(ways, key=lambda way: way != first)
    source_port = 20000 + 1000 * MODES.index(proxy.mode) + 10 * list(Family).index(family) + order.index("own node")
    socks = [connection(lab, family, "pod2-1", source_port, *ways[way]) for way in order]
    try:
        for sock in [*socks, *socks]:
            sock.sendall(b"?\n")
            assert b"pod1-1" in sock.recv(4096)
    finally:
        for sock in socks:
            sock.close()


@FAMILIES
def test_port_number_may_differ_by_slice(lab: Lab, proxy: LabProxy, family: Family) -> None:
    first, second = endpoints(lab, "pod1-1", name="a"), endpoints(lab, "pod1-2", name="b", port=PORTS[1])
    proxy.update([service(), *first, *second])
    assert servers(lab, family, 40) == {"pod1-1", "pod1-2"}
    # The second pod at a port where nobody listens: its share is refused.
    closed = endpoints(lab, "pod1-2", name="b", port=9)
    proxy.update(closed)
    (result,) = lab.probe(CLIENT, Probe(VIP[family], 80, count=40, timeout=60.0))
    assert set(result.servers) == {"pod1-1"}
    assert result.count(Outcome.REFUSED) > 0


@FAMILIES
def test_unknown_port_of_a_cluster_ip(lab: Lab, proxy: LabProxy, family: Family) -> None:
    proxy.update([service(), *endpoints(lab, "pod1-1")])
    wanted = Outcome.ERROR if proxy.mode == "iptables" else Outcome.REFUSED
    for protocol in (Protocol.TCP, Protocol.UDP):
        assert outcome(lab, Probe(VIP[family], 81, protocol, timeout=patience(wanted))) is wanted


SERVICE_CIDR = ServiceCIDR("kubernetes", ("10.96.0.0/16", "fd00:10:96::/108"))
ELSEWHERE = {Family.IPV4: "10.96.9.9", Family.IPV6: "fd00:10:96::9:9"}
HELD = {Family.IPV4: "10.96.9.10", Family.IPV6: "fd00:10:96::9:10"}


@contextlib.contextmanager
def other_proxy(node: Node, family: Family, backend: str) -> Iterator[None]:
    """Another proxy on a node, whose nat chains come after hotplane's."""
    word, target = ("ip", backend) if family is Family.IPV4 else ("ip6", f"[{backend}]")
    rule = f"{word} daddr {ELSEWHERE[family]} tcp dport 80 dnat to {target}:{PORTS[0]}"
    hooks = {"prerouting": -95, "output": -95}
    chains = "".join(f"chain {h} {{ type nat hook {h} priority {p};\n {rule}\n }}\n" for h, p in hooks.items())
    with netns(node.netns):
        subprocess.run(["nft", "-f", "-"], input=f"table {word} other {{\n{chains}}}\n", text=True, check=True)
    try:
        yield
    finally:
        with netns(node.netns):
            subprocess.run(["nft", "delete", "table", word, "other"], check=True)


@FAMILIES
def test_what_another_proxy_serves_passes(lab: Lab, proxy: LabProxy, family: Family) -> None:
    elsewhere = replace(service(cluster_ips=tuple(ELSEWHERE.values())), name="elsewhere", proxied_elsewhere=True)
    proxy.update([SERVICE_CIDR, elsewhere, service(), *endpoints(lab, "pod1-1")])
    probe = Probe(ELSEWHERE[family], 80, timeout=60.0)
    unclaimed = Outcome.ERROR if proxy.mode == "iptables" else Outcome.TIMEOUT
    for place in (CLIENT, "node1"):
        assert outcome(lab, replace(probe, timeout=patience(unclaimed)), place) is unclaimed, place
    with other_proxy(lab.nodes[0], family, lab.place("pod1-1").addresses[family]):
        for place in (CLIENT, "node1"):
            assert outcome(lab, probe, place) is Outcome.ANSWERED, place


@FAMILIES
def test_an_address_of_the_service_range_that_the_node_holds_is_its_own(
    lab: Lab, proxy: LabProxy, family: Family
) -> None:
    """Of a server on the node, such as a DNS cache: one that no Service has, and ports that a Service does not have."""
    proxy.update([SERVICE_CIDR, service(), *endpoints(lab, "pod1-1")])
    bits = family.bits
    with netns(lab.nodes[0].netns), IPRoute() as ipr, contextlib.ExitStack() as servers:
        loopback = ipr.link_lookup(ifname="lo")[0]
        for address, port in ((HELD[family], 80), (VIP[family], 81)):
            ipr.addr("replace", index=loopback, address=address, prefixlen=bits, flags=_NODAD)
            servers.callback(ipr.addr, "del", index=loopback, address=address, prefixlen=bits)
            server = socket.create_server((address, port), family=family.socket_family)
            servers.enter_context(server)
            for place in (CLIENT, "node1"):
                with netns(lab.place(place).netns):
                    client = socket.socket(family.socket_family)
                servers.enter_context(client)
                client.settimeout(60.0)
                client.connect((address, port))


def test_reject_and_drop_differ_on_the_wire(lab: Lab, proxy: LabProxy) -> None:
    """A capture of what comes back: ICMP port unreachable for a reject, nothing at all for a drop."""
    proxy.update([service(external_ips=(EXTERNAL,), external_local=True), *endpoints(lab)])
    rejected = lab.probe("client", Probe(EXTERNAL, 80, timeout=60.0))[0].attempts[0]
    assert (rejected.outcome, rejected.detail) == (Outcome.REFUSED, "icmp")
    proxy.update(endpoints(lab, "pod2-1"))  # endpoints elsewhere only: node 1 drops
    assert outcome(lab, Probe(EXTERNAL, 80, timeout=1.0), "client") is Outcome.TIMEOUT
    assert outcome(lab, Probe(EXTERNAL, 80, timeout=60.0)) is Outcome.ANSWERED  # its pods still reach them


GUARDED = ("203.0.113.78", "203.0.113.79")


def guarded(lab: Lab, *ranges: str) -> Service:
    """A Service with two LB IPs, one of which is its externalIP too, that lets these sources in."""
    return service(
        type=ServiceType.LOAD_BALANCER, external_ips=GUARDED[:1], load_balancer_ips=GUARDED, source_ranges=ranges
    )


def test_source_ranges_hold_on_an_external_ip_that_is_a_load_balancer_ip(lab: Lab, proxy: LabProxy) -> None:
    client = lab.client.addresses[Family.IPV4]
    for ranges, wanted in (((f"{client}/32",), Outcome.ANSWERED), (("192.0.2.0/24",), Outcome.TIMEOUT)):
        proxy.update([guarded(lab, *ranges), *endpoints(lab, "pod1-1", "pod2-1")])
        for address in GUARDED:
            assert outcome(lab, Probe(address, 80, timeout=patience(wanted)), "client") is wanted, (address, ranges)


def test_source_ranges_without_endpoints(lab: Lab, proxy: LabProxy) -> None:
    client = lab.client.addresses[Family.IPV4]
    proxy.update([guarded(lab, "192.0.2.0/24"), *endpoints(lab)])
    wanted = Outcome.REFUSED if proxy.mode == "iptables" else Outcome.TIMEOUT
    assert [outcome(lab, Probe(address, 80, timeout=patience(wanted)), "client") for address in GUARDED] == [wanted] * 2
    proxy.update([guarded(lab, f"{client}/32")])
    assert [outcome(lab, Probe(address, 80, timeout=60.0), "client") for address in GUARDED] == [Outcome.REFUSED] * 2
    proxy.update(endpoints(lab, "pod2-1"))
    assert [outcome(lab, Probe(address, 80, timeout=60.0), "client") for address in GUARDED] == [Outcome.ANSWERED] * 2


def test_each_load_balancer_ip_may_be_the_source_where_the_node_is_in_the_ranges(lab: Lab, proxy: LabProxy) -> None:
    """A node that holds both VIPs sends to one from the other."""
    node = lab.nodes[0]
    with netns(node.netns), IPRoute() as ipr:
        loopback = ipr.link_lookup(ifname="lo")[0]
        for address in GUARDED:
            ipr.addr("replace", index=loopback, address=address, prefixlen=32)
        try:
            for ranges, wanted in ((f"{node.addresses[Family.IPV4]}/32", True), ("192.0.2.0/24", False)):
                proxy.update([guarded(lab, ranges), *endpoints(lab, "pod1-1")])
                for source, target in product(GUARDED, GUARDED):
                    assert _answered(source, target, 20.0 if wanted else 1.0) == wanted, (source, target, ranges)
        finally:
            for address in GUARDED:
                ipr.addr("del", index=loopback, address=address, prefixlen=32)


def _answered(source: str, target: str, seconds: float) -> bool:
    with socket.socket() as sock:
        sock.settimeout(seconds)
        sock.bind((source, 0))
        try:
            sock.connect((target, 80))
        except TimeoutError:
            return False
        return True


def test_headless_and_external_name_have_no_frontend(lab: Lab, proxy: LabProxy) -> None:
    silent = [
        service(headless=True, cluster_ips=(), external_ips=(EXTERNAL,)),
        replace(service(type=ServiceType.EXTERNAL_NAME, cluster_ips=(), external_ips=(EXTERNAL,)), name="named"),
    ]
    proxy.update([*silent, *endpoints(lab, "pod1-1")])
    assert outcome(lab, Probe(EXTERNAL, 80, timeout=60.0)) is Outcome.ERROR
    direct = Probe(lab.place("pod1-1").addresses[Family.IPV4], PORTS[0], timeout=60.0)
    assert outcome(lab, direct) is Outcome.ANSWERED


def test_terminating_endpoints_serve_until_a_ready_one_is_there(lab: Lab, proxy: LabProxy) -> None:
    going = [
        replace(
            piece,
            endpoints=tuple(
                replace(e, traits=replace(e.traits, ready=False, terminating=True)) for e in piece.endpoints
            ),
        )
        for piece in endpoints(lab, "pod1-1", name="old")
    ]
    proxy.update([service(), *going])
    assert servers(lab, Family.IPV4) == {"pod1-1"}
    proxy.update(endpoints(lab, "pod1-2", name="new"))
    assert servers(lab, Family.IPV4) == {"pod1-2"}


def hairpin(lab: Lab, family: Family) -> tuple[str, str]:
    """pod1-1 through the Service to itself: how it ends, and whom it sees ("" while nothing answers)."""
    attempt = lab.probe("pod1-1", Probe(VIP[family], 80, timeout=60.0))[0].attempts[0]
    return attempt.outcome, split_port(attempt.client)[0] if attempt.client else ""


@FAMILIES
@pytest.mark.parametrize(
    ("named", "others"),
    [("", ()), ("", ("node1", "node2")), ("nobody", ()), ("nobody", ("node1", "node2"))],
    ids=["no node name", "no node name, nodes known", "a name of nobody's", "a name of nobody's, nodes known"],
)
@pytest.mark.parametrize("mode", ["iptables", "nftables", "ebpf-tc"])
def test_a_pod_reaches_itself_whatever_node_its_endpoint_names(
    lab: Lab, mode: str, family: Family, named: str, others: tuple[str, ...]
) -> None:
    """Nothing tells that it runs here, nor that it does not: masqueraded as the oracle says, or it would never hear."""
    with lab_proxy(lab, mode) as proxy:
        for node in proxy.nodes.values():
            node.planner.places = Places(node.node.name, vouched=False)
        slices = [
            replace(piece, endpoints=tuple(replace(e, traits=replace(e.traits, node=named)) for e in piece.endpoints))
            for piece in endpoints(lab, "pod1-1")
        ]
        away = replace(endpoints(lab, "pod2-1", name="away")[0], service="away")  # confirms the name of node 2 only
        proxy.update([service(), *slices, away, *(NodeObject(name) for name in others)])
        packet = Packet(lab.place("pod1-1").addresses[family], VIP[family], 80, Protocol.TCP)
        assert proxy.oracles()["node1"].decide(packet).masquerade
        outcome, seen = hairpin(lab, family)
    assert outcome is Outcome.ANSWERED
    assert seen in lab.node_addresses()["node1"]
