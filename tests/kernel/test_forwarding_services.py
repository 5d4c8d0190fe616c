"""What Services mean where their packets are forwarded with the client's address kept: as with SNAT, by real clients,
at both nodes. Node 1 forwards by XDP, node 2 by tc."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from ctl.main import main
from ctl.store.state import Saved, save
from dataplane.kernel import sysctl
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.traffic.probe import Outcome, Probe
from dataplane.model.net import Family, Protocol, host_port
from dataplane.model.objects import EndpointSlice
from dataplane.planes.decisions import Asked
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.options import PlaneOptions
from dataplane.policy.dispatch import endpoint_digest
from dataplane.policy.forwarding import DEFAULT_PORT, DEFAULT_VNI
from tests.kernel.daemon_lab import until
from tests.kernel.packet_lab import counted, look_for_devices
from tests.kernel.services_lab import (
    EXTERNAL,
    FAMILIES,
    KINDS,
    NODE_PORT,
    PODS,
    PORT,
    PROTOCOLS,
    SOURCES,
    Held,
    ServicesLab,
    services_lab,
    web,
)

WAYS = pytest.mark.parametrize(("way", "entry"), [("dsr", "node1"), ("tunnel", "node2")])
WAYS_CROSSED = pytest.mark.parametrize(("way", "entry"), [("dsr", "node2"), ("tunnel", "node1")])
"""A forwarding mode, and the node that takes the client's packets."""

OTHER = {"node1": "node2", "node2": "node1"}
HELD = 6
SILENCE = 0.5


@pytest.fixture(scope="module")
def _made() -> Iterator[ServicesLab]:
    with services_lab("fsv") as made:
        yield made


@pytest.fixture
def made(_made: ServicesLab) -> Iterator[ServicesLab]:
    """The lab, which the outside client's packets enter by node 1."""
    yield _made
    _made.lab.set_entry("node1")


def servers(made: ServicesLab, count: int = 12) -> dict[str, str]:
    """Who answers each of the client's addresses, so many of each family."""
    sources = [(family, source) for family in FAMILIES for source in SOURCES[family][:count]]
    probes = [Probe(EXTERNAL[family], 80, source=source, timeout=60) for family, source in sources]
    results = made.lab.probe("client", *probes)
    assert all(result.count(Outcome.ANSWERED) == 1 for result in results)
    return {probe.source: result.attempts[0].server for probe, result in zip(probes, results, strict=True)}


def test_each_node_remembers_its_clients_endpoints(made: ServicesLab) -> None:
    """Of three endpoints two nodes choose the same for twelve clients once in half a million; by Maglev always."""
    made.serve("tunnel", *PODS[1:], affinity_seconds=600)
    seen: dict[str, dict[str, str]] = {}
    for entry in ("node1", "node2", "node1", "node2"):
        made.lab.set_entry(entry)
        found = servers(made)
        assert seen.setdefault(entry, found) == found
    assert seen["node1"] != seen["node2"]


def test_by_maglev_each_node_finds_the_clients_endpoint(made: ServicesLab) -> None:
    made.serve("dsr", *PODS, affinity_seconds=600, lb_algorithm="maglev")
    found = []
    for entry in ("node1", "node2"):
        made.lab.set_entry(entry)
        found += [servers(made)]
    assert found[0] == found[1]
    assert {server[:4] for server in found[0].values()} == {"pod1", "pod2"}


def test_what_is_remembered_lasts_from_the_last_new_connection(made: ServicesLab) -> None:
    """One client of twelve goes on connecting, and stays. The others' second is over: that all of them happen to choose
    the same of four endpoints again is once in four million."""
    seconds = 2
    made.serve("dsr", *PODS, affinity_seconds=seconds)
    before, begun = servers(made), time.monotonic()
    last = begun
    while last - begun <= seconds:
        time.sleep(0.4)
        asked, stays = time.monotonic(), servers(made, 1)
        if time.monotonic() - last < seconds:
            assert stays.items() <= before.items()
        else:  # on a busy machine its own second was over meanwhile: from the beginning
            before, asked = servers(made), time.monotonic()
            begun = asked
        last = asked
    after = servers(made)
    assert stays.items() <= after.items()
    for family in FAMILIES:
        assert [before[source] for source in SOURCES[family]] != [after[source] for source in SOURCES[family]]


def tunnelled(made: ServicesLab, family: Family, client: str) -> bytes:
    """What a node would send in UDP to have node 2 give a client's SYN to its pod."""
    digest = endpoint_digest(made.lab.place("pod2-1").addresses[family], PORT, Protocol.TCP)
    mac = "02:00:" + ":".join(f"{byte:02x}" for byte in digest.to_bytes(4, "big"))
    inner = (IP if family is Family.IPV4 else IPv6)(src=client, dst=EXTERNAL[family]) / TCP(dport=80, flags="S")
    return bytes(VXLAN(vni=DEFAULT_VNI, flags=8) / Ether(dst=mac, src="02:00:00:00:00:02") / inner)


def send_raw(made: ServicesLab, family: Family, packet: Packet) -> None:
    """Send a packet from the outside client."""
    with netns(made.lab.client.netns):
        sock = socket.socket(family.socket_family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sock:
        sock.sendto(bytes(packet), (packet.dst, 0))


@contextmanager
def heard(made: ServicesLab, reasons: set[str]) -> Iterator[None]:
    """Wait at the end until each of these reasons was counted once more."""
    before = made.proxy.counters()
    yield

    def more() -> set[str]:
        now = made.proxy.counters()
        return {name.partition(":")[2] for name, count in now.items() if count > before.get(name, 0)}

    until(lambda: reasons <= more(), f"the programs count {reasons}")


@WAYS
def test_source_ranges_hold_where_the_packet_came_in(made: ServicesLab, way: str, entry: str) -> None:
    """Others are refused by name: at once, with a segment of a connection that another node might have taken, and with
    a tunnel of their own. A connection that is there stays when the ranges change."""
    made.lab.set_entry(entry)
    made.serve(way, f"pod{OTHER[entry][4]}-1", lb_algorithm="maglev")
    with made.held(1) as held:
        allowed = tuple(f"{SOURCES[family][0]}/{family.bits}" for family in FAMILIES)
        made.proxy.update([web(way, source_ranges=allowed, lb_algorithm="maglev")])
        assert all(each.goes_on() for each in held)
    probes = [
        Probe(EXTERNAL[family], 80, protocol, source=source, timeout=seconds)
        for family in FAMILIES
        for protocol in PROTOCOLS
        for source, seconds in zip(SOURCES[family][:2], (60, SILENCE), strict=True)
    ]
    with counted(made.proxy) as ways:
        results = [result.attempts[0] for result in made.lab.probe("client", *probes)]
    assert [str(each.outcome) for each in results] == ["answered", "timeout"] * 4
    known = {each.client.rpartition(":")[0].strip("[]") for each in results[::2]}
    assert known == {SOURCES[family][0] for family in FAMILIES}
    assert ways["tc_ingress:source_range"] >= 4

    for family in FAMILIES:
        for source, wanted in zip(SOURCES[family][:2], ({"taken_over", "forwarded"}, {"source_range"}), strict=True):
            head = (IP if family is Family.IPV4 else IPv6)(src=source, dst=EXTERNAL[family])
            with counted(made.proxy) as ways, heard(made, wanted):
                send_raw(made, family, head / TCP(sport=4000, dport=80, flags="A"))
            told = {name.partition(":")[2] for name in ways} & {"taken_over", "source_range", "forwarded"}
            assert told == wanted, (family, source)
        head = (IP if family is Family.IPV4 else IPv6)(src=SOURCES[family][1])
        head.dst = made.lab.place("node2").addresses[family]
        with counted(made.proxy) as ways, heard(made, {"tunnel_sender"}):
            datagram = UDP(sport=50000, dport=DEFAULT_PORT) / tunnelled(made, family, SOURCES[family][1])
            send_raw(made, family, head / datagram)
        assert {name for name in ways if "tunnel" in name} == {"tc_ingress:tunnel_sender"}


@WAYS_CROSSED
def test_endpoints_that_terminate(made: ServicesLab, way: str, entry: str) -> None:
    """They get nothing new while others are ready, and keep what they have; all alone they go on serving. Once they
    serve no more, or are gone, datagrams find another one, and connections still go on."""
    made.lab.set_entry(entry)
    going, *ready = ("pod2-1", "pod2-2", "pod1-1") if entry == "node1" else ("pod1-1", "pod1-2", "pod2-1")

    def with_going(**conditions: bool) -> list[EndpointSlice]:
        parts = zip(made.slices(*ready), made.slices(going, ready=False, **conditions), strict=True)
        return [replace(one, endpoints=one.endpoints + two.endpoints) for one, two in parts]

    made.serve(way, going, *ready)
    with made.held(3 * HELD) as held:
        moves = [each for each in held if each.server == going and each.sock.type == KINDS[1]]
        assert moves
        for change, serving, found in (
            (with_going(serving=True, terminating=True), True, {*ready}),
            (made.slices(going, *ready, ready=False, terminating=True), True, {going, *ready}),
            (with_going(serving=False, terminating=True), False, {*ready}),
            (made.slices(*ready), False, {*ready}),
        ):
            made.proxy.update(change)
            for family in FAMILIES:
                probes = [Probe(EXTERNAL[family], 80, protocol, count=60, timeout=60) for protocol in PROTOCOLS]
                for result in made.lab.probe("client", *probes):
                    assert result.count(Outcome.ANSWERED) == 60
                    assert set(result.servers) == found, (change, result.servers)
            for each in held:
                if each in moves and not serving:
                    assert each.ask()[0] in ready
                else:
                    assert each.goes_on(), each.server
    made.proxy.update(made.slices())
    [refused] = made.lab.probe("client", Probe(EXTERNAL[Family.IPV4], 80, timeout=60))
    assert refused.attempts[0].outcome is Outcome.REFUSED


@WAYS
def test_endpoints_on_the_host_network(made: ServicesLab, way: str, entry: str) -> None:
    """Of this node and of the other one: their process sees the client."""
    made.lab.set_entry(entry)
    own = made.lab.place(entry).addresses
    for node in ("node1", "node2"):
        made.serve(way, node)
        with counted(made.proxy) as ways:
            for family in FAMILIES:
                frontends = ((EXTERNAL[family], 80), (own[family], NODE_PORT))
                probes = [Probe(*at, protocol, 3, 60, packets=2) for at in frontends for protocol in PROTOCOLS]
                for result in made.lab.probe("client", *probes):
                    assert result.servers == {node: 3}
                    assert set(result.clients) == {made.clients[family]}
        forwarded = sum(
            count for name, count in ways.items() if name.endswith("ingress:forwarded") or "xdp:forw" in name
        )
        assert (forwarded > 0) is (node != entry)


def test_who_uses_the_external_address_from_inside(made: ServicesLab) -> None:
    """Pods and nodes get what they get with SNAT, a pod itself as well: nothing of it is forwarded."""
    made.serve("tunnel", "pod2-1")
    with counted(made.proxy) as ways:
        for family in FAMILIES:
            nodes = [node.addresses[family] for node in made.lab.nodes]
            neighbour = made.lab.place("pod2-2").addresses[family]
            for place, by_vip, by_node2 in (
                ("pod2-1", nodes[1], nodes[1]),
                ("pod2-2", neighbour, neighbour),
                ("pod1-1", nodes[0], nodes[1]),
                ("node1", nodes[0], nodes[0]),
                ("node2", nodes[1], nodes[1]),
            ):
                frontends = ((EXTERNAL[family], 80), (nodes[0], NODE_PORT), (nodes[1], NODE_PORT))
                probes = [Probe(*at, protocol, timeout=60, packets=2) for at in frontends for protocol in PROTOCOLS]
                seen = [set(result.clients) for result in made.lab.probe(place, *probes)]
                assert seen == [{by_vip}] * 2 + [{nodes[0]}] * 2 + [{by_node2}] * 2, (place, family)
    assert not [name for name in ways if name.endswith(":forwarded")]


@WAYS
def test_policy_local_forwards_nothing(made: ServicesLab, way: str, entry: str) -> None:
    """A node without an endpoint drops, by name; one with an endpoint keeps the client."""
    made.serve(way, f"pod{OTHER[entry][4]}-1", external_local=True)
    probes = [
        Probe(made.lab.place(node).addresses[family], NODE_PORT, protocol, timeout=seconds)
        for node, seconds in ((entry, SILENCE), (OTHER[entry], 60))
        for protocol in PROTOCOLS
        for family in FAMILIES
    ]
    with counted(made.proxy) as ways:
        results = [result.attempts[0] for result in made.lab.probe("client", *probes)]
    assert [str(each.outcome) for each in results] == ["timeout"] * 4 + ["answered"] * 4
    assert {each.client.rpartition(":")[0].strip("[]") for each in results[4:]} == set(made.clients.values())
    assert ways["tc_ingress:policy_drop"] >= 4  # a SYN may be sent again before the client's time is over
    assert not [name for name in ways if name.endswith(":forwarded")]


@pytest.mark.parametrize("entry", ["node1", "node2"])
def test_a_services_mode_changes(made: ServicesLab, entry: str) -> None:
    """By its annotation: what there is goes on as it began, over TCP and UDP on one port; what is new goes the new way,
    which with hybrid depends on the protocol."""
    made.lab.set_entry(entry)
    made.serve("snat", *PODS)
    elsewhere = "pod2" if entry == "node1" else "pod1"
    kept = {"snat": (), "dsr": KINDS, "hybrid": KINDS[:1], "tunnel": KINDS}
    opened: list[Held] = []
    try:
        for mode in ("snat", "dsr", "hybrid", "tunnel", "hybrid", "snat", "tunnel"):
            made.proxy.update([web(mode)])
            fresh = [Held(made.socket(family, kind)) for family in FAMILIES for kind in KINDS for _ in range(HELD)]
            opened += fresh
            away = [each for each in fresh if each.server.startswith(elsewhere)]
            assert away
            for each in away:
                assert (each.known_as in made.clients.values()) is (each.sock.type in kept[mode]), (mode, each.sock)
            assert all(each.goes_on() for each in opened), mode
    finally:
        for each in opened:
            each.sock.close()


@pytest.mark.parametrize(("way", "gone"), [("tunnel", "node1"), ("dsr", "node2")])
def test_a_node_that_forwards_no_more(made: ServicesLab, way: str, gone: str) -> None:
    """First the others hear that it does not announce itself any more, then it changes to nftables mode and drains.
    Whatever there is goes on; what is new gets SNAT, then as the nftables mode has it."""
    made.serve(way, *PODS)
    node = made.proxy.nodes[gone]
    with made.held(2 * HELD) as held:
        assert {each.known_as for each in held} == set(made.clients.values())
        made.set_peers(OTHER[gone])
        made.set_peers(gone)
        assert all(each.goes_on() for each in held)
        with made.held(2 * HELD) as fresh:
            for each in fresh:
                assert (each.known_as in made.clients.values()) is each.server.startswith("pod1")
            with netns(node.node.netns):
                other = NftablesPlane()
                other.load(node.planner.plan)
                assert node.plane.give_way(()) > 0
                other.load(node.planner.plan)
            try:
                assert all(each.goes_on() for each in (*held, *fresh))
                with made.held(2):
                    pass
            finally:
                with netns(node.node.netns):
                    node.plane.load(node.planner.plan)
        made.set_peers(OTHER[gone], gone)
        made.set_peers(gone, OTHER[gone])
        assert all(each.goes_on() for each in held)


MASQUERADE = """table inet plugin {
  chain post {
    type nat hook postrouting priority srcnat
    ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade random
    ip6 saddr != fd00:10:244::/48 ip6 daddr fd00:10:244::/48 masquerade random
  }
}"""
"""What a network plugin may do with everything that comes to pods from outside."""


@WAYS_CROSSED
def test_another_programs_masquerading(made: ServicesLab, way: str, entry: str) -> None:
    """At the endpoint's node: it is that program's word what the pod sees, and the client has its answers."""
    made.lab.set_entry(entry)
    far = OTHER[entry]
    made.serve(way, f"pod{far[4]}-1")
    made.lab.run(far, ["nft", "-f", "-"], input=MASQUERADE)
    try:
        with made.held(2) as held:
            assert {each.known_as for each in held} <= made.lab.node_addresses()[far]
            assert all(each.goes_on() for each in held)
    finally:
        made.lab.run(far, ["nft", "delete", "table", "inet", "plugin"])


@contextmanager
def another_uplink(made: ServicesLab, node: str) -> Iterator[None]:
    """A second device of a node, by which the outside client is reached."""
    with Links(made.lab.place(node).netns) as inside, Links(made.lab.topology.underlay.netns) as outside:
        inside.add_veth("eth1", outside, "second", 1500)
        for network, here, there in (
            ("198.51.100.0/24", "172.19.0.2/24", "172.19.0.254/24"),
            ("fd00:198:51:100::/64", "fd00:172:19::2/64", "fd00:172:19::fe/64"),
        ):
            inside.address("eth1", here)
            outside.address("second", there)
            inside.route(network, via=there.partition("/")[0])
        try:
            yield
        finally:
            made.lab.run(node, ["ip", "link", "del", "eth1"])


def outcomes(made: ServicesLab, *wanted: str) -> tuple[list[str], set[str]]:
    """How a connection of each family ends that is forwarded, and what is counted of the tunnel and its ends. wanted:
    how it should end, for only of one that should be lost silence is believed soon."""
    probes = [
        Probe(EXTERNAL[family], 80, timeout=SILENCE if end == "timeout" else 60)
        for family, end in zip(FAMILIES, wanted, strict=True)
    ]
    with counted(made.proxy) as ways:
        results = made.lab.probe("client", *probes)
    told = {name.partition(":")[2] for name in ways} & {"no_way_out", "reverse_path", "tunnel_lost"}
    return [str(result.attempts[0].outcome) for result in results], told


@pytest.mark.parametrize("far", ["node1", "node2"])
def test_the_endpoints_node_reaches_clients_by_another_device(made: ServicesLab, far: str) -> None:
    """Where that has no programs, nobody would translate the answers: what begins is refused by name. Where it has, it
    is an uplink like others, unless the node holds sources against their way back (rp_filter)."""
    made.lab.set_entry(OTHER[far])
    made.serve("dsr", f"pod{far[4]}-1")
    with another_uplink(made, far):
        assert outcomes(made, "timeout", "timeout") == (["timeout"] * 2, {"no_way_out"})
        for version, via in (("-4", "172.19.0.254"), ("-6", "fd00:172:19::fe")):
            made.lab.run(far, ["ip", version, "route", "add", "default", "via", via, "metric", "2000"])
        look_for_devices(made.proxy)
        assert outcomes(made, "answered", "answered") == (["answered"] * 2, set())
        made.proxy.update([web("tunnel")])
        try:
            for value, answer, told in (("1", "timeout", {"reverse_path", "tunnel_lost"}), ("2", "answered", set())):
                with netns(made.lab.place(far).netns):
                    sysctl.write("net/ipv4/conf/eth0/rp_filter", value)
                look_for_devices(made.proxy)
                assert outcomes(made, answer, "answered") == ([answer, "answered"], told)
        finally:
            with netns(made.lab.place(far).netns):
                sysctl.write("net/ipv4/conf/eth0/rp_filter", 0)
    look_for_devices(made.proxy)


PADDING = bytes((0, 0, 1, 4, 0, 0, 0, 0))
"""An extension header of eight bytes whose only option is PadN (RFC 8200, section 4.2)."""
HOP_BY_HOP, DESTINATION = ((41, option, PADDING) for option in (54, 59))


@WAYS_CROSSED
def test_extension_headers(made: ServicesLab, way: str, entry: str) -> None:
    """Packets with IPv6 options are forwarded as others are."""
    made.lab.set_entry(entry)
    made.serve(way, f"pod{OTHER[entry][4]}-1", lb_algorithm="maglev")
    with counted(made.proxy) as ways:
        for options in ((HOP_BY_HOP,), (DESTINATION,), (HOP_BY_HOP, DESTINATION)):
            for kind in KINDS:
                with closing(made.socket(Family.IPV6, kind, options=options)) as sock:
                    held = Held(sock)
                    assert (held.known_as, held.goes_on()) == (made.clients[Family.IPV6], True)
    assert "tc_ingress:ipv6_extension" not in ways
    assert ways["tc_ingress:forwarded"] >= 12


def told(made: ServicesLab, node: str, capsys: pytest.CaptureFixture[str], state: Path, *words: str) -> str:
    """What a command prints as JSON on a node, whose plan was saved; its status is 0."""
    each = made.proxy.nodes[node]
    capsys.readouterr()
    with netns(each.node.netns):
        hooks = ("tc", "xdp") if node == "node1" else ("tc",)
        save(state, Saved.of("ebpf", each.planner.plan, PlaneOptions(hooks)))
        status = main(["--state-dir", str(state), *words, "-o", "json"])
    printed = capsys.readouterr()
    assert status == 0, printed
    return printed.out


@WAYS
def test_commands_tell_of_forwarded_flows(
    made: ServicesLab, way: str, entry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At both nodes the endpoint is the pod: what explain said and what was seen, decisions, flows, and each hook of
    the endpoint's node that a packet to the other one's node port meets."""
    far, pod = OTHER[entry], made.lab.place(f"pod{OTHER[entry][4]}-1")
    made.lab.set_entry(entry)
    made.serve(way, pod.name)
    endpoints = {host_port(pod.addresses[family], PORT) for family in FAMILIES}
    with netns(made.lab.place(entry).netns):
        stream = made.proxy.nodes[entry].plane.decisions(Asked())
    assert stream is not None
    with stream, made.held(1) as held:
        mine = {host_port(*each.sock.getsockname()[:2]) for each in held}
        decisions = [each for each in stream.poll(60) if each.source in mine]
        for node in (entry, far):
            shown = json.loads(told(made, node, capsys, tmp_path, "show", "connections"))
            assert {each["endpoint"] for each in shown if each["client"] in mine} == endpoints
    assert {each.endpoint for each in decisions} == endpoints

    flow = f"client -> {entry}:{NODE_PORT}" + ("/udp" if way == "tunnel" else "")
    found = json.loads(told(made, entry, capsys, tmp_path, "explain", "--live", "--flow", flow))
    seen = "which saw the client with its own address"
    assert {each["live"]["outcome"] for each in found} == {f"ANSWERED by {endpoint}, {seen}" for endpoint in endpoints}
    assert all(each["live"]["agreed"] for each in found)
    lines = told(made, far, capsys, tmp_path, "trace", flow, "--send").splitlines()
    *steps, verdict = map(json.loads, lines)
    assert (verdict["verdict"], verdict["seenAs"]) == ("answered", made.clients[Family.IPV4])
    assert verdict["endpoint"] == host_port(pod.addresses[Family.IPV4], PORT)
    hooks = {step["hook"] for step in steps}
    assert hooks >= {"forward", "tc_egress"}
    assert hooks & {"tc_ingress", "xdp"}, hooks
