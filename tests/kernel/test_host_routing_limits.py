"""Host routing: what the node's stack must have goes by it, and no packet is lost where a flow changes its way. Real
packets; the first node's forward chain counts what its stack forwards, and drops what conntrack calls invalid."""

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.direct import direct_key
from dataplane.planes.ebpf.maps.layout import record
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.exclusions import Exclusions
from tests.kernel.host_lab import CLUSTER_IP, FAMILIES, LOCAL, PORT, HostLab, ask, fetch, host_lab
from tests.kernel.pod_device import add_device, remove_device

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
BOTH = pytest.mark.parametrize("family", FAMILIES)
FOREIGN = {Family.IPV4: "192.0.2.80", Family.IPV6: "2001:db8::80"}
_IP_TRANSPARENT, _SOL_IPV6, _IPV6_TRANSPARENT = 19, 41, 75
FLOW = record("direct_flow", "last_ns", "flags", "ifindex", "begun", "pad", "low", "high")
DROP_INVALID = """table inet strict {
    chain forward { type filter hook forward priority 0; ct state invalid drop; }
}"""


@pytest.fixture(scope="module")
def lab() -> Iterator[HostLab]:
    with host_lab() as made:
        made.lab.run(made.node, ["nft", "-f", "-"], input=DROP_INVALID)
        yield made


@pytest.fixture(autouse=True)
def _everybody_may(lab: HostLab) -> Iterator[None]:
    yield
    lab.host().exclude(Exclusions())


def maps(lab: HostLab) -> MapSet:
    plane = lab.proxy.nodes["node1"].plane
    assert isinstance(plane, EbpfPlane)
    return plane.tables.maps


def pod(lab: HostLab, name: str, family: Family) -> tuple[str, int]:
    return lab.address(name, family), PORT


@BOTH
@KINDS
@pytest.mark.parametrize("to", ["pod1-2", "pod2-1", "local"])
@pytest.mark.parametrize("who", ["pod1-1", "pod1-2", "node"])
def test_an_address_that_is_taken_out_and_put_back(
    lab: HostLab, family: Family, kind: socket.SocketKind, to: str, who: str
) -> None:
    """In the middle of a flow: it goes on by the stack, and stays there; new flows go past it again. Its packets come
    to connection tracking as a new connection in the middle, twice, and none is invalid."""
    excluded = Exclusions(node="all") if who == "node" else Exclusions(addresses={lab.address(who, family): "a policy"})
    target = (CLUSTER_IP["local"][family], 80) if to == "local" else pod(lab, to, family)
    concerned = who != "pod1-2" or to != "pod2-1"
    with lab.connected("pod1-1", target, kind) as sock:
        first = ask(sock)
        for _ in range(2):
            lab.host().exclude(excluded)
            with lab.ways() as ways:
                assert [ask(sock) for _ in range(3)] == [first] * 3
            assert (ways["forwarded"] > 0) == concerned
            assert not concerned or ways["into_pod"] == ways["out_of_node"] == 0
            lab.host().exclude(Exclusions())
            assert [ask(sock) for _ in range(20)] == [first] * 20
    with lab.ways() as ways:
        assert fetch(lab, "pod1-1", target, kind) == first
    assert ways["forwarded"] == 0


@BOTH
@KINDS
@pytest.mark.parametrize("client", ["pod1-1", "client"])
@pytest.mark.parametrize("past_first", [True, False])
def test_a_flow_through_a_service_that_the_stack_had_stays_there(
    lab: HostLab, family: Family, kind: socket.SocketKind, client: str, past_first: bool
) -> None:
    """Connection tracking would not hear of its end: it would judge its packets by old numbers once they come back, and
    take another one of the same ports for it."""
    target = (CLUSTER_IP["local"][family], 80) if client == "pod1-1" else (lab.node.addresses[family], LOCAL)
    with contextlib.ExitStack() as stack:
        if not past_first:
            lab.host().exclude(Exclusions(node="all"))
        sock = stack.enter_context(lab.connected(client, target, kind))
        assert ask(sock)[0] == "pod1-2"
        lab.host().exclude(Exclusions(node="all"))
        ask(sock)
        lab.host().exclude(Exclusions())
        with lab.ways() as ways:
            assert [ask(sock)[0] for _ in range(5)] == ["pod1-2"] * 5
    assert (ways["into_pod"], ways["out_of_node"]) == (0, 0)
    assert ways["forwarded"] >= 10
    with lab.ways() as ways:
        assert fetch(lab, client, target, kind)[0] == "pod1-2"
    assert ways["forwarded"] == 0


@BOTH
@KINDS
def test_a_flow_through_a_service_from_before_host_routing_began(
    lab: HostLab, family: Family, kind: socket.SocketKind
) -> None:
    until = bytes(4)  # HOST_ROUTING_UNTIL
    maps(lab).put("host_times", until, bytes(8))
    try:
        sock = lab.connected("pod1-1", (CLUSTER_IP["local"][family], 80), kind)
        sock.send(b"?\n")
        sock.recv(4096)
    finally:
        lab.look()
    with sock, lab.ways() as ways:
        assert [ask(sock)[0] for _ in range(3)] == ["pod1-2"] * 3
    assert ways["into_pod"] == 0
    assert ways["forwarded"] >= 6


@BOTH
def test_taken_out_is_out_when_it_is_said(lab: HostLab, family: Family) -> None:
    for address in (lab.address("pod1-1", family), lab.address("pod1-2", family)):
        assert lab.host().reason(address) is None
        lab.host().exclude(Exclusions(addresses={address: "policy default/deny"}))
        assert lab.host().reason(address) == "policy default/deny"
        with lab.ways() as ways:
            fetch(lab, "pod1-1", pod(lab, "pod1-2", family), UDP)
        assert (ways["forwarded"], ways["into_pod"]) == (6, 0)
    lab.host().exclude(Exclusions(node="chain inet strict forward"))
    assert lab.host().reason(lab.address("pod1-1", family)) == "chain inet strict forward"
    assert lab.host().reason("192.0.2.1") == "chain inet strict forward"
    lab.host().exclude(Exclusions())
    assert lab.host().reason("192.0.2.1") == "no device of this node leads to it"


@contextlib.contextmanager
def translating(lab: HostLab) -> Iterator[None]:
    """Somebody else's table on node 1 translates FOREIGN to pod1-2, and gives nobody another source."""
    ipv4, ipv6 = (lab.address("pod1-2", family) for family in FAMILIES)
    lab.lab.run(lab.node, ["nft", "-f", "-"], input=f"""table inet foreign {{
        chain prerouting {{
            type nat hook prerouting priority -110;
            ip daddr {FOREIGN[Family.IPV4]} meta l4proto {{ tcp, udp }} dnat ip to {ipv4}
            ip6 daddr {FOREIGN[Family.IPV6]} meta l4proto {{ tcp, udp }} dnat ip6 to {ipv6}
        }}
    }}""")  # fmt: skip
    try:
        yield
    finally:
        lab.lab.run(lab.node, ["nft", "delete table inet foreign"])


@BOTH
@KINDS
@pytest.mark.parametrize("client", ["pod1-1", "client"])
def test_answers_of_a_flow_that_the_stack_translated(
    lab: HostLab, family: Family, kind: socket.SocketKind, client: str
) -> None:
    """They look like plain packets between pods, and go back by the stack, which translates them."""
    with translating(lab), lab.ways() as ways:
        if client == "client":
            lab.lab.set_entry("node1")
        assert fetch(lab, client, (FOREIGN[family], PORT), kind)[0] == "pod1-2"
    assert ways["into_pod"] == 0
    assert ways["forwarded"] >= 6


@BOTH
def test_a_port_that_went_past_the_stack_before_is_translated_by_it(lab: HostLab, family: Family) -> None:
    """The client's next connection from that port is the stack's, though its two ends are the same."""
    for kind, port in ((TCP, 4001), (UDP, 4002)):
        source, kept = (lab.address("pod1-1", family), port), None
        with lab.open("pod1-1", family, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.bind(source)
            sock.connect(pod(lab, "pod1-2", family))
            assert ask(sock)[0] == "pod1-2"
            if kind is TCP:  # an end that nobody saw leaves the entry behind
                key = direct_key(source, pod(lab, "pod1-2", family), int(socket.IPPROTO_TCP))
                kept = maps(lab).get("direct_tcp", key)
                assert kept is not None
        if kept is not None:
            maps(lab).put("direct_tcp", key, kept)
        with translating(lab), lab.open("pod1-1", family, kind) as sock:
            sock.bind(source)
            sock.connect((FOREIGN[family], PORT))
            for _ in range(3):
                assert ask(sock)[0] == "pod1-2"
        with lab.open("pod1-1", family, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((source[0], port + 2))
            sock.connect((CLUSTER_IP["local"][family], 80))
            assert ask(sock)[0] == "pod1-2"


@BOTH
def test_datagrams_translated_before_the_programs_came(lab: HostLab, family: Family) -> None:
    """What connection tracking has when host routing begins is the stack's."""
    with translating(lab), lab.connected("pod1-1", (FOREIGN[family], PORT), UDP) as sock:
        ask(sock)
        key = direct_key(sock.getsockname()[:2], pod(lab, "pod1-2", family), int(socket.IPPROTO_UDP))
        maps(lab).remove("direct_udp", [key])
        with netns(lab.node.netns):
            lab.host()._note_translated(maps(lab))
        assert ask(sock)[0] == "pod1-2"


def _closed(lab: HostLab, family: Family, port: int) -> None:
    """A connection from this port that the stack translated to pod1-2, and that its client reset."""
    with translating(lab), lab.open("pod1-1", family, TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.bind((lab.address("pod1-1", family), port))
        sock.connect((FOREIGN[family], PORT))
        assert ask(sock)[0] == "pod1-2"


def _again(lab: HostLab, family: Family, port: int) -> None:
    """From the same port to the pod itself, with a change of ways in the middle."""
    with lab.open("pod1-1", family, TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((lab.address("pod1-1", family), port))
        sock.connect(pod(lab, "pod1-2", family))
        assert ask(sock)[0] == "pod1-2"
        lab.host().exclude(Exclusions(node="all"))
        assert [ask(sock)[0] for _ in range(3)] == ["pod1-2"] * 3
        lab.host().exclude(Exclusions())
        assert ask(sock)[0] == "pod1-2"


@BOTH
def test_ends_that_connection_tracking_still_translates(lab: HostLab, family: Family) -> None:
    """A new connection between them falls back to the stack unharmed: it was never past it."""
    _closed(lab, family, 45670)
    _again(lab, family, 45670)


@BOTH
def test_connections_translated_before_the_programs_came(lab: HostLab, family: Family) -> None:
    """What connection tracking has when host routing begins is known, closed connections, too."""
    _closed(lab, family, 45680)
    ends = (lab.address("pod1-1", family), 45680), pod(lab, "pod1-2", family)
    maps(lab).remove("direct_tcp", [direct_key(*ends, int(socket.IPPROTO_TCP))])
    with netns(lab.node.netns):
        lab.host()._note_translated(maps(lab))
    _again(lab, family, 45680)


@BOTH
def test_a_connection_whose_entry_is_gone_goes_on_by_the_stack(lab: HostLab, family: Family) -> None:
    """Nobody knows whose its segments are: past the stack go connections whose SYN was seen."""
    with lab.connected("pod1-1", pod(lab, "pod1-2", family), TCP) as sock:
        assert ask(sock)[0] == "pod1-2"
        ends = sock.getsockname()[:2], pod(lab, "pod1-2", family)
        key = direct_key(*ends, int(socket.IPPROTO_TCP))
        assert maps(lab).get("direct_tcp", key) is not None
        maps(lab).remove("direct_tcp", [key])
        with lab.ways() as ways:
            assert [ask(sock)[0] for _ in range(3)] == ["pod1-2"] * 3
    assert ways["into_pod"] == 0
    assert ways["forwarded"] >= 6


@BOTH
def test_hop_limit(lab: HostLab, family: Family) -> None:
    """One less for each packet, also past the stack; at its end the node answers."""
    ipv4 = family is Family.IPV4
    level, own, wanted = (
        (socket.IPPROTO_IP, socket.IP_TTL, 12) if ipv4 else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 51)
    )
    for to, target in (("pod1-2", lab.address("pod1-2", family)), ("service", CLUSTER_IP["local"][family])):
        with lab.open("pod1-2", family, UDP) as server, lab.open("pod1-1", family, UDP) as sock:
            port = 8081 if to == "pod1-2" else PORT
            if to == "pod1-2":
                server.setsockopt(level, wanted, 1)  # IP_RECVTTL, IPV6_RECVHOPLIMIT
                server.bind((lab.address("pod1-2", family), port))
            sock.setsockopt(level, own, 7)
            sock.connect((target, port if to == "pod1-2" else 80))
            with lab.ways() as ways:
                sock.send(b"?")
                if to == "pod1-2":
                    [(_, _, data)] = server.recvmsg(10, 100)[1]
                    assert int.from_bytes(data, "little") == 6
                else:
                    sock.recv(1000)
            assert (ways["forwarded"], ways["into_pod"]) == (0, 1 if to == "pod1-2" else 2)
            sock.setsockopt(level, own, 1)
            if not ipv4:
                sock.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
            else:
                sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
            with lab.ways() as ways:
                sock.send(b"?")
                with pytest.raises(OSError) as raised:
                    sock.recv(1000)
            assert raised.value.errno == errno.EHOSTUNREACH
            assert ways["into_pod"] == 0


@BOTH
def test_too_big_for_the_way(lab: HostLab, family: Family) -> None:
    """The node answers what a route has no room for; the sender learns, and what it sends then goes past the stack."""
    ip = ["ip", "-6" if family is Family.IPV6 else "-4", "route"]
    device = lab.lab.place("pod1-2").device  # type: ignore[attr-defined]
    route = [lab.address("pod1-2", family), "dev", device, "src", lab.node.addresses[family]]
    lab.lab.run(lab.node, [*ip, "replace", *route, "mtu", "1300"])
    try:
        lab.look()
        with lab.connected("pod1-1", pod(lab, "pod1-2", family), UDP) as sock:
            if family is Family.IPV4:
                sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            sock.send(b"?" * 1400)
            with pytest.raises(OSError) as raised:
                ask(sock)
            assert raised.value.errno == errno.EMSGSIZE
        with lab.ways() as ways:
            lab.transfer("pod1-1", "pod1-2", family, 1 << 20)
        assert ways["into_pod"] > 20
        assert "mtu 1300" in lab.lab.run("pod1-1", [*ip, "show", "cache"]).stdout
    finally:
        lab.lab.run(lab.node, [*ip, "replace", *route])
        lab.lab.run("pod1-1", [*ip, "flush", "cache"])
        lab.look()


@pytest.mark.parametrize("same_index", [True, False])
def test_a_pod_that_is_replaced(lab: HostLab, same_index: bool) -> None:
    """Its successor with the same addresses is reached at once, by the stack as long as its device is not known, and
    past it then. The device may have the same number."""
    sockets = [lab.connected("pod1-1", pod(lab, "pod1-2", family), UDP) for family in FAMILIES]
    with contextlib.ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(sock)
            ask(sock)
        stack.enter_context(lab.watching())
        index = remove_device(lab.lab, "pod1-2")
        _until(lambda: lab.host().reason(lab.address("pod1-2", Family.IPV4)) is not None)
        add_device(lab.lab, "pod1-2", index if same_index else 0)
        for family in FAMILIES:
            for kind in (TCP, UDP):
                assert fetch(lab, "pod1-1", pod(lab, "pod1-2", family), kind)[0] == "pod1-2"
        lab.look()
        for sock in sockets:
            assert ask(sock)[0] == "pod1-2"
        for family in FAMILIES:
            with lab.ways() as ways:
                assert fetch(lab, "pod1-1", pod(lab, "pod1-2", family), TCP)[0] == "pod1-2"
            assert ways["forwarded"] == 0


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("command", "undo", "reason"),
    [
        ("tc qdisc add dev {} root tbf rate 100mbit burst 64kb latency 50ms", "tc qdisc del dev {} root",
         "queueing discipline tbf limits what goes to the pod"),
        ("tc qdisc add dev {} clsact; tc filter add dev {} egress prio 7 bpf bytecode 1,6{w}0{w}0{w}0 classid 1:9",
         "tc qdisc del dev {} clsact", "a tc filter of another program (preference 7)"),
        ("ip link add vrf7 type vrf table 77; ip link set {} master vrf7", "ip link set {} nomaster; ip link del vrf7",
         "it belongs to vrf7 (vrf)"),
    ],
    ids=["tbf", "filter", "vrf"],
)  # fmt: skip
def test_devices_that_are_not_for_it(lab: HostLab, command: str, undo: str, reason: str) -> None:
    """They are named, and what goes to their pods goes by the stack, where it is limited and filtered."""
    device: str = lab.lab.place("pod1-2").device  # type: ignore[attr-defined]

    def run(commands: str) -> None:
        for each in commands.split("; "):
            lab.lab.run(lab.node, [word.replace("{}", device).replace("{w}", " ") for word in each.split()])

    try:
        run(command)
    except Exception as error:
        if "vrf" in command and "Unknown device type" in str(error):
            return  # this kernel has none
        raise
    try:
        lab.look()
        assert dict(lab.host().devices())[device] == reason
        assert lab.host().reason(lab.address("pod1-2", Family.IPV4)) == f"device {device}: {reason}"
        if "vrf" not in command:
            with lab.ways() as ways:
                fetch(lab, "pod1-1", pod(lab, "pod1-2", Family.IPV4), UDP)
                fetch(lab, "pod1-1", (CLUSTER_IP["local"][Family.IPV4], 80), TCP)
            assert ways["into_pod"] == 0
            assert ways["forwarded"] >= 12
    finally:
        run(undo)
        lab.look()
    assert dict(lab.host().devices())[device] is None


@BOTH
def test_sources_that_are_not_the_pods(lab: HostLab, family: Family) -> None:
    """Another pod's address, and one of nobody, are the stack's to judge."""
    for source in (lab.address("pod2-2", family), FOREIGN[family], lab.node.addresses[family]):
        with lab.open("pod1-1", family, UDP) as sock, lab.ways() as ways:
            option = (socket.SOL_IP, _IP_TRANSPARENT) if family is Family.IPV4 else (_SOL_IPV6, _IPV6_TRANSPARENT)
            sock.setsockopt(*option, 1)
            sock.bind((source, 0))
            sock.sendto(b"?", pod(lab, "pod1-2", family))
        assert (ways["into_pod"], ways["out_of_node"]) == (0, 0)


@BOTH
@KINDS
def test_full_tables(lab: HostLab, family: Family, kind: socket.SocketKind) -> None:
    """No room for a flow: it goes by the stack. Where one of the stack's datagrams could not be noted, all that nobody
    knows are the stack's."""
    name = "direct_tcp" if kind is TCP else "direct_udp"
    held = maps(lab)
    filled = []
    with contextlib.suppress(Exception):
        for number in range(held.specs[name].max_entries + 64):
            key = direct_key(("203.0.113.1", number % 60000), (f"203.0.113.{2 + number // 60000}", 9), int(
                socket.IPPROTO_TCP if kind is TCP else socket.IPPROTO_UDP))  # fmt: skip
            held.put(name, key, FLOW.pack((1 << 62), 0, 0, 0, 0, bytes(32), bytes(32)))
            filled.append(key)
    try:
        with lab.ways() as ways:
            assert fetch(lab, "pod1-1", pod(lab, "pod1-2", family), kind)[0] == "pod1-2"
        assert ways["forwarded"] >= 6
        with translating(lab), lab.connected("pod1-1", (FOREIGN[family], PORT), kind) as sock:
            assert ask(sock)[0] == "pod1-2"
            held.remove(name, filled)
            assert [ask(sock)[0] for _ in range(3)] == ["pod1-2"] * 3
    finally:
        held.remove(name, filled)
        held.put("host_times", (1).to_bytes(4, "little"), bytes(8))
    with lab.ways() as ways:
        fetch(lab, "pod1-1", pod(lab, "pod1-2", family), kind)
    assert ways["forwarded"] == 0


def test_without_its_daemon_it_ends(lab: HostLab) -> None:
    """What goes past the stack goes by it once the lease has ended, and no connection breaks."""
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(lab.connected("pod1-1", pod(lab, "pod1-2", family), kind))
            for family in FAMILIES
            for kind in (TCP, UDP)
        ]
        for sock in sockets:
            ask(sock)
        maps(lab).put("host_times", bytes(4), (1).to_bytes(8, "little"))
        try:
            with lab.ways() as ways:
                for sock in sockets:
                    assert ask(sock)[0] == "pod1-2"
            assert ways["into_pod"] == 0
        finally:
            lab.look()
        for sock in sockets:
            assert ask(sock)[0] == "pod1-2"


@BOTH
def test_node_port_to_a_local_pod_and_its_errors(lab: HostLab, family: Family) -> None:
    """A closed port is refused to the client by the address that it knows."""
    with lab.ways() as ways:
        assert fetch(lab, "client", (lab.node.addresses[family], LOCAL), TCP)[0] == "pod1-2"
    assert ways["forwarded"] == 0
    with lab.connected("pod1-1", (lab.address("pod1-2", family), 9), UDP) as sock:
        sock.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(10)
    with pytest.raises(ConnectionRefusedError):
        lab.connected("pod1-1", (lab.address("pod1-2", family), 9), TCP)
