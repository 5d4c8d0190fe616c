"""Refusals as the page tells them."""

from ctl.ui.refusals import MOST, told
from dataplane.planes.decisions import Decision, Kind


def decision(source: str, hook: str, kind: Kind = Kind.REFUSED, destination: str = "203.0.113.10:80") -> Decision:
    return Decision(0.0, hook, "r", "tcp", source, destination, "", "", 0, 60, kind, "why")


def test_alike_refusals_are_one_and_a_packet_counts_once() -> None:
    twice = [decision(f"198.51.100.2:{port}", hook) for port in (1, 2, 3) for hook in ("xdp", "tc_ingress")]
    others = [
        decision("[fd00::1]:9", "tc_ingress"),
        decision("netns:17", "connect", Kind.UNSERVED),
        decision("198.51.100.3:1", "tc_ingress", Kind.NEW),
        decision("198.51.100.3:1", "tc_ingress", Kind.PACKET),
    ]
    assert [event.text for event in told("node1", [*twice, *others])] == [
        "198.51.100.2 → 203.0.113.10:80/tcp: why, 3 packets",
        "fd00::1 → 203.0.113.10:80/tcp: why",
        "netns:17 → 203.0.113.10:80/tcp: why",
    ]


def test_not_more_than_anybody_reads() -> None:
    found = told("node1", [decision(f"198.51.100.{number}:1", "xdp") for number in range(50)])
    assert len(found) == MOST + 1
    assert found[-1].text == "and 30 more kinds"
