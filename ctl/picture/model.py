"""What a picture of a packet's path shows: boxes, what happens in them, and the packets between them.

It knows neither plans nor SVG. Addresses are canonical text, with a port as `address:port`.
"""

import enum
from fractions import Fraction
from typing import NamedTuple


class Way(enum.Enum):
    """How packets get from the node that took them to an endpoint of another node.

    ROUTED: as they are after DNAT, with their own source. SNAT: with the taking node's address as their source. TUNNEL:
    encapsulated, and the answers come back the same way. DSR: encapsulated, and the endpoint's node answers the client
    itself (direct server return).
    """

    ROUTED = "routed"
    SNAT = "snat"
    TUNNEL = "tunnel"
    DSR = "dsr"


class Tone(enum.Enum):
    """What a step or a leg is: PLAIN, a change of addresses (CHANGE), a refusal (REFUSED), or nothing done (QUIET)."""

    PLAIN = "plain"
    CHANGE = "change"
    REFUSED = "refused"
    QUIET = "quiet"


class Step(NamedTuple):
    """Something that a node does to the packet. lines: short texts, mostly addresses."""

    title: str
    lines: tuple[str, ...]
    tone: Tone = Tone.CHANGE


class PodBox(NamedTuple):
    """An endpoint, or `number` of them that are drawn as one.

    name: "" where it is not known. address: with its port; of several, a text. share: of new connections that it gets;
    None: none. sees: the address that it sees as the client's, "" if it gets none.
    """

    name: str
    address: str
    share: Fraction | None = None
    sees: str = ""
    number: int = 1


class NodeBox(NamedTuple):
    """A node with its endpoints. steps: what it does to the packet. address: of the flow's family, "" if not known."""

    name: str
    address: str = ""
    steps: tuple[Step, ...] = ()
    pods: tuple[PodBox, ...] = ()


class SourceBox(NamedTuple):
    """Whoever sends the packet. kind: "client", "pod" or "process". inside: it is on the node that takes the packet."""

    kind: str
    name: str
    address: str
    inside: bool = False


class Leg(NamedTuple):
    """Packets from one box to another. Both are numbers of nodes in `Picture.nodes`, or SOURCE.

    answer: on the way back. texts: the packet's addresses, a line each. tunnelled: a packet in a packet. arrives: False
    if nothing goes this way, and the texts say so.
    """

    start: int
    end: int
    texts: tuple[str, ...]
    answer: bool = False
    tone: Tone = Tone.PLAIN
    tunnelled: bool = False
    arrives: bool = True


SOURCE = -1
"""The source, as the end of a leg."""


class Picture(NamedTuple):
    """A whole picture. nodes: the first is the one that decides. reasons: sentences below it."""

    title: str
    headline: str
    refused: bool
    source: SourceBox
    nodes: tuple[NodeBox, ...]
    legs: tuple[Leg, ...]
    reasons: tuple[str, ...] = ()
