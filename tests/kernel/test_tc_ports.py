"""Source ports of this node: whose they are, how long they rest, and to whom they go next."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import TCP, UDP

from dataplane.kernel.namespaces import netns
from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.collect import sweep
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES
from dataplane.planes.ebpf.flows.ports import snat_fields
from dataplane.planes.ebpf.maps.mapset import NODE_KEY
from dataplane.planes.ebpf.maps.node_settings import LIFETIMES, NODE
from tests.kernel.bpf_packets.bench import Bench, ip, ip_of
from tests.kernel.bpf_packets.talk import OPEN, SNAT_AT, Talk, age, one_port
from tests.kernel.test_tc_packets import ADDRESSES, FAMILIES, SENT, Runner, _bench, node, run

__all__ = ["_bench", "node", "run"]

PORT, REST = 61000, LIFETIMES["tcp_rest_seconds"]
NUMBER, TIME = 0xFFFFFFF0, 0xFFFFFF00
"""Where the client that closes is with its sequence numbers and its clock: both wrap soon."""
Stamp = list[tuple[str, tuple[int, int] | None]]


def stamp(time: int | None) -> Stamp:
    """The timestamp option of a segment as every stack lays it out (RFC 7323, appendix A)."""
    return [] if time is None else [("NOP", None), ("NOP", None), ("Timestamp", (time % 2**32, 1))]


def closed_by_backend(node: Bench, family: Family, time: int | None) -> None:
    """A connection whose backend closed first, so that it remembers it: what follows NUMBER is the client's last."""
    flow = Talk(node, family, TCP)
    flow.ask("S", seq=(NUMBER - 1) % 2**32, options=stamp(time))
    flow.answer("SA", seq=1000, ack=NUMBER, options=stamp(1))
    flow.ask("A", seq=NUMBER, ack=1001, options=stamp(time))
    flow.answer("FA", seq=1001, ack=NUMBER, options=stamp(1))
    flow.ask("FA", seq=NUMBER, ack=1002, options=stamp(time))
    flow.answer("A", seq=1002, ack=(NUMBER + 1) % 2**32, options=stamp(1))
    assert (flow.source_port, node.flows()) == (PORT, 1)


def begin(node: Bench, run: Runner, family: Family, sequence: int, time: int | None) -> str:
    """Another client's SYN; out: the reason. What is sent on has the only port."""
    client, own = ADDRESSES[family][:2]
    segment = TCP(sport=5000, dport=30080, flags="S", seq=sequence % 2**32, options=stamp(time))
    frame = node.frame(ip(family, client, own) / segment)
    with node.counted() as counted:
        out = run(frame)
    if out.result in SENT:
        assert ip_of(out.data).sport == PORT
    else:
        assert out.data == frame
    return next(iter(counted)).partition(":")[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_that_the_backend_remembers_rests(node: Bench, run: Runner, family: Family) -> None:
    with one_port(node, PORT):
        closed_by_backend(node, family, None)
        assert begin(node, run, family, NUMBER - 5, None) == "snat_exhausted"
        age(node, REST - 5, *FLOW_TABLES, just_used=True)
        sweep(node.maps)
        assert begin(node, run, family, NUMBER - 5, None) == "snat_exhausted"
        age(node, 10, *FLOW_TABLES)
        sweep(node.maps)
        assert begin(node, run, family, NUMBER - 5, None) == "new_flow"


@pytest.mark.parametrize(
    ("last", "sequence", "time", "taken"),
    [
        (TIME, NUMBER - 1000, TIME + 1, True),
        (TIME, NUMBER - 1000, TIME + 2**31 - 1, True),
        (TIME, NUMBER - 1000, TIME + 1000, True),
        (TIME, NUMBER + 1000, TIME, False),
        (TIME, NUMBER + 1000, TIME - 1, False),
        (TIME, NUMBER + 1000, TIME + 2**31 + 1, False),
        (None, NUMBER + 2, None, True),
        (None, NUMBER + 2**31, None, True),
        (None, NUMBER + 1, None, False),
        (None, NUMBER - 1, None, False),
        (None, NUMBER + 2**31 + 2, None, False),
        (TIME, NUMBER + 2, None, True),
        (TIME, NUMBER - 2, None, False),
        (None, NUMBER + 2, TIME, True),
        (None, NUMBER - 2, TIME, False),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_resting_port_goes_to_whom_the_backend_takes(
    node: Bench, run: Runner, family: Family, last: int | None, sequence: int, time: int | None, taken: bool
) -> None:
    """By timestamps where both have them, else by sequence numbers; both wrap."""
    with one_port(node, PORT):
        closed_by_backend(node, family, last)
        reason = begin(node, run, family, sequence, time)
        assert reason == ("new_flow" if taken else "snat_exhausted")
        assert node.flows() == (2 if taken else 1)


@pytest.mark.parametrize("end", ["ask FA, answer FA, ask A", "answer R", "ask R"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_that_no_backend_remembers_is_free_at_once(node: Bench, run: Runner, family: Family, end: str) -> None:
    with one_port(node, PORT):
        Talk(node, family, TCP).play(f"{OPEN}, {end}")
        assert begin(node, run, family, 1, None) == "new_flow"


@contextmanager
def _socket(node: Bench, family: Family, kind: socket.SocketKind) -> Iterator[socket.socket]:
    with netns.in_netns(node.namespace, socket.socket, family.socket_family, kind) as made:
        made.setblocking(False)
        made.bind((ADDRESSES[family][1], PORT))
        yield made


@pytest.mark.parametrize("state", ["listening", "connected", "bound"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_at_which_a_socket_hears_the_backend_is_not_given_out(
    node: Bench, run: Runner, family: Family, state: str
) -> None:
    """Its answers would be taken for the socket's; a connection to somebody else takes nothing away."""
    client, own, remote, *_ = ADDRESSES[family]
    layer = UDP(sport=5000, dport=30080) if state == "bound" else TCP(sport=5000, dport=30080, flags="S")
    frame = node.frame(ip(family, client, own) / layer)
    with (
        one_port(node, PORT),
        _socket(node, family, socket.SOCK_DGRAM if state == "bound" else socket.SOCK_STREAM) as sock,
    ):
        if state == "listening":
            sock.listen()
        if state == "connected":
            assert sock.connect_ex((remote, 8080)) > 0  # on the way
        with node.counted() as counted:
            assert run(frame).data == frame
        assert next(iter(counted)).endswith(":own_port")
        assert node.flows() == 0
    with one_port(node, PORT), _socket(node, family, socket.SOCK_STREAM) as sock:
        sock.connect_ex((remote, 8081))
        with node.counted() as counted:
            assert run(frame).result in SENT
        assert next(iter(counted)).endswith(":new_flow")


@pytest.mark.parametrize("family", FAMILIES)
def test_idle_connections_do_not_keep_others_from_free_ports(node: Bench, run: Runner, family: Family) -> None:
    """Two ports of six belong to connections that have been silent for minutes; the others are free."""
    raw = node.maps.get("node", NODE_KEY)
    assert raw is not None
    fields = list(NODE.unpack(raw))
    with one_port(node, PORT):
        for number in (1, 2):
            fields[SNAT_AT] = snat_fields([(PORT + number, PORT + number)])
            node.maps.put("node", NODE_KEY, NODE.pack(*fields))
            Talk(node, family, TCP, 4000 + number).play(OPEN)
        age(node, 300, *FLOW_TABLES)
        fields[SNAT_AT] = snat_fields([(PORT, PORT + 5)])
        node.maps.put("node", NODE_KEY, NODE.pack(*fields))
        for number in range(20):
            client, own = ADDRESSES[family][:2]
            segment = TCP(sport=5000 + number, dport=30080, flags="S", seq=number)
            with node.counted() as counted:
                run(node.frame(ip(family, client, own) / segment))
            assert next(iter(counted)).endswith(":new_flow")
            assert Talk(node, family, TCP, 5000 + number).ask("R", seq=number + 1) == "flow"
            assert node.flows() == 4
