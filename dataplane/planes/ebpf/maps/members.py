"""The members of an entry and their flags, and what a change of a large entry does to them."""

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
    """Backends of an entry with their flags (enum backend_flags)."""
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
    """Flags of one backend of an entry whose sets are sorted, as in `wanted_flags`; 0 for none of it."""
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
    """flags: of every backend of which something differs, as they will be; 0 = no member any more. sets: who leaves and
    who enters the Cluster and the Local set."""

    flags: dict[Address, int]
    sets: tuple[tuple[Sequence[Address], Sequence[Address]], ...]

    @classmethod
    def of(cls, old: PlanEntry, new: PlanEntry) -> "MemberChange":
        """What differs between two states of an entry. O(what differs)."""
        pairs = ((old.cluster, new.cluster), (old.local, new.local), (old.lingering, new.lingering))
        touched = dict.fromkeys((b.address, b.port) for pair in pairs for side in difference(*pair) for b in side)
        flags = {address: flags_of(new, address) for address in touched}
        return cls(flags, (replaced(old.cluster, new.cluster), replaced(old.local, new.local)))


def changes_only_backends(old: PlanEntry, new: PlanEntry) -> bool:
    """Whether a large entry stays one, and nothing differs in it but who is in its sets."""
    return (
        len(old.cluster) >= LARGE
        and len(new.cluster) >= LARGE
        and old.affinity_seconds == new.affinity_seconds
        and old.frontends == new.frontends
    )
