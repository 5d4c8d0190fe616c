"""Packets that a plane refuses, as they are while somebody captures them."""

import enum
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from dataplane.resource import Resource


class Link(enum.IntEnum):
    """What a captured packet begins with; the value is pcap's LINKTYPE."""

    ETHERNET = 1
    RAW = 101
    """Its IPv4 or IPv6 header."""


class Captured(NamedTuple):
    """One refused packet. ns: when, in nanoseconds since 1970. device, ifindex: by which it came in, or would have left
    if it is the node's own; "" and 0 for none. data: its first bytes. length: of the whole packet, as far as its
    headers tell. hook, reason, fate: as in planes.answers.Refused."""

    ns: int
    device: str
    ifindex: int
    link: Link
    data: bytes
    length: int
    hook: str
    reason: str
    fate: str


class CaptureStream(Resource):
    """Refused packets from now on, while it is open. left_out: a sentence for each kind of refusal that it does not
    see. hooks: those of planes.options.HOOKS that it can capture at, with the values of Captured.hook for each; empty
    for a plane without programs."""

    left_out: Sequence[str] = ()
    hooks: Mapping[str, Collection[str]] = MappingProxyType({})

    @abstractmethod
    def poll(self, seconds: float) -> Sequence[Captured]:
        """Packets that were refused, waiting up to `seconds` for the first."""

    @property
    @abstractmethod
    def lost(self) -> int:
        """How often packets were lost because they came faster than they were taken."""
