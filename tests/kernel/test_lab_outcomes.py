"""Probes tell the truth: answered, refused, dropped and unclaimed are four different things on the wire."""

import os
from collections.abc import Iterator

import pytest

from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabError, LabSpec
from dataplane.lab.traffic.probe import Outcome, Probe
from dataplane.model.net import Family, Protocol

PORT = 8080
PATIENCE = 60.0

RULES = """
table inet test {
    chain input {
        type filter hook input priority 0
        meta l4proto { tcp, udp } th dport 1001 drop
        meta l4proto { tcp, udp } th dport 1002 reject with icmpx type port-unreachable
        tcp dport 1003 reject with tcp reset
    }
}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"outcomes-{os.getpid()}", nodes=2, pods=1, ipv6=True)) as lab:
        lab.start_echo([*lab.nodes, *lab.pods], [PORT])
        lab.run("node2", ["nft", "-f", "-"], input=RULES)
        yield lab


WAYS = [
    pytest.param(
        family, protocol, connected, id=f"{family.name}-{protocol.text}-{'connect' if connected else 'sendto'}"
    )
    for family in Family
    for protocol, connected in ((Protocol.TCP, True), (Protocol.UDP, True), (Protocol.UDP, False))
]


@pytest.mark.parametrize("source", ["pod1-1", "node1", "client"])
@pytest.mark.parametrize(("family", "protocol", "connected"), WAYS)
def test_outcomes_are_told_apart(lab: Lab, source: str, family: Family, protocol: Protocol, connected: bool) -> None:
    target = lab.nodes[1].addresses[family]
    unclaimed = "192.0.2.77" if family is Family.IPV4 else "2001:db8::77"
    answered, dropped, rejected, closed, nobody = lab.probe(
        source,
        Probe(target, PORT, protocol, count=2, timeout=PATIENCE, connected=connected),
        Probe(target, 1001, protocol, count=2, timeout=0.2, connected=connected),
        Probe(target, 1002, protocol, count=2, timeout=PATIENCE, connected=connected),
        Probe(target, 1004, protocol, count=2, timeout=PATIENCE, connected=connected),
        Probe(unclaimed, PORT, protocol, count=2, timeout=PATIENCE, connected=connected),
    )
    assert answered.outcomes == {Outcome.ANSWERED: 2}
    assert dropped.outcomes == {Outcome.TIMEOUT: 2}
    assert rejected.outcomes == {Outcome.REFUSED: 2}
    assert rejected.details == {"icmp": 2}
    assert closed.outcomes == {Outcome.REFUSED: 2}
    assert closed.details == {"rst" if protocol is Protocol.TCP else "icmp": 2}
    if source != "client":  # the client's go to the entry node, which sends them on by its default route
        assert nobody.outcomes == {Outcome.ERROR: 2}
        assert set(nobody.details) <= {"EHOSTUNREACH", "ENETUNREACH"}


@pytest.mark.parametrize("family", Family)
def test_unclaimed_addresses_from_the_client_are_unreachable_as_well(lab: Lab, family: Family) -> None:
    unclaimed = "192.0.2.77" if family is Family.IPV4 else "2001:db8::77"
    [result] = lab.probe("client", Probe(unclaimed, PORT, count=2, timeout=PATIENCE))
    assert result.details == {"EHOSTUNREACH" if family is Family.IPV4 else "ENETUNREACH": 2}


@pytest.mark.parametrize("family", Family)
def test_many_rejects_at_once_are_never_taken_for_drops(lab: Lab, family: Family) -> None:
    """The kernel's ICMP rate limits would answer a few and swallow the rest."""
    target = lab.nodes[1].addresses[family]
    udp, tcp = lab.probe(
        "client", *(Probe(target, 1002, p, count=2000, timeout=PATIENCE) for p in (Protocol.UDP, Protocol.TCP)),
        concurrency=500,
    )  # fmt: skip
    assert udp.outcomes == {Outcome.REFUSED: 2000}
    assert tcp.outcomes == {Outcome.REFUSED: 2000}


def test_reset_by_a_rule_is_a_reset(lab: Lab) -> None:
    [result] = lab.probe("client", Probe(lab.nodes[1].addresses[Family.IPV4], 1003, timeout=PATIENCE))
    assert result.details == {"rst": 1}


def test_ten_thousand_connections_are_all_answered(lab: Lab) -> None:
    target = lab.place("pod2-1").addresses[Family.IPV4]
    tcp, udp = lab.probe(
        "pod1-1",
        Probe(target, PORT, count=10000, timeout=PATIENCE),
        Probe(target, PORT, Protocol.UDP, count=5000, timeout=PATIENCE),
        concurrency=200,
    )
    assert tcp.outcomes == {Outcome.ANSWERED: 10000}
    assert udp.outcomes == {Outcome.ANSWERED: 5000}


def test_bad_requests_are_named_and_the_next_one_works(lab: Lab) -> None:
    target = lab.nodes[1].addresses[Family.IPV4]
    with pytest.raises(LabError, match=r"client: the probe agent failed.*SCTP"):
        lab.probe("client", Probe(target, PORT, Protocol.SCTP))
    [result] = lab.probe("client", Probe(target, PORT, timeout=PATIENCE))
    assert result.servers == {"node2": 1}
    with pytest.raises(LabError, match=r"no pod9-9; it has node1, pod1-1"):
        lab.probe("pod9-9", Probe(target, PORT))


def test_echo_server_that_cannot_listen_is_an_error_that_says_why(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"node1: the echo server on ports \[8080\].*Address already in use"):
        lab.start_echo(["node1"], [PORT], ["tcp"])


def test_servers_have_the_time_to_start_that_the_machine_is_allowed(lab: Lab) -> None:
    lab.allow(1e-6)
    with pytest.raises(LabError, match=r"echo server on ports .*8081.* does not start"):
        lab.start_echo([lab.pods[0]], [8081])
    lab.allow(2)
    lab.start_echo([lab.pods[0]], [8082])
