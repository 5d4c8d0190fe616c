"""Planes made to be measured: beside the plane, where the time of its load goes and what a packet costs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from dataplane.planes.base import Plane


class Wanted(NamedTuple):
    """What to benchmark. hooks: as in PlaneOptions; the plane fails if one does not work here. cgroup: of the node's
    processes and its pods'."""

    hooks: Sequence[str]
    cgroup: Path


class OpenFlow(NamedTuple):
    """A TCP flow that a packet program has opened: from the client to the node's port, by the device with this
    index."""

    client: str
    client_port: int
    node: str
    node_port: int
    ifindex: int


class PacketProgram(ABC):
    """A plane's XDP program, loaded beside the one that is attached, over the same tables. Lives as long as the
    process. fd: its descriptor."""

    fd: int

    @abstractmethod
    def into_itself(self, flow: OpenFlow, backend: str, port: int) -> AbstractContextManager[None]:
        """While it lasts there is an established flow from the client's `port` to the backend's, which the program
        translates into itself, so that a packet can be handed to it again and again; it has the endpoint that was
        chosen for `flow`. Raises PlaneError where that was not opened."""


class Measured:
    """A plane, and what can be known of its last load. Its parts may go on at the same time, so that together they may
    be longer than the load."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane

    def slow_seconds(self) -> float:
        """Of the last load, those that went into the plane underneath."""
        return 0.0

    def program_seconds(self) -> float:
        """Of the last load, those that went into compiling, verifying and attaching programs."""
        return 0.0

    def maps_seconds(self) -> float:
        """Of the last load, those that went into writing the plan to an eBPF plane's maps."""
        return 0.0

    def packet_program(self) -> PacketProgram | None:
        """Return the packet program that was loaded; None if there is none."""
        return None
