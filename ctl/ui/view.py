"""What the page asks: of a lab (ui.lab) or of the daemon of a node (ui.node_view)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec

from dataplane.errors import UsageError

MOST_SERVICES = 200
"""So many Services are listed at a time; a page that shows more is no use to anybody."""
MOST_CALLS = 1000


class Explanation(msgspec.Struct, frozen=True):
    """A packet's fate in a mode. loaded: it is the one that handles packets now. seen_as: sources that endpoints see.
    svg: the picture, without its reasons."""

    mode: str
    loaded: bool
    node: str
    verdict: str
    headline: str
    endpoints: tuple[str, ...]
    seen_as: tuple[str, ...]
    reasons: tuple[str, ...]
    svg: str


class PodShown(msgspec.Struct, frozen=True):
    name: str
    addresses: tuple[str, ...]


class NodeShown(msgspec.Struct, frozen=True):
    """A node and its pods. mode: the one that is loaded, "" if none is."""

    name: str
    addresses: tuple[str, ...]
    pods: tuple[PodShown, ...] = ()
    mode: str = ""


class SourceShown(msgspec.Struct, frozen=True):
    """Where a packet may come from. addresses: one of each family."""

    name: str
    kind: str
    addresses: tuple[str, ...]


class FrontendShown(msgspec.Struct, frozen=True):
    """kind: of plan.types.FrontendKind. destination: ADDRESS:PORT/PROTOCOL; node: whose address it is, "" for none."""

    kind: str
    destination: str
    node: str = ""


class ServiceShown(msgspec.Struct, frozen=True):
    """A Service port, its frontends and its endpoints (address:port)."""

    name: str
    frontends: tuple[FrontendShown, ...]
    endpoints: tuple[str, ...]


class ServicesShown(msgspec.Struct, frozen=True):
    """Services whose names hold what was searched for, the first MOST_SERVICES. total: how many there are."""

    services: tuple[ServiceShown, ...]
    total: int


class Overview(msgspec.Struct, frozen=True):
    """title: what the page is about. sends: it can send packets. token: what requests that change something must
    present, "" if none can."""

    title: str
    mode: str
    nodes: tuple[NodeShown, ...]
    sources: tuple[SourceShown, ...]
    sends: bool = False
    token: str = ""


class ServiceCount(msgspec.Struct, frozen=True):
    """connections: those that `Counters.since` says. packets, refused: None where they are not counted."""

    service: str
    connections: int
    packets: int | None = None
    refused: int | None = None


class Counters(msgspec.Struct, frozen=True):
    """Counters of a node. refusals: by reason. since: which connections are counted, to be read after "Connections",
    "" for none. note: what is not counted. pings: to Services, answered; None where they are not."""

    node: str
    services: tuple[ServiceCount, ...] = ()
    refusals: dict[str, int] = msgspec.field(default_factory=dict)
    since: str = ""
    note: str = ""
    pings: int | None = None


class Event(msgspec.Struct, frozen=True):
    """Something that happened. kind: "refusal", "change", "mode", "problem". where: the node."""

    kind: str
    where: str
    text: str


class Look(msgspec.Struct, frozen=True):
    """What a view saw at its last look: counters as they are, and what happened since the look before."""

    counters: tuple[Counters, ...]
    events: tuple[Event, ...] = ()


class Sent(msgspec.Struct, frozen=True):
    """Where packets went: by server, or by what came instead of an answer. seen_as: the sources that the server saw.
    outcome: of dataplane.lab.traffic.probe.Outcome, what came."""

    answer: str
    count: int
    share: float
    outcome: str
    seen_as: tuple[str, ...] = ()


class View(ABC):
    """What a page shows. Its methods are called in the server's event loop, one at a time or not."""

    @abstractmethod
    async def overview(self) -> Overview:
        """Who is there. Raises HotplaneError."""

    @abstractmethod
    async def services(self, search: str) -> ServicesShown:
        """Services whose names hold a text. Raises HotplaneError."""

    @abstractmethod
    async def explain(self, source: str, destination: str) -> Sequence[Explanation]:
        """What becomes of a packet in every mode. source: an address; destination: ADDRESS:PORT/PROTOCOL. Raises
        UsageError for what is neither, HotplaneError."""

    @abstractmethod
    async def look(self) -> Look:
        """Read the counters. Called every other second while a page is open. Raises HotplaneError."""

    async def rest(self) -> None:  # noqa: B027 - not every view has something open
        """End what only looks need: no page is open any more."""

    async def call(self, source: str, destination: str, count: int) -> Sequence[Sent]:
        """Send packets. Raises UsageError where that is not possible, HotplaneError."""
        raise UsageError("this page only looks; packets are sent by that of hotplane lab ui")
