"""What the kernel holds: the records of `show` and the streams of `top` and `monitor`."""

from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from ctl.schema.words import Count, FrontendText, PortName, TimeText, Versioned


class RouteRecord(TypedDict):
    """What becomes of packets of one class of sources."""

    action: Annotated[Literal["forward", "reject", "drop"], Meta(description="what is done with them")]
    set: Annotated[
        Literal["cluster", "local"] | None, Meta(description="the endpoints that they are forwarded to; null: none")
    ]
    masquerade: Annotated[bool, Meta(description="whether they get the node's address as source, if the class says so")]


class _Forwarding(Versioned, total=False):
    forwarding: Annotated[
        str,
        Meta(
            description="where a Service asks for it: how traffic from outside gets to endpoints of other nodes; empty "
            "where it does not concern this one"
        ),
    ]


class ServiceRecord(_Forwarding):
    """A frontend of a Service port."""

    service: PortName
    frontend: FrontendText
    pods: Annotated[RouteRecord, Meta(description="packets of pods")]
    node: Annotated[RouteRecord, Meta(description="packets of the node itself")]
    outside: Annotated[RouteRecord, Meta(description="packets of everybody else")]
    cluster: Annotated[list[str], Meta(description="endpoints of the set cluster, as address:port")]
    local: Annotated[list[str], Meta(description="endpoints of the set local, as address:port")]
    algorithm: Annotated[Literal["random", "maglev"], Meta(description="how clients from outside get their endpoint")]
    endpoints: Annotated[int, Meta(description="number of different endpoints in both sets")]
    affinitySeconds: Annotated[int, Meta(description="how long a client keeps its endpoint; 0: no session affinity")]
    sources: Annotated[
        list[str] | None, Meta(description="CIDRs that may use the frontend, none if empty; null: everyone")
    ]


class EndpointRecord(_Forwarding):
    """An endpoint of a Service port."""

    service: PortName
    endpoint: Annotated[str, Meta(description="address:port")]
    sets: Annotated[list[Literal["cluster", "local"]], Meta(description="sets that it is in")]
    weight: Annotated[int, Meta(description="its places among those that are drawn from; all 1 without weights")]
    frontends: Annotated[list[str], Meta(description="frontends that lead to it")]


class AffinityRecord(Versioned):
    """A client that session affinity remembers."""

    service: PortName
    frontend: Annotated[str, Meta(description="where the mode remembers by frontend, else empty")]
    client: Annotated[str, Meta(description="its address; empty where the kernel holds a hash of it (nftables, IPv6)")]
    endpoint: Annotated[str, Meta(description="address:port; empty if it is gone or not known")]
    secondsLeft: Annotated[int | None, Meta(description="until it is forgotten; null: not known")]


class CourseRecord(TypedDict):
    """Which way packets go past or by the node's stack."""

    past: Annotated[bool, Meta(description="past the stack")]
    out: Annotated[Literal["pod", "uplink"] | None, Meta(description="where they leave past it; null: by the stack")]
    reason: Annotated[str | None, Meta(description="why by the stack; null: past it")]


class _Connection(Versioned):
    service: PortName
    frontend: FrontendText
    client: Annotated[str, Meta(description="address:port; `socket` where it was pointed to the endpoint by connect()")]
    endpoint: Annotated[str, Meta(description="address:port")]
    state: Annotated[str, Meta(description="as connection tracking or the programs name it")]
    secondsLeft: Annotated[int | None, Meta(description="until connection tracking forgets it; null: not its own")]


class ConnectionRecord(_Connection, total=False):
    """A connection through a frontend."""

    idleSeconds: Annotated[float, Meta(description="ebpf mode: since its last packet, of those that programs track")]
    packets: Annotated[int, Meta(description="ebpf mode: of its client, of those that programs track")]
    bytes: Annotated[int, Meta(description="ebpf mode: of its client, of those that programs track")]
    by: Annotated[Literal["connect", "packet programs", "slow path"], Meta(description="ebpf mode: what translates it")]
    forwarded: Annotated[
        str,
        Meta(
            description="where it goes between nodes: to which one its packets, or their answers, are sent, and in what"
        ),
    ]
    way: Annotated[
        CourseRecord,
        Meta(description="ebpf mode, beside a daemon: which way its packets go now; of a socket, new ones'"),
    ]


class DropRecord(Versioned):
    """Packets that were refused, dropped or not served, for one reason."""

    service: Annotated[str, Meta(description="namespace/name:port; empty where it is not counted by frontend")]
    frontend: Annotated[str, Meta(description="address:port/protocol; empty where it is not counted by frontend")]
    hook: Annotated[str, Meta(description="the hook of the program, or the mode whose rules refused")]
    reason: Annotated[str, Meta(description="name of the reason, the same in all modes")]
    count: Annotated[int, Meta(description="packets; nftables mode: first packets of connections")]
    what: Annotated[str, Meta(description="what became of them, in words")]


class OffRecord(Versioned):
    """Somebody for whom connect time is off."""

    what: Annotated[str, Meta(description="the pod, control group or network namespace")]
    why: Annotated[str, Meta(description="the label or option that asks for it")]
    where: Annotated[str, Meta(description="what the kernel knows of it, or why nothing")]
    inEffect: Annotated[bool, Meta(description="whether the kernel has it")]


class CounterRecord(Versioned, total=False):
    """Traffic of a Service port (ebpf mode), or of one of its frontends (other modes)."""

    service: PortName
    frontend: FrontendText
    connections: Annotated[int, Meta(description="ebpf mode: opened so far; other modes: held now")]
    opened: Annotated[int | None, Meta(description="connections opened; null: not counted (nftables mode)")]
    refused: Annotated[int | None, Meta(description="packets refused; null: not counted by frontend (nftables mode)")]
    packets: Count
    bytes: Count
    replyPackets: Count
    replyBytes: Count


class DecisionCount(Versioned):
    """How often packets left a hook for one reason."""

    hook: Annotated[str, Meta(description="hook of a program; `host routing`; `rules` for what rules count")]
    reason: Annotated[str, Meta(description="name of the reason; `monitor --reasons` says what it means")]
    count: Count


RateRecord = TypedDict(
    "RateRecord",
    {
        "service": PortName,
        "connections/s": Annotated[float, Meta(description="new connections a second")],
        "packets/s": Annotated[float, Meta(description="packets of clients a second")],
        "bytes/s": Annotated[float, Meta(description="bytes of clients a second")],
        "replyPackets/s": Annotated[float, Meta(description="packets back to clients a second")],
        "replyBytes/s": Annotated[float, Meta(description="bytes back to clients a second")],
        "connections": Annotated[int, Meta(description="connections opened so far")],
    },
)


class Rates(Versioned):
    """One reading of `top`."""

    time: TimeText
    view: Literal["top"]
    records: Annotated[list[RateRecord], Meta(description="Service ports, the busiest first")]


class Reading(Versioned):
    """One reading of a view of `show` that is watched."""

    time: TimeText
    view: Annotated[str, Meta(description="the view, such as `show services`")]
    records: Annotated[list[dict[str, Any]], Meta(description="as the view prints them, without apiVersion")]


class DecisionRecord(Versioned):
    """A decision that a program reported."""

    time: TimeText
    seconds: Annotated[float, Meta(description="the same by CLOCK_MONOTONIC of the machine")]
    kind: Annotated[
        Literal["new", "refused", "unserved", "packet"],
        Meta(description="a new flow; refused; left to the slow path since something ran out; any other packet"),
    ]
    hook: Annotated[str, Meta(description="hook of the program")]
    reason: Annotated[str, Meta(description="name of the reason")]
    meaning: Annotated[str, Meta(description="of the reason, in words")]
    protocol: Annotated[str, Meta(description="tcp, udp, or a number")]
    source: Annotated[str, Meta(description="address:port; `netns:COOKIE` of a socket that has no address yet")]
    destination: Annotated[str, Meta(description="address:port")]
    service: Annotated[str, Meta(description="namespace/name:port; empty if no frontend has the destination")]
    endpoint: Annotated[str, Meta(description="address:port; empty if none was chosen")]
    forwarded: Annotated[
        str,
        Meta(description="to which node packets of its flow are sent, and in what; empty where to none"),
    ]
    device: Annotated[int, Meta(description="index of the device; 0: none")]
    deviceName: Annotated[str, Meta(description="its name; empty if it has gone")]
    bytes: Annotated[int, Meta(description="length of the packet; 0 at connect time")]


class ReasonRecord(Versioned):
    """A reason that decisions can have."""

    reason: Annotated[str, Meta(description="its name")]
    kind: Annotated[Literal["new", "refused", "unserved", "packet"], Meta(description="as in monitor's objects")]
    meaning: Annotated[str, Meta(description="in words")]


class NotCountedRecord(Versioned):
    """In place of records: the mode does not count or report what was asked for. That is not none."""

    counted: Literal[False]
    why: Annotated[str, Meta(description="what is not counted, and what there is instead")]
