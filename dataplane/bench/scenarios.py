"""What is measured: the scenarios and the figures that each gives."""

import enum
from typing import NamedTuple


class Kind(enum.StrEnum):
    """What a scenario exercises: packets through the data plane, or the control plane itself."""

    DATA = "data"
    CONTROL = "control"


class Way(enum.StrEnum):
    """How the packets go. CLUSTER_IP: pod to pod on one node through a clusterIP. NODE_PORT_*: from the outside client
    to a node port, backend on that node or on another one. POD: pod to pod without any Service, past the same rules."""

    CLUSTER_IP = "clusterIP"
    NODE_PORT_LOCAL = "node port, backend on the node"
    NODE_PORT_REMOTE = "node port, backend elsewhere"
    POD = "pod address"
    NONE = ""


class Scenario(NamedTuple):
    """One thing to measure. metric: the main figure, which bars and ratios are about. higher: more of it is better.

    operation: what the load generator is told; "iperf3 N" is bulk with N streams, "live" the kernel's own packets,
    "program" test runs of the XDP program. sweep: measured for every number of Services, otherwise only where the
    profile says. few: also where Services are few. bar: a bar is about it, so it gets more rounds. beside: the scenario
    that it is compared with, so that the two follow each other closely. alone: on a node that has one Service, while
    all others have the most. short: its name in pictures, with line breaks.
    """

    name: str
    title: str
    kind: Kind
    metric: str
    unit: str
    higher: bool = True
    way: Way = Way.CLUSTER_IP
    operation: str = ""
    sweep: bool = False
    few: bool = False
    bar: bool = False
    beside: str = ""
    alone: bool = False
    short: str = ""


SCENARIOS = {
    s.name: s
    for s in (
        Scenario(
            "connect", "new TCP connections", Kind.DATA, "rate", "1/s", operation="connect", sweep=True, bar=True,
            short="new TCP\nconnections",
        ),
        Scenario(
            "pod", "new TCP connections to the pod's own address, past the rules", Kind.DATA, "rate", "1/s",
            way=Way.POD, operation="connect", sweep=True, bar=True, beside="connect", short="past the\nrules",
        ),
        Scenario(
            "connect-alone", "new TCP connections on a node with one Service, meanwhile", Kind.DATA, "rate", "1/s",
            operation="connect", bar=True, beside="connect", alone=True, short="one\nService",
        ),
        Scenario(
            "dns", "DNS-like UDP queries, a socket each", Kind.DATA, "rate", "1/s", operation="dns", few=True,
            short="DNS-like\nUDP",
        ),
        Scenario(
            "rr", "request and response, warm TCP connection", Kind.DATA, "rate", "1/s", operation="rr", few=True,
            short="warm\nrequests",
        ),
        Scenario(
            "bulk1", "bulk TCP, one stream", Kind.DATA, "rate", "bit/s", operation="iperf3 1", few=True, bar=True,
            short="bulk,\n1 stream",
        ),
        Scenario(
            "bulk4", "bulk TCP, four streams", Kind.DATA, "rate", "bit/s", operation="iperf3 4",
            short="bulk,\n4 streams",
        ),
        Scenario(
            "udp", "UDP packets, one flow", Kind.DATA, "rate", "packets/s", operation="udp", short="UDP\npackets",
        ),
        Scenario(
            "north-local", "new TCP connections from outside, backend on the node", Kind.DATA, "rate", "1/s",
            way=Way.NODE_PORT_LOCAL, operation="connect", few=True, short="outside,\nlocal",
        ),
        Scenario(
            "north-remote", "new TCP connections from outside, backend on another node", Kind.DATA, "rate", "1/s",
            way=Way.NODE_PORT_REMOTE, operation="connect", short="outside,\nremote",
        ),
        Scenario(
            "north-remote-rr", "request and response from outside, backend on another node", Kind.DATA, "rate", "1/s",
            way=Way.NODE_PORT_REMOTE, operation="rr", short="outside,\nremote, warm",
        ),
        Scenario(
            "north-remote-udp", "UDP packets from outside, backend on another node", Kind.DATA, "rate", "packets/s",
            way=Way.NODE_PORT_REMOTE, operation="udp", short="outside,\nremote, UDP",
        ),
        Scenario(
            "north-remote-pps", "UDP packets of the kernel's own making, backend on another node", Kind.DATA, "rate",
            "packets/s", way=Way.NODE_PORT_REMOTE, operation="live", bar=True, short="kernel's own\npackets",
        ),
        Scenario(
            "xdp-cost", "one packet in the XDP program, established flow to another node", Kind.DATA, "ns", "ns",
            higher=False, way=Way.NODE_PORT_REMOTE, operation="program", bar=True,
        ),
        Scenario(
            "coldstart", "cold start: decoded objects to kernel", Kind.CONTROL, "seconds", "s", higher=False,
            way=Way.NONE, sweep=True, bar=True,
        ),
        Scenario(
            "change", "one endpoint changes: event to kernel", Kind.CONTROL, "p99", "ns", higher=False, way=Way.NONE,
            sweep=True, bar=True,
        ),
        Scenario(
            "rollout", "100 endpoint changes a second: lag behind the event", Kind.CONTROL, "p99", "ns", higher=False,
            way=Way.NONE, sweep=True,
        ),
    )
}  # fmt: skip


class Position(enum.StrEnum):
    """Which of the Services is used: in the order of their names, which is that of iptables' rules."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"


def index(position: Position, services: int) -> int:
    """Number of that Service among `services`, from 0."""
    return {Position.FIRST: 0, Position.MIDDLE: services // 2, Position.LAST: services - 1}[position]
