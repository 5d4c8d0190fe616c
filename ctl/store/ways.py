"""Which way packets go past or by the node's stack, as the running daemon of a network namespace says it.

The reasons are known to the daemon alone; see ctl.store.reports.
"""

from pathlib import Path
from typing import NamedTuple

import msgspec

from ctl.store import reports
from dataplane.planes.exclusions import Exclusions
from dataplane.planes.host_routes import HostRoutes, Way

SUFFIX = ".routes"
_PAST = {"pod": "past the stack, to the pod", "uplink": "past the stack, by the uplink"}


class Course(NamedTuple):
    """Which way a new flow goes. out: "pod" or "uplink", where it goes past the node's stack; "" by the stack. reason:
    why by the stack."""

    out: str
    reason: str = ""

    def __str__(self) -> str:
        return _PAST.get(self.out, f"by the stack: {self.reason}")

    def record(self) -> dict[str, object]:
        """For scripts."""
        return {"past": bool(self.out), "out": self.out or None, "reason": self.reason or None}

    @staticmethod
    def text_of(record: object) -> str:
        """A `record` as text."""
        assert isinstance(record, dict), "made by record()"
        return str(Course(record["out"] or "", record["reason"] or ""))


class SavedRoutes(msgspec.Struct, frozen=True):
    """choice: of `--host-routing`. node: why everything goes by the stack, "" if not everything does. devices,
    addresses: see HostRoutes."""

    choice: str = ""
    node: str = ""
    devices: tuple[Way, ...] = ()
    addresses: tuple[Way, ...] = ()

    def way(self, source: str, destination: str) -> Course:
        """Say which way a new flow between two addresses (canonical text) goes, and why not the other."""
        if self.node:
            return Course("", self.node)
        known = dict(self.addresses)
        ends = [address for address in (destination, source) if address in known]
        if not ends:
            return Course("", "neither end is a pod of this node")
        reason = next((known[address] for address in ends if known[address]), "")
        if reason:
            return Course("", reason)
        return Course("pod" if destination in known else "uplink")


def seen(choice: str, exclusions: Exclusions, routes: HostRoutes) -> SavedRoutes:
    """Put together what keeps packets on the stack by what the daemon knows, and by what the plane found."""
    addresses = {way.name: way.reason for way in routes.addresses}
    addresses |= dict(exclusions.addresses)
    addresses |= {name: reason for name in addresses if (reason := exclusions.reason(name))}
    ways = (Way(name, reason) for name, reason in sorted(addresses.items()))
    return SavedRoutes(choice, exclusions.node or "", tuple(routes.devices), tuple(ways))


def save(state_dir: Path, saved: SavedRoutes) -> None:
    """Write it down for `load`. Raises StateError."""
    reports.save(state_dir, SUFFIX, saved)


def load(state_dir: Path) -> SavedRoutes | None:
    """Return what the daemon of this network namespace says now; None if none runs. Raises StateError."""
    return reports.load(state_dir, SUFFIX, SavedRoutes)
