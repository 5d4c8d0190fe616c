"""Stream of a plane's decisions (choices and refusals) as they are made, if the plane reports them."""

import enum
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from dataplane.resource import Resource


class Kind(enum.StrEnum):
    """What a decision is to a person who watches. NEW: an endpoint was chosen for a new flow. REFUSED: the packet was
    dropped, or left to be refused. UNSERVED: it was left to the slow path because something ran out. PACKET: one more
    packet of what is known, or of what is none of the Services'."""

    NEW = "new"
    REFUSED = "refused"
    UNSERVED = "unserved"
    PACKET = "packet"


class Decision(NamedTuple):
    """One decision. seconds: CLOCK_MONOTONIC. protocol: as text. source: address and port, or a text in their place.
    service: namespace/name:port, "" if no frontend matches the destination. endpoint: "" if none was chosen. ifindex:
    of the device, 0 for none. length: of the packet, in bytes, 0 for a socket's. meaning: of the reason, in words.
    forwarded: to which node packets of its flow are sent, and in what (`192.0.2.2 in VXLAN`), "" where to none."""

    seconds: float
    hook: str
    reason: str
    protocol: str
    source: str
    destination: str
    service: str
    endpoint: str
    ifindex: int
    length: int
    kind: Kind = Kind.PACKET
    meaning: str = ""
    forwarded: str = ""


class Asked(NamedTuple):
    """Filter of decisions to report. service: namespace/name or namespace/name:port, "" for all. protocol: its number,
    0 for all. hooks: as in PlaneOptions, none for all. family: 4 or 6, 0 for both."""

    service: str = ""
    protocol: int = 0
    hooks: Sequence[str] = ()
    family: int = 0


class DecisionStream(Resource):
    """Decisions from now on, while it is open."""

    @abstractmethod
    def reasons(self) -> Mapping[str, tuple[Kind, str]]:
        """Every reason that a decision can have: what it is to a person, and what it means."""

    @abstractmethod
    def services(self) -> Collection[str]:
        """Service ports that there are."""

    def translation(
        self, protocol: int, source: tuple[str, int], destination: tuple[str, int]
    ) -> tuple[tuple[str, int], tuple[str, int]] | None:
        """Return the ends that packets between these ends get, while the rules have such a flow; None if they do not,
        or keep none."""
        return None

    def fileno(self) -> int:
        """A descriptor that can be read when decisions wait; -1 if there is none."""
        return -1

    @abstractmethod
    def poll(self, seconds: float) -> Sequence[Decision]:
        """Decisions that were made, waiting up to `seconds` for the first."""


def matches(name: str, asked: str) -> bool:
    """True if a Service port (namespace/name:port) is one of the Service, or the Service port, that was asked for."""
    return asked in (name, name.partition(":")[0])
