"""What the commands that work on a node print of what they did or found."""

from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from ctl.schema.words import FrontendText, PortName, Versioned


class DifferenceRecord(Versioned):
    """A difference between the plan and the kernel."""

    service: PortName
    frontend: FrontendText
    difference: Annotated[str, Meta(description="what is different, in words")]
    where: Annotated[Literal["plane", "slow path"], Meta(description="in which rules; slow path: those under ebpf's")]
    what: Annotated[
        Literal["missing", "unexpected", "different"],
        Meta(description="the frontend, or an endpoint of a set, or a field's value"),
    ]
    field: Annotated[str, Meta(description="as in show services; cluster and local: an endpoint; empty: the frontend")]
    wanted: Annotated[str | int | None, Meta(description="by the plan; null: nothing")]
    held: Annotated[str | int | None, Meta(description="by the kernel; null: nothing")]


class FieldChangeRecord(TypedDict):
    """What would change of a frontend."""

    frontend: FrontendText
    field: Annotated[str, Meta(description="as in show services, its routes as text; empty: the frontend itself")]
    before: Annotated[str | int | list[str] | None, Meta(description="null: there is none")]
    after: Annotated[str | int | list[str] | None, Meta(description="null: there is none")]


class ChangeRecord(Versioned):
    """A Service that an apply would change."""

    service: Annotated[str, Meta(description="namespace/name")]
    change: Annotated[Literal["added", "changed", "removed"], Meta(description="what would become of it")]
    frontends: Annotated[int, Meta(description="number of its frontends")]
    details: Annotated[list[str], Meta(description="of a changed Service, in words")]
    fields: Annotated[list[FieldChangeRecord], Meta(description="of a changed Service")]


class AppliedRecord(Versioned):
    """What an apply did."""

    node: Annotated[str, Meta(description="this node's name")]
    mode: Annotated[str, Meta(description="the mode that was loaded")]
    addresses: Annotated[list[str], Meta(description="of this node")]
    services: Annotated[int, Meta(description="Services in the plan")]
    frontends: Annotated[int, Meta(description="frontends in the plan")]
    endpoints: Annotated[int, Meta(description="different endpoints in the plan")]
    added: Annotated[int, Meta(description="Service ports, by family, that were not there")]
    changed: Annotated[int, Meta(description="Service ports, by family, that were otherwise")]
    removed: Annotated[int, Meta(description="Service ports, by family, that are gone")]
    staleUDPFlows: Annotated[int, Meta(description="flows to endpoints that are gone, removed from conntrack")]
    replacedMode: Annotated[str, Meta(description="the mode whose rules were removed; empty: none")]
    problems: Annotated[int, Meta(description="objects with faults, and Service ports that the kernel refused")]
    milliseconds: Annotated[float, Meta(description="of the load")]
    waitedSeconds: Annotated[float, Meta(description="since the command began")]


class FindingRecord(Versioned):
    """A check of `doctor`."""

    area: Annotated[str, Meta(description="what it matters for: system, a mode, lab")]
    check: Annotated[str, Meta(description="what was looked at")]
    status: Annotated[Literal["ok", "limited", "missing"], Meta(description="works; in part or not tried; does not")]
    detail: Annotated[str, Meta(description="what was seen, and what follows")]
    advice: Annotated[str, Meta(description="what to do; empty: nothing")]


class VersionRecord(Versioned):
    """Versions of hotplane and of what it stands on; a package that is absent has the text `not installed`."""

    hotplane: str
    kernel: str
    python: str
    bcc: str
    libnftables: str
    aiohttp: str
    cffi: str
    msgspec: str
    prometheus_client: str
    pyroute2: str
    pyyaml: str


class CleanedRecord(Versioned):
    """What `cleanup` removed."""

    cleaned: Annotated[list[str], Meta(description="modes whose rules are gone")]
    state: Annotated[bool, Meta(description="whether there was a plan that had been applied")]


class StaleRecord(Versioned):
    """A leftover of a network namespace that is gone."""

    kind: Annotated[Literal["pins", "state"], Meta(description="of the ebpf mode's programs and maps; a saved plan")]
    name: Annotated[str, Meta(description="of what was removed")]


class PartRecord(Versioned):
    """A file of a sysdump."""

    part: Annotated[str, Meta(description="its name in the archive")]
    bytes: Annotated[int, Meta(description="its size")]
    problem: Annotated[str, Meta(description="why it does not have what it should; empty where it has")]


class TraceStep(Versioned):
    """A step of a connection that was followed."""

    microseconds: Annotated[float, Meta(description="since the first step")]
    clock: Annotated[Literal["kernel", "read"], Meta(description="whose time: the kernel's own, or of its message")]
    layer: Annotated[str, Meta(description="xdp, tc, nftables, conntrack and the like")]
    hook: Annotated[str, Meta(description="where the kernel calls it")]
    device: Annotated[str, Meta(description="its name; empty for none")]
    direction: Annotated[Literal["request", "answer"], Meta(description="of the packet")]
    decision: Annotated[str, Meta(description="what was decided, in words")]
    reason: Annotated[str, Meta(description="why, in words")]
    before: Annotated[str | None, Meta(description="source and destination as the packet came")]
    after: Annotated[str | None, Meta(description="the same as it left; null: unchanged, or not known")]


class TraceOutcome(Versioned):
    """The last line of a trace: what became of the connection."""

    verdict: Annotated[
        Literal["answered", "rejected", "dropped", "unanswered", "error", "nothing"],
        Meta(description="nothing: no packet of it was seen"),
    ]
    endpoint: Annotated[str, Meta(description="where its first packet went at last; empty: nowhere")]
    seenAs: Annotated[str, Meta(description="the source that it had there")]
    text: Annotated[str, Meta(description="in words")]
    flow: Annotated[str, Meta(description="the flow that was followed")]
    limits: Annotated[list[str], Meta(description="what could not be told, and why")]
