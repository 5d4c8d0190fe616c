"""The scenarios that are measured, and the figures that each gives.

TCP_CRR, TCP_RR, TCP_STREAM, UDP_RR and UDP_STREAM are netperf's tests of these names, with its default sizes: a byte
there and a byte back. Service level indicators are those that Kubernetes' SIG Scalability names.
"""

import enum
from typing import NamedTuple


class Kind(enum.StrEnum):
    """The part that a scenario exercises: packets through the data plane, the control plane itself, or packets while
    something happens to either (see bench.events)."""

    DATA = "data"
    CONTROL = "control"
    EVENT = "event"


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
    "program" test runs of the XDP program; of an event, what happens (see events.events). sweep: measured for every
    number of Services, otherwise only where the profile says. few: also where Services are few. bar: a bar is about it,
    so it gets more rounds. beside: the scenario that it is compared with, so that the two follow each other closely.
    alone: on a node that has one Service, while all others have the most. scaling: measured on 1, 2, … processors, as
    many as were asked for (see processors). at_once: so many connections or flows are under way at a time.
    probed: of peers alone, by packets from outside of them (see peer.control).
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
    load: float = 0.0
    sli: str = ""
    scaling: bool = False
    probed: bool = False
    at_once: int = 0

    @property
    def to_another_node(self) -> bool:
        """True if it is packets from outside to an endpoint of another node, on the usual processors."""
        sent = self.kind is Kind.DATA and self.operation != "program" and not self.scaling
        return sent and self.way is Way.NODE_PORT_REMOTE


IMBALANCE = "imbalance"
AT_ONCE = (16, 64)
FIRST_PACKET, PROGRAMMING = "first packet latency", "network programming latency"
THROUGHPUT = "throughput to Services"


def _probed(name: str, title: str, metric: str, unit: str) -> Scenario:
    return Scenario(
        name, title, Kind.CONTROL, metric, unit, higher=False, way=Way.NONE, sweep=True, sli=PROGRAMMING, probed=True
    )


def _paced(share: int) -> Scenario:
    return Scenario(
        f"TCP_CRR@{share}", f"TCP_CRR at {share} % of its rate, latency from when each was due", Kind.DATA, "p99", "ns",
        higher=False, operation="crr", beside="TCP_CRR", load=share / 100,
    )  # fmt: skip


def _at_once(name: str, operation: str, what: str, count: int) -> Scenario:
    title = f"{what}, {count} at a time"
    return Scenario(f"{name}-{count}", title, Kind.DATA, "rate", "1/s", operation=operation, at_once=count)


def _during(name: str, operation: str, what: str, metric: str = "p99") -> Scenario:
    title = f"{what}: a steady load meanwhile, latency from when each connection was due"
    return Scenario(f"during-{name}", title, Kind.EVENT, metric, "ns", higher=False, operation=operation)


SCENARIOS = {
    s.name: s
    for s in (
        Scenario(
            "connect", "new TCP connections", Kind.DATA, "rate", "1/s", operation="connect", sweep=True, bar=True,
            sli=FIRST_PACKET,
        ),
        Scenario(
            "pod", "new TCP connections to the pod's own address, past the rules", Kind.DATA, "rate", "1/s",
            way=Way.POD, operation="connect", sweep=True, bar=True, beside="connect",
        ),
        Scenario(
            "connect-alone", "new TCP connections on a node with one Service, meanwhile", Kind.DATA, "rate", "1/s",
            operation="connect", bar=True, beside="connect", alone=True,
        ),
        Scenario(
            "TCP_CRR", "connect, a byte each way, close", Kind.DATA, "rate", "1/s", operation="crr", few=True,
        ),
        _paced(50),
        _paced(80),
        _paced(95),
        Scenario(
            "TCP_RR", "a byte each way on one TCP connection", Kind.DATA, "rate", "1/s", operation="rr", few=True,
        ),
        Scenario(
            "TCP_STREAM", "bulk TCP, one stream", Kind.DATA, "rate", "bit/s", operation="iperf3 1", few=True, bar=True,
            sli=THROUGHPUT,
        ),
        Scenario(
            "TCP_STREAM-4", "bulk TCP, four streams", Kind.DATA, "rate", "bit/s", operation="iperf3 4", sli=THROUGHPUT,
        ),
        *(_at_once("connect", "connects", "new TCP connections", count) for count in AT_ONCE),
        *(_at_once("TCP_RR", "exchanges", "a byte each way on TCP connections", count) for count in AT_ONCE),
        Scenario("UDP_RR", "a byte each way, one UDP socket", Kind.DATA, "rate", "1/s", operation="urr"),
        Scenario("UDP_STREAM", "UDP packets, one flow", Kind.DATA, "rate", "packets/s", operation="udp"),
        Scenario(
            "dns", "DNS-like UDP queries, a socket each", Kind.DATA, "rate", "1/s", operation="dns", few=True,
        ),
        Scenario(
            "north-local", "new TCP connections from outside, backend on the node", Kind.DATA, "rate", "1/s",
            way=Way.NODE_PORT_LOCAL, operation="connect", few=True,
        ),
        Scenario(
            "north-remote", "new TCP connections from outside, backend on another node", Kind.DATA, "rate", "1/s",
            way=Way.NODE_PORT_REMOTE, operation="connect", bar=True,
        ),
        Scenario(
            "north-remote-rr", "a byte each way from outside, backend on another node", Kind.DATA, "rate", "1/s",
            way=Way.NODE_PORT_REMOTE, operation="rr",
        ),
        Scenario(
            "north-remote-udp", "UDP packets from outside, backend on another node", Kind.DATA, "rate", "packets/s",
            way=Way.NODE_PORT_REMOTE, operation="udp",
        ),
        Scenario(
            "north-remote-pps", "UDP packets of the kernel's own making, backend on another node", Kind.DATA, "rate",
            "packets/s", way=Way.NODE_PORT_REMOTE, operation="live", bar=True,
        ),
        Scenario(
            "xdp-cost", "one packet in the XDP program, established flow to another node", Kind.DATA, "ns", "ns",
            higher=False, way=Way.NODE_PORT_REMOTE, operation="program", bar=True,
        ),
        Scenario(
            "connect-processors", "new TCP connections, a client on each of so many processors", Kind.DATA, "rate",
            "1/s", operation="connect", scaling=True,
        ),
        Scenario(
            "forward-processors", "UDP packets of the kernel's own making by so many processors, backend on another "
            "node", Kind.DATA, "rate", "packets/s", way=Way.NODE_PORT_REMOTE, operation="live", scaling=True,
        ),
        Scenario(
            "coldstart", "cold start: decoded objects to kernel", Kind.CONTROL, "seconds", "s", higher=False,
            way=Way.NONE, sweep=True, bar=True,
        ),
        Scenario(
            "change", "one endpoint changes: event to kernel", Kind.CONTROL, "p99", "ns", higher=False, way=Way.NONE,
            sweep=True, bar=True, sli=PROGRAMMING,
        ),
        Scenario(
            "rollout", "100 endpoint changes a second: lag behind the event", Kind.CONTROL, "p99", "ns", higher=False,
            way=Way.NONE, sweep=True, sli=PROGRAMMING,
        ),
        _probed("first-cold", "a proxy's cold start until a connection through the last Service", "seconds", "s"),
        _probed("first-restart", "its restart until one meets the endpoint that came meanwhile", "seconds", "s"),
        _probed("first-change", "one change until a connection meets the new endpoint, median", "p50", "ns"),
        _probed("first-rollout", "the same under 100 other changes a second, median", "p50", "ns"),
        Scenario(
            IMBALANCE, "flows that stay while a Service's endpoints double, and as many new ones: the most of one "
            "endpoint over the mean", Kind.CONTROL, "most", "x mean", higher=False, way=Way.NONE, operation="scale",
        ),
        _during("rollout", "rollout", "100 endpoint changes a second"),
        _during("coldstart", "coldstart", "the proxy starts on a bare node, until the Service answers", "gap"),
        _during("restart", "restart", "the proxy ends and starts again"),
        _during("kill", "kill", "kill -9 of the proxy, which starts again"),
        _during("switch", "switch", "hotplane's daemon changes to another mode, and back"),
        _during("conntrack-full", "conntrack", "the node's connection table is nearly full"),
        _during("syn-flood", "syn-flood", "a SYN flood from outside"),
    )
}  # fmt: skip
RENAMED = {"rr": "TCP_RR", "bulk1": "TCP_STREAM", "bulk4": "TCP_STREAM-4", "udp": "UDP_STREAM"}
"""Earlier names, which results files of version 1 and habits have."""


class Position(enum.StrEnum):
    """Which of the Services is used: in the order of their names, which is that of iptables' rules."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"


def index(position: Position, services: int) -> int:
    """Number of that Service among `services`, from 0."""
    return {Position.FIRST: 0, Position.MIDDLE: services // 2, Position.LAST: services - 1}[position]
