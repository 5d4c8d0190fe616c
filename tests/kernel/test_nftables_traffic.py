"""The nftables plane's rules on real packets: which pod answers, whom it sees, and how a refusal looks on the wire."""

import contextlib
import json
import select
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from dataplane.kernel import sysctl
from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink.conntrack import forget_all
from dataplane.kernel.netlink.conntrack_list import Masqueraded, masqueraded_connections, translated_connections
from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import FrontendKind, PlanEntry, SourceRanges
from dataplane.planes.ebpf.flows import port_split
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules import shapes
from tests.kernel.nftables_listing import nft
from tests.kernel.nftables_net import (
    CLIENT,
    GATEWAY,
    LB,
    NODE,
    NODE_CONFIG,
    PODS,
    PORT,
    UNUSED,
    VIP,
    Network,
    ask,
    entry,
    ip,
    network,
    plan_of,
    pods,
)

QUICK = 0.4
BOTH = pytest.mark.parametrize("version", [4, 6])
TRANSPORTS = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])


def patience(expected: str) -> float:
    """Seconds for an answer: silence is believed soon, anything else may take a busy machine long."""
    return QUICK if expected == "silence" else 60.0


@pytest.fixture
def net(make_namespace: Callable[[str], str]) -> Iterator[Network]:
    with network(make_namespace) as made:
        yield made


@pytest.fixture
def plane(net: Network) -> NftablesPlane:
    return in_netns(net.node, NftablesPlane)


def change(old: PlanEntry | None, new: PlanEntry | None) -> PlanChange:
    return PlanChange((EntryChange(old, new),))


@BOTH
@TRANSPORTS
def test_cluster_ip_reaches_every_pod_and_masquerades_who_is_not_a_pod(
    net: Network, plane: NftablesPlane, version: int, protocol: Protocol
) -> None:
    plane.load(plan_of(entry(version, pods(version, 0, 1), protocol=protocol)))
    answers = Counter(ask(net.client, VIP[version], protocol=protocol) for _ in range(40))
    assert set(answers) == {f"{number} {GATEWAY[version]}" for number in (0, 1)}
    # A pod keeps its address.
    assert {ask(net.pods[2], VIP[version], protocol=protocol) for _ in range(30)} == {
        f"{number} {PODS[version][2]}" for number in (0, 1)
    }
    # The node itself is served, too.
    assert {ask(net.node, VIP[version], protocol=protocol) for _ in range(30)} == {
        f"{number} {GATEWAY[version]}" for number in (0, 1)
    }


@BOTH
@TRANSPORTS
def test_a_pod_reaches_itself_through_its_service(
    net: Network, plane: NftablesPlane, version: int, protocol: Protocol
) -> None:
    plane.load(plan_of(entry(version, pods(version, 0), protocol=protocol)))
    assert ask(net.pods[0], VIP[version], protocol=protocol) == f"0 {GATEWAY[version]}"


@BOTH
@pytest.mark.parametrize("why", ["it says no node", "pods of others pass here"])
def test_a_pod_that_is_not_known_to_be_here_reaches_itself(
    net: Network, plane: NftablesPlane, version: int, why: str
) -> None:
    """An endpoint without nodeName, and one of another node where external policy Local sends that node's pods on with
    their own address."""
    elsewhere = pods(version, 0, local=False)
    if why == "it says no node":
        address, service = VIP[version], msgspec.structs.replace(entry(version, elsewhere, ()), unplaced=elsewhere)
    else:
        address = LB[version]
        service = entry(version, elsewhere, (), kind=FrontendKind.LOAD_BALANCER, address=address, external_local=True)
    plane.load(plan_of(service))
    assert ask(net.pods[0], address) == f"0 {GATEWAY[version]}"


@BOTH
def test_who_meets_itself_keeps_off_the_packet_programs_ports(net: Network, plane: NftablesPlane, version: int) -> None:
    """They are shared out by the mark that asks for masquerading (planes.ebpf.flows.port_split)."""
    low, high = taken = 32768, 60000
    plane.load(plan_of(entry(version, pods(version, 0))))
    in_netns(net.node, Nft).run(port_split.ruleset(NODE_CONFIG.masquerade_mark, [taken]))
    for _ in range(20):
        assert ask(net.pods[0], VIP[version]) == f"0 {GATEWAY[version]}"
    flows = in_netns(net.node, lambda: list(masqueraded_connections()))
    assert len(flows) == 20
    assert [flow.client[1] for flow in flows if low <= flow.client[1] <= high] == []


@BOTH
@TRANSPORTS
def test_a_changed_port_of_the_nodes_own_keeps_off_the_packet_programs_ports(
    net: Network, plane: NftablesPlane, version: int, protocol: Protocol
) -> None:
    """Two flows of the node to one endpoint, one through a clusterIP, the other from the port that masquerading chose
    for the first: connection tracking gives the second another port."""
    low, high = taken = 20000, 65535
    plane.load(plan_of(entry(version, pods(version, 0), protocol=protocol)))
    in_netns(net.node, Nft).run(port_split.ruleset(NODE_CONFIG.masquerade_mark, [taken]))
    known: set[Masqueraded] = set()

    def new_port(target: tuple[str, int], source_port: int) -> int:
        assert ask(net.node, *target, protocol, source_port=source_port) == f"0 {GATEWAY[version]}"
        flows = set(in_netns(net.node, lambda: list(masqueraded_connections())))
        [new] = flows - known
        known.update(flows)
        return new.client[1]

    for port in range(5000, 5020):
        masqueraded = new_port((VIP[version], 80), port)
        changed = new_port((PODS[version][0], PORT), masqueraded)
        assert [each for each in (masqueraded, changed) if low <= each <= high] == []


@BOTH
@TRANSPORTS
def test_refusal_and_silence(net: Network, plane: NftablesPlane, version: int, protocol: Protocol) -> None:
    """REJECT answers at once, DROP never: no endpoints, endpoints elsewhere, unknown ports, unknown addresses."""
    nobody = entry(version, (), protocol=protocol)
    elsewhere = entry(
        version, pods(version, 0, local=False), (), protocol=protocol, internal_local=True, port=81, name="elsewhere"
    )
    plane.load(plan_of(nobody, elsewhere))
    for source in (net.client, net.pods[0], net.node):
        assert ask(source, VIP[version], 80, protocol) == "refused"
        assert ask(source, VIP[version], 81, protocol, wait=QUICK) == "silence"
        assert ask(source, VIP[version], 9999, protocol) == "refused"
        assert ask(source, UNUSED[version], 80, protocol, wait=QUICK) == "silence"


@BOTH
def test_what_another_proxy_translates_is_not_refused(net: Network, plane: NftablesPlane, version: int) -> None:
    """Even if its nat chains come long after ours; and nobody's packets pass a filter chain of ours."""
    plane.load(plan_of(entry(version, pods(version, 0))))
    keyword, pod = ("ip", f"{PODS[4][1]}:{PORT}") if version == 4 else ("ip6", f"[{PODS[6][1]}]:{PORT}")
    rule = f"{keyword} daddr {{ {UNUSED[version]}, {VIP[version]} }} tcp dport 81 dnat to {pod}"
    hooks = ("prerouting", "output")
    chains = "; ".join(f"chain {hook} {{ type nat hook {hook} priority 1000; {rule}; }}" for hook in hooks)
    nft(net.node, f"table {keyword} other {{ {chains}; }}")
    for source in (net.client, net.pods[0], net.node):
        for address in (UNUSED[version], VIP[version]):
            assert ask(source, address, 81).startswith("1 ")
            expected = "refused" if address == VIP[version] else "silence"
            assert ask(source, address, 82, wait=patience(expected)) == expected
    assert "type filter" not in nft(net.node, "list", "table", keyword, "hotplane")


@BOTH
def test_node_port_and_local_policy(net: Network, plane: NftablesPlane, version: int) -> None:
    """Policy Local: outside clients keep their address and reach local pods only; pods and the node reach all."""
    local = pods(version, 0)
    cluster = local + pods(version, 1, local=False)
    service = entry(version, cluster, local, kind=FrontendKind.NODE_PORT, address="", port=30080, external_local=True)
    plane.load(plan_of(service))
    assert {ask(net.client, NODE[version], 30080) for _ in range(20)} == {f"0 {CLIENT[version]}"}
    assert {ask(net.pods[2], NODE[version], 30080) for _ in range(30)} == {f"{n} {PODS[version][2]}" for n in (0, 1)}
    assert {ask(net.node, NODE[version], 30080) for _ in range(30)} == {f"{n} {GATEWAY[version]}" for n in (0, 1)}
    # An address that is not among the node-port addresses does not answer.
    assert ask(net.client, GATEWAY[version], 30080) == "refused"
    away = msgspec.structs.replace(
        entry(
            version,
            pods(version, 1, local=False),
            (),
            kind=FrontendKind.NODE_PORT,
            address="",
            port=30080,
            external_local=True,
        )
    )
    plane.apply(change(service, away))
    assert ask(net.client, NODE[version], 30080, wait=QUICK) == "silence"
    assert ask(net.pods[2], NODE[version], 30080) == f"1 {PODS[version][2]}"


@BOTH
def test_node_ports_on_any_local_address(net: Network, plane: NftablesPlane, version: int) -> None:
    node = msgspec.structs.replace(
        NODE_CONFIG, nodeports=msgspec.structs.replace(NODE_CONFIG.nodeports, any_local=True, addresses=())
    )
    service = entry(version, pods(version, 0), kind=FrontendKind.NODE_PORT, address="", port=30080)
    plane.load(plan_of(service, node=node))
    for address in (NODE[version], GATEWAY[version]):
        assert ask(net.client, address, 30080) == f"0 {GATEWAY[version]}"
    loopback = "127.0.0.1" if version == 4 else "::1"
    assert ask(net.node, loopback, 30080) == "refused"
    # Back to named addresses, by a change of the node alone.
    plane.apply(PlanChange(node=NODE_CONFIG))
    assert ask(net.client, GATEWAY[version], 30080) == "refused"
    assert ask(net.client, NODE[version], 30080) == f"0 {GATEWAY[version]}"


def send_to_loopback(net: Network, source: str, port: int) -> None:
    """A datagram from the client's wire to 127.0.0.1 on the node."""
    shown = subprocess.run(["ip", "-n", net.node, "-j", "link", "show", "c0"], capture_output=True, check=True).stdout
    frame = (
        Ether(dst=json.loads(shown)[0]["address"])
        / IP(src=source, dst="127.0.0.1")
        / UDP(sport=4000, dport=port)
        / b"intruder"
    )
    with in_netns(net.client, socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(bytes(frame))


def test_node_ports_on_loopback_where_they_are_asked_for(net: Network, plane: NftablesPlane) -> None:
    """The node's own processes, masqueraded; nobody else gets at loopback addresses, though they are routed now."""
    named = msgspec.structs.replace(NODE_CONFIG.nodeports, loopback=True)
    service = entry(4, pods(4, 0), kind=FrontendKind.NODE_PORT, address="", port=30080)
    routed = "net/ipv4/conf/all/route_localnet"
    plane.load(plan_of(service, node=NODE_CONFIG))
    assert ask(net.node, "127.0.0.1", 30080) == "refused"
    assert in_netns(net.node, sysctl.read, routed) == "0"
    plane.apply(PlanChange(node=msgspec.structs.replace(NODE_CONFIG, nodeports=named)))
    for address in ("127.0.0.1", "127.5.5.5"):
        assert ask(net.node, address, 30080) == f"0 {GATEWAY[4]}"
    assert ask(net.node, "127.0.0.1", 30081) == "refused"
    assert in_netns(net.node, sysctl.read, routed) == "1"
    with in_netns(net.node, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 30099))
        server.settimeout(QUICK)
        for source in (CLIENT[4], "127.0.0.1"):
            send_to_loopback(net, source, 30099)
        with pytest.raises(TimeoutError):
            server.recv(10)
        in_netns(net.node, Nft).run("flush chain ip hotplane-localnet prerouting")
        server.settimeout(60)
        send_to_loopback(net, CLIENT[4], 30099)
        assert server.recv(10) == b"intruder", "without the guard anybody's packet comes in"
    plane.load(plan_of(service, node=NODE_CONFIG))
    assert ask(net.node, "127.0.0.1", 30080) == "refused"
    assert in_netns(net.node, sysctl.read, routed) == "0"
    plane.load(plan_of(service, node=msgspec.structs.replace(NODE_CONFIG, nodeports=named)))
    plane.cleanup()
    assert in_netns(net.node, sysctl.read, routed) == "0"
    assert in_netns(net.node, subprocess.run, ["nft", "list", "tables"], capture_output=True).stdout == b""


@BOTH
def test_source_ranges(net: Network, plane: NftablesPlane, version: int) -> None:
    def limited(ranges: SourceRanges | None) -> PlanEntry:
        return entry(version, pods(version, 0), kind=FrontendKind.LOAD_BALANCER, address=LB[version], ranges=ranges)

    inside, outside = ("192.0.2.0/24", "203.0.113.0/25") if version == 4 else ("2001:db8::/64", "2001:db8:9::/49")
    current = limited(SourceRanges((inside,)))
    plane.load(plan_of(current))
    assert ask(net.client, LB[version]) == f"0 {GATEWAY[version]}"
    for ranges, expected in (
        (SourceRanges((outside,)), "silence"),
        (SourceRanges((outside, f"{CLIENT[version]}/{32 if version == 4 else 128}")), f"0 {GATEWAY[version]}"),
        (SourceRanges(()), "silence"),
        (None, f"0 {GATEWAY[version]}"),
        (SourceRanges(("0.0.0.0/0" if version == 4 else "::/0",)), f"0 {GATEWAY[version]}"),
    ):
        changed = limited(ranges)
        plane.apply(change(current, changed))
        current = changed
        assert ask(net.client, LB[version], wait=patience(expected)) == expected
    # The frontend's own address as source: a node that holds the address sends from it.
    ip(net.node, "address", "add", LB[version], "dev", "lo", *(("nodad",) if version == 6 else ()))
    own = f"{LB[version]}/{32 if version == 4 else 128}"
    for cidrs, expected in (((outside, own), f"0 {GATEWAY[version]}"), ((outside,), "silence")):
        changed = limited(SourceRanges(cidrs))
        plane.apply(change(current, changed))
        current = changed
        assert ask(net.node, LB[version], source=LB[version], wait=patience(expected)) == expected


@BOTH
@TRANSPORTS
def test_affinity_sticks_expires_and_moves(
    net: Network, plane: NftablesPlane, version: int, protocol: Protocol
) -> None:
    def sticky(*numbers: int, seconds: int = 60) -> PlanEntry:
        return entry(version, pods(version, *numbers), protocol=protocol, affinity=seconds)

    def several(count: int = 12) -> set[str]:
        return {ask(net.client, VIP[version], protocol=protocol).split()[0] for _ in range(count)}

    current = sticky(0, 1, 2)
    plane.load(plan_of(current))
    first = several()
    assert len(first) == 1
    own = int(next(iter(first)))
    # Others come and go: the client stays. A priority is carried between rules and does not leave the node.
    others = [number for number in range(3) if number != own]
    for numbers in ((own, others[0]), (own, others[1]), (own,), (own, *others), (0, 1, 2)):
        changed = sticky(*sorted(numbers))
        plane.apply(change(current, changed))
        current = changed
        assert several(6) == first
    # Its own goes: it moves at once, and sticks again.
    changed = sticky(*others)
    plane.apply(change(current, changed))
    current = changed
    moved = several()
    assert len(moved) == 1
    assert moved < {str(number) for number in others}
    # A second of silence ends a timeout of one second: over time, more than one pod answers.
    changed = sticky(0, 1, 2, seconds=1)
    plane.apply(change(current, changed))
    seen: set[str] = set()
    end = time.monotonic() + 120
    while len(seen) < 2 and time.monotonic() < end:
        begun = time.monotonic()
        burst = several(3)
        assert len(burst) == 1 or time.monotonic() - begun > 0.9  # a busy machine may be silent for a second by itself
        seen |= burst
        time.sleep(1.6)
    assert len(seen) > 1


@BOTH
def test_a_full_affinity_map_stops_nobody(
    net: Network, plane: NftablesPlane, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients are remembered, the others are forwarded all the same, each time to any pod."""
    monkeypatch.setattr(shapes, "AFFINITY_LIMIT", 2)
    plane.load(plan_of(entry(version, pods(version, 0, 1, 2), affinity=600)))
    answers = {
        where: {ask(where, VIP[version]).split()[0] for _ in range(20)} for where in (net.client, net.node, *net.pods)
    }
    assert all(found <= {"0", "1", "2"} for found in answers.values())
    assert [len(found) == 1 for found in answers.values()] == [True, True, False, False, False]


@BOTH
def test_affinity_of_node_ports_and_local_sets(net: Network, plane: NftablesPlane, version: int) -> None:
    service = entry(
        version,
        pods(version, 0, 1, 2),
        pods(version, 0, 1),
        kind=FrontendKind.NODE_PORT,
        address="",
        port=30080,
        external_local=True,
        affinity=60,
    )
    plane.load(plan_of(service))
    outside = {ask(net.client, NODE[version], 30080) for _ in range(12)}
    assert len(outside) == 1
    assert outside < {f"{number} {CLIENT[version]}" for number in (0, 1)}
    # Its pod leaves the Local set but stays in the Cluster set: an outside client moves, too.
    own = int(next(iter(outside)).split()[0])
    less = entry(
        version,
        pods(version, 0, 1, 2),
        pods(version, 1 - own),
        kind=FrontendKind.NODE_PORT,
        address="",
        port=30080,
        external_local=True,
        affinity=60,
    )
    plane.apply(change(service, less))
    assert {ask(net.client, NODE[version], 30080) for _ in range(6)} == {f"{1 - own} {CLIENT[version]}"}


@BOTH
def test_choice_is_uniform(net: Network, plane: NftablesPlane, version: int) -> None:
    plane.load(plan_of(entry(version, pods(version, 0, 1, 2), protocol=Protocol.UDP)))
    count = 600
    seen = Counter(ask(net.client, VIP[version], protocol=Protocol.UDP).split()[0] for _ in range(count))
    chi_square = sum((seen[str(number)] - count / 3) ** 2 / (count / 3) for number in range(3))
    assert chi_square < 32.0  # two degrees of freedom: exceeded once in nine million runs


@BOTH
def test_changes_take_effect_at_once(net: Network, plane: NftablesPlane, version: int) -> None:
    one, two, none = (entry(version, pods(version, *numbers)) for numbers in ((0,), (1, 2), ()))
    plane.load(plan_of(none))
    assert ask(net.client, VIP[version]) == "refused"
    plane.apply(change(none, one))
    assert ask(net.client, VIP[version]) == f"0 {GATEWAY[version]}"
    plane.apply(change(one, two))
    assert {ask(net.client, VIP[version])[0] for _ in range(30)} == {"1", "2"}
    plane.apply(change(two, None))
    assert ask(net.client, VIP[version], wait=QUICK) == "silence"


@BOTH
def test_what_belongs_to_no_connection_is_reset_and_never_balanced(
    net: Network, plane: NftablesPlane, version: int
) -> None:
    """The kernel forgets connections that live on: who goes on with one must not get an endpoint by chance."""
    family = Family(version)
    plane.load(plan_of(entry(version, pods(version, 0, 1))))
    socks = []
    for _ in range(8):
        sock = in_netns(net.pods[2], socket.socket, family.socket_family, socket.SOCK_STREAM)
        sock.settimeout(60)
        sock.connect((VIP[version], 80))
        sock.recv(100)
        socks.append(sock)
    in_netns(net.node, forget_all)
    for sock in socks:
        with contextlib.suppress(BrokenPipeError):  # its acknowledgment of the server's end was reset already
            sock.send(b"?")
    for sock in socks:
        is_reset = select.poll()
        is_reset.register(sock, 0)
        assert is_reset.poll(60_000)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sock.send(b"?")
        sock.close()
    assert in_netns(net.node, lambda: list(translated_connections())) == []
    (stray,) = in_netns(net.node, plane.refused)
    assert (stray.reason, stray.times >= len(socks)) == ("stray", True)
    assert ask(net.pods[2], VIP[version])[0] in "01"
