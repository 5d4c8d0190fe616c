"""Backends of an entry with their flags, and the difference between two states of a large entry."""

from collections.abc import Sequence
from typing import NamedTuple

from dataplane.plan.types import PlanEntry
from dataplane.planes.ebpf.maps.layout import constant
from dataplane.policy.difference import LARGE, at_address, difference, replaced

IN_CLUSTER, IN_LOCAL = constant("BACKEND_IN_CLUSTER"), constant("BACKEND_IN_LOCAL")
HERE, LINGERS = constant("BACKEND_HERE"), constant("BACKEND_LINGERS")

Address = tuple[str, int]
"""A backend's address text and port."""


def wanted_flags(entry: PlanEntry) -> dict[Address, int]:
    """Return the backends of an entry with their flags (enum backend_flags)."""
    wanted: dict[Address, int] = {}
    for backend in entry.cluster:
        wanted[(backend.address, backend.port)] = IN_CLUSTER | HERE if backend.local else IN_CLUSTER
    for backend in entry.local:
        key = (backend.address, backend.port)
        wanted[key] = wanted.get(key, 0) | (IN_LOCAL | HERE if backend.local else IN_LOCAL)
    for backend in entry.lingering:
        wanted.setdefault((backend.address, backend.port), LINGERS | HERE if backend.local else LINGERS)
    return wanted


def flags_of(entry: PlanEntry, address: Address) -> int:
    """Return the flags of one backend as in `wanted_flags`, for sorted sets; 0 if it is not in the entry."""
    flags = 0
    for members, membership in ((entry.cluster, IN_CLUSTER), (entry.local, IN_LOCAL)):
        for backend in at_address(members, address[0]):
            if backend.port == address[1]:
                flags |= membership | HERE if backend.local else membership
    if not flags and entry.lingering:
        for backend in at_address(entry.lingering, address[0]):
            if backend.port == address[1]:
                flags = LINGERS | HERE if backend.local else LINGERS
    return flags


class MemberChange(NamedTuple):
    """Difference of two states. flags: new flags of every changed backend, 0 = removed. sets: backends removed from and
    added to the Cluster and the Local set."""

    flags: dict[Address, int]
    sets: tuple[tuple[Sequence[Address], Sequence[Address]], ...]

    @classmethod
    def of(cls, old: PlanEntry, new: PlanEntry) -> "MemberChange":
        """Return the difference of two states of an entry. O(number of differences)."""
        pairs = ((old.cluster, new.cluster), (old.local, new.local), (old.lingering, new.lingering))
        touched = dict.fromkeys((b.address, b.port) for pair in pairs for side in difference(*pair) for b in side)
        flags = {address: flags_of(new, address) for address in touched}
        return cls(flags, (replaced(old.cluster, new.cluster), replaced(old.local, new.local)))


def changes_only_backends(old: PlanEntry, new: PlanEntry) -> bool:
    """True if a large entry, in which each backend has one slot of a set, stays so and differs only in its backends."""
    return (
        not (old.weighted or new.weighted or old.steady_scope or new.steady_scope)
        and len(old.cluster) >= LARGE
        and len(new.cluster) >= LARGE
        and old.affinity_seconds == new.affinity_seconds
        and old.frontends == new.frontends
        and not (old.tunnels or new.tunnels)
        and old.forwarding is new.forwarding
    )
