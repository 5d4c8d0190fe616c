"""Types in which every plane reports the traffic that it serves."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Counted(NamedTuple):
    """Packets that came to a frontend: `new` opened connections, `refused` were rejected or dropped."""

    new: int = 0
    refused: int = 0


class ServiceCounters(NamedTuple):
    """Sums over all CPUs since the Service came. Forward is client to backend; sockets that were balanced at connect
    time count as connections only."""

    connections: int
    packets: int
    bytes: int
    reply_packets: int
    reply_bytes: int


class HookExit(NamedTuple):
    """Number of packets that left a hook for one reason. fate: what happened to packets that were not served as they
    should be, as text; "" for all others."""

    hook: str
    reason: str
    times: int
    fate: str = ""


class Traffic(NamedTuple):
    """What a plane counts by itself. services: by Service port (EntryKey.service), those that were used. loaded: a plan
    is loaded in this network namespace; without one there is nothing to count."""

    services: Mapping[str, ServiceCounters]
    hook_exits: Sequence[HookExit]
    loaded: bool = True


class Flow(NamedTuple):
    """A tracked flow or what a socket was pointed at. state: opening, answered, established, closing, or connected (a
    socket). protocol: its number. source is None for sockets. service: "" where it is gone."""

    state: str
    protocol: int
    source: tuple[str, int] | None
    destination: tuple[str, int]
    backend: tuple[str, int]
    service: str
    idle_seconds: float
    packets: int
    bytes: int


class Round(NamedTuple):
    """What one look through a table of the kernel for what is over found. limit: how many entries it may hold.
    seconds: of processor time."""

    name: str
    entries: int
    removed: int
    limit: int
    seconds: float


class Usage(NamedTuple):
    """What a plane takes of the kernel, by the table's name. memory: bytes. left_out: Service ports that did not fit.
    rounds: what the last search for entries that are over found. refused: newcomers for which there was no room."""

    memory: Mapping[str, int]
    left_out: Mapping[str, int]
    rounds: Sequence[Round]
    refused: Mapping[str, int]


class OffTarget(NamedTuple):
    """Somebody for whom connect-time balancing is to be off. what: for people. why: who says so. where: what stands for
    it in the kernel, or why nothing does. in_effect: the kernel knows of it."""

    what: str
    why: str
    where: str
    in_effect: bool
