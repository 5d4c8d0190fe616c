"""Stream of a plane's decisions (choices and refusals) as they are made, if the plane reports them."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import NamedTuple

from dataplane.resource import Resource


class Decision(NamedTuple):
    """One decision. seconds: CLOCK_MONOTONIC. protocol: as text. source: address and port, or a text in their place.
    service: namespace/name:port, "" if no frontend matches the destination. endpoint: "" if none was chosen."""

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


class Asked(NamedTuple):
    """Filter of decisions to report. service: namespace/name or namespace/name:port, "" for all. protocol: its number,
    0 for all. hooks: as in PlaneOptions, none for all."""

    service: str = ""
    protocol: int = 0
    hooks: Sequence[str] = ()


class DecisionStream(Resource):
    """Decisions from now on, while it is open."""

    @abstractmethod
    def services(self) -> Collection[str]:
        """Service ports that there are."""

    @abstractmethod
    def poll(self, seconds: float) -> Sequence[Decision]:
        """Decisions that were made, waiting up to `seconds` for the first."""


def matches(name: str, asked: str) -> bool:
    """True if a Service port (namespace/name:port) is one of the Service, or the Service port, that was asked for."""
    return asked in (name, name.partition(":")[0])
