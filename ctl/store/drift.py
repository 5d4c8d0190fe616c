"""Differences between the plan and the kernel, as text."""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from dataplane.model.net import host_port
from dataplane.plan.types import FrontendKey, Row, SourceRanges, Table
from dataplane.planes.base import Plane
from dataplane.policy.routes import Action, Route, Routes


class Difference(NamedTuple):
    """One difference: the frontend, its Service as the plan names it (else as the kernel does), what is different."""

    frontend: FrontendKey
    service: str
    difference: str


def route_text(route: Route) -> str:
    """Return a route as text: `forward`, `forward local masquerade`, `reject`, `drop`."""
    if route.action is not Action.FORWARD:
        return str(route.action.value)
    parts = ["forward", route.scope.value]
    return " ".join([*parts, "masquerade"] if route.masquerade else parts)


def ranges_text(ranges: SourceRanges | None) -> str:
    """Return the clients that may use a frontend, as text."""
    if ranges is None:
        return "everyone"
    return ", ".join(ranges.cidrs) or "nobody"


def plane_differences(plane: Plane, want: Table, left_out: Collection[str] = ()) -> Iterator[Difference]:
    """Every difference between the plan's table and what a plane holds, then what the plane underneath does, which must
    hold the whole plan. left_out: Services that the plane may lack."""
    mine = {key: row for key, row in want.items() if row.service not in left_out}
    held = {key: row for key, row in plane.read_back().items() if row.service not in left_out}
    yield from differences(mine, held, plane.stored_name)
    if plane.slow is not None:
        for found in differences(want, plane.slow.read_back(), plane.slow.stored_name):
            yield found._replace(difference=f"in the slow path: {found.difference}")


def differences(want: Table, have: Table, stored: Callable[[str], str] = str) -> Iterator[Difference]:
    """Every difference between the plan's table and the kernel's, in the order of the frontends. stored: see
    planes.base.Plane.stored_name."""
    for key in sorted(want.keys() | have.keys(), key=_order):
        wanted, held = want.get(key), have.get(key)
        if wanted is None:
            assert held is not None, "a key comes from one of the two tables"
            yield Difference(key, held.service, "is in the kernel and not in the plan")
        elif held is None:
            yield Difference(key, wanted.service, "is missing in the kernel")
        else:
            for text in _row_differences(wanted, held, stored):
                yield Difference(key, wanted.service, text)


def _order(key: FrontendKey) -> tuple[int, str, int, int]:
    return (key.family, key.address, key.port, key.protocol)


def _row_differences(want: Row, have: Row, stored: Callable[[str], str]) -> Iterator[str]:
    if have.service != want.service and have.service != stored(want.service):
        yield f"belongs to Service {have.service} in the kernel"
    yield from _route_differences(want.routes, have.routes)
    for name, wanted, held in (("cluster", want.cluster, have.cluster), ("local", want.local, have.local)):
        for address, port in sorted(set(wanted) - set(held)):
            yield f"endpoint {host_port(address, port)} is missing from the {name} set"
        for address, port in sorted(set(held) - set(wanted)):
            yield f"endpoint {host_port(address, port)} is in the {name} set and not in the plan"
        if set(wanted) == set(held) and sorted(wanted) != sorted(held):
            yield f"the {name} set holds an endpoint more than once"
    if want.affinity_seconds != have.affinity_seconds:
        yield f"session affinity is {have.affinity_seconds} s instead of {want.affinity_seconds} s"
    if comparable_ranges(want.source_ranges) != comparable_ranges(have.source_ranges):
        yield f"lets in {ranges_text(have.source_ranges)} instead of {ranges_text(want.source_ranges)}"


def comparable_ranges(ranges: SourceRanges | None) -> frozenset[str] | None:
    """The ranges whatever their order; None for everyone."""
    return None if ranges is None else frozenset(ranges.cidrs)


def _route_differences(want: Routes, have: Routes) -> Iterator[str]:
    for source, wanted, held in zip(Routes._fields, want, have, strict=True):
        if wanted != held:
            yield f"traffic from {SOURCES[source]}: {route_text(held)} instead of {route_text(wanted)}"


SOURCES = {"pod": "pods", "node": "the node", "outside": "outside"}
