"""Segments without an entry, one by one through test runs: which are of a connection that another node took."""

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from scapy.layers.inet import TCP

from dataplane.model.net import Family
from dataplane.plan.types import PlanEntry
from dataplane.planes.ebpf.flows.entries import ESTABLISHED, FIN, FLOW_TABLES, LEFT, RST
from dataplane.planes.ebpf.maps.node_settings import write_notes_answers, write_takes_over
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.forwarding import Forwarding
from dataplane.policy.maglev import Hashing
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry, ip
from tests.kernel.test_forwarding_packets import CLIENT, FAMILIES, NODE, NODE2, POD, REMOTE, forwarded

DSR, TUNNEL, HERE, BY_CHANCE, LOCAL_POLICY, SNAT = range(30080, 30086)
"""Node ports, by how their packets are handled."""


def entries(family: Family) -> Iterator[PlanEntry]:
    """The bench's Services."""

    def made(name: str, port: int, address: str, way: Forwarding, **rest: Any) -> PlanEntry:
        found = entry(f"{name}-{family.name}".lower(), [address], node_port=port, family=family, **rest)
        return replace(
            forwarded(found, way) if way is not Forwarding.SNAT else found,
            algorithm=Algorithm.RANDOM if port == BY_CHANCE else Algorithm.MAGLEV,
        )

    yield made("dsr", DSR, REMOTE[family], Forwarding.DSR)
    yield made("tunnel", TUNNEL, REMOTE[family], Forwarding.TUNNEL)
    yield made("here", HERE, POD[family], Forwarding.DSR)
    yield made("chance", BY_CHANCE, REMOTE[family], Forwarding.DSR)
    yield made("local", LOCAL_POLICY, POD[family], Forwarding.SNAT, local_policy=True)
    yield made("snat", SNAT, REMOTE[family], Forwarding.SNAT)


@pytest.fixture(scope="module")
def _bench() -> Iterator[Bench]:
    with bench() as made:
        made.tables.rehash(Hashing(31, 1))
        made.accept(*NODE2.values())
        for family in FAMILIES:
            made.install(*entries(family))
        yield made


@pytest.fixture
def node(_bench: Bench) -> Iterator[Bench]:
    """The bench, without any flow, that takes connections over."""
    write_takes_over(_bench.maps, True)
    yield _bench
    _bench.forget(*FLOW_TABLES)


def told(node: Bench, family: Family, port: int, flags: str, source: str = "") -> set[str]:
    """What a client's segment is counted as."""
    sent = ip(family, source or CLIENT[family], NODE[family]) / TCP(sport=4000, dport=port, flags=flags, seq=9, ack=8)
    with node.counted() as counted:
        node.tc(node.frame(sent))
    return {name.partition(":")[2] for name in counted}


def facts(node: Bench, family: Family, port: int) -> int:
    """Flags of the entry for what the client sends."""
    found = node.flow(CLIENT[family], 4000, NODE[family], port)
    assert found is not None
    return int(found["facts"])


@pytest.mark.parametrize("family", FAMILIES)
def test_who_is_taken_over(node: Bench, family: Family) -> None:
    assert told(node, family, DSR, "A") == {"taken_over", "flow", "forwarded"}
    assert told(node, family, DSR, "A") == {"flow", "forwarded"}
    assert told(node, family, TUNNEL, "PA") == {"taken_over", "flow", "forwarded"}
    assert told(node, family, HERE, "FA") == {"taken_over", "flow"}


@pytest.mark.parametrize("family", FAMILIES)
def test_who_is_not(node: Bench, family: Family) -> None:
    """Where nodes do not choose alike, where they do not forward, whoever is no client from outside, and what does not
    belong to a connection that stands. Nobody at all before the connections of the slow path are known."""
    for port in (BY_CHANCE, LOCAL_POLICY, SNAT):
        assert told(node, family, port, "A") == {"tcp_no_syn"}, port
    for source in (REMOTE[family], NODE2[family]):
        assert told(node, family, DSR, "A", source) <= {"tcp_no_syn", "remote_pod"}, source
    for flags in ("SA", "F", ""):
        assert told(node, family, DSR, flags) == {"tcp_no_syn"}, flags
    write_takes_over(node.maps, False)
    assert told(node, family, DSR, "A") == {"tcp_no_syn"}
    assert node.flows() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_one_segment_does_not_make_an_entry_that_lasts(node: Bench, family: Family) -> None:
    """With dsr nobody hears the endpoint deny it: another segment has to come. An RST leaves nothing that lasts."""
    told(node, family, DSR, "A")
    assert not facts(node, family, DSR) & ESTABLISHED
    told(node, family, DSR, "A")
    assert facts(node, family, DSR) & ESTABLISHED
    told(node, family, TUNNEL, "A")
    assert facts(node, family, TUNNEL) & ESTABLISHED
    told(node, family, HERE, "R")
    assert node.flow(CLIENT[family], 4000, NODE[family], HERE) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_of_the_slow_path_keeps_its_connection_there(node: Bench, family: Family) -> None:
    """Until it ends, or a new one begins. What the slow path says to pods is not remembered, nor other answers, nor
    anything where connections of other nodes do not go on."""

    def leaves(flags: str, to: str) -> None:
        answer = ip(family, NODE[family], to) / TCP(sport=DSR, dport=4000, flags=flags)
        assert node.tc(node.frame(answer), egress=True).result == b.TC_NEXT

    write_takes_over(node.maps, False)
    leaves("SA", CLIENT[family])
    assert node.flows() == 0
    write_notes_answers(node.maps)
    for flags, to in (("SA", POD[family]), ("A", CLIENT[family])):
        leaves(flags, to)
        assert node.flows() == 0
    leaves("SA", CLIENT[family])
    write_takes_over(node.maps, True)
    assert told(node, family, DSR, "A") == {"left_flow"}
    assert facts(node, family, DSR) & LEFT
    assert told(node, family, DSR, "FA") == {"left_flow"}
    assert facts(node, family, DSR) & FIN == FIN
    assert not facts(node, family, DSR) & RST
    assert told(node, family, DSR, "S") == {"new_flow", "forwarded"}
    assert not facts(node, family, DSR) & LEFT
