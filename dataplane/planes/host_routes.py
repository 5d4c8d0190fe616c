"""What a plane says about packets that it takes past the node's stack."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

AUTO, ON, OFF = "auto", "on", "off"
CHOICES = (AUTO, ON, OFF)
"""What `--host-routing` can be."""
DEFAULT = AUTO
"""Past the node's stack where nobody could want to see the packets there: see docs/decisions.md."""


class Way(NamedTuple):
    """How packets of a device, or to and from a pod's address, go. reason: why by the stack; "" = past it."""

    name: str
    reason: str = ""


class HostRoutes(NamedTuple):
    """Which way packets go now. devices: by name. addresses: the pods' that the plane knows. packets: counted since the
    plane was first loaded, by way. refused: why there are no programs that take any past the stack; "" = there are."""

    devices: Sequence[Way] = ()
    addresses: Sequence[Way] = ()
    packets: Mapping[str, int] = {}
    refused: str = ""
