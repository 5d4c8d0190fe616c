"""Differences between the plan and the kernel, as text."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import msgspec

from dataplane.model.net import host_port
from dataplane.plan.types import FrontendKey, Row, SourceRanges, Table
from dataplane.planes.base import Plane
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.routes import Action, Route, Routes


class Difference(NamedTuple):
    """One difference: the frontend, its Service as the plan names it (else as the kernel does), what is different in
    words, and the same in fields.

    what: missing, unexpected (of a frontend, or of an endpoint in a set) or different. field: of the frontend; "" for
    all of it. wanted, held: the field's value in the plan and in the kernel. where: of which plane, "slow path" for
    the one underneath.
    """

    frontend: FrontendKey
    service: str
    difference: str
    what: str = "different"
    field: str = ""
    wanted: str | int | None = None
    held: str | int | None = None
    where: str = "plane"


class _Field(NamedTuple):
    """What differs in a frontend that both have; as in Difference."""

    text: str
    field: str
    wanted: str | int | None
    held: str | int | None
    what: str = "different"


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
    hold the whole plan, at random. left_out: Services that the plane may lack."""
    mine = {key: row for key, row in want.items() if row.service not in left_out}
    held = {key: row for key, row in plane.read_back().items() if row.service not in left_out}
    yield from differences(mine, held, plane.stored_name)
    if plane.slow is not None:
        drawn = {key: msgspec.structs.replace(row, algorithm=Algorithm.RANDOM) for key, row in want.items()}
        for found in differences(drawn, plane.slow.read_back(), plane.slow.stored_name):
            yield found._replace(difference=f"in the slow path: {found.difference}", where="slow path")


def differences(want: Table, have: Table, stored: Callable[[str], str] = str) -> Iterator[Difference]:
    """Every difference between the plan's table and the kernel's, in the order of the frontends. stored: see
    planes.base.Plane.stored_name."""
    for key in sorted(want.keys() | have.keys(), key=_order):
        wanted, held = want.get(key), have.get(key)
        if wanted is None:
            assert held is not None, "a key comes from one of the two tables"
            yield Difference(key, held.service, "is in the kernel and not in the plan", "unexpected")
        elif held is None:
            yield Difference(key, wanted.service, "is missing in the kernel", "missing")
        else:
            for text, field, value, other, what in _row_differences(wanted, held, stored):
                yield Difference(key, wanted.service, text, what, field, value, other)


def _order(key: FrontendKey) -> tuple[int, str, int, int]:
    return (key.family, key.address, key.port, key.protocol)


def _row_differences(want: Row, have: Row, stored: Callable[[str], str]) -> Iterator[_Field]:
    if have.service != want.service and have.service != stored(want.service):
        text = f"belongs to Service {have.service} in the kernel"
        yield _Field(text, "service", want.service, have.service)
    yield from _route_differences(want.routes, have.routes)
    for name, wanted, held in (("cluster", want.cluster, have.cluster), ("local", want.local, have.local)):
        for backend in (host_port(*each) for each in sorted(set(wanted) - set(held))):
            yield _Field(f"endpoint {backend} is missing from the {name} set", name, backend, None, "missing")
        for backend in (host_port(*each) for each in sorted(set(held) - set(wanted))):
            text = f"endpoint {backend} is in the {name} set and not in the plan"
            yield _Field(text, name, None, backend, "unexpected")
        if set(wanted) == set(held) and sorted(wanted) != sorted(held):
            yield from _share_differences(name, Counter(wanted), Counter(held))
    if want.affinity_seconds != have.affinity_seconds:
        text = f"session affinity is {have.affinity_seconds} s instead of {want.affinity_seconds} s"
        yield _Field(text, "affinitySeconds", want.affinity_seconds, have.affinity_seconds)
    if want.algorithm is not have.algorithm:
        wanted_text, held_text = want.algorithm.value, have.algorithm.value
        text = f"clients from outside are led by {held_text} instead of {wanted_text}"
        yield _Field(text, "algorithm", wanted_text, held_text)
    if comparable_ranges(want.source_ranges) != comparable_ranges(have.source_ranges):
        held_text, wanted_text = ranges_text(have.source_ranges), ranges_text(want.source_ranges)
        yield _Field(f"lets in {held_text} instead of {wanted_text}", "sources", wanted_text, held_text)


def _share_differences(name: str, wanted: Counter[tuple[str, int]], held: Counter[tuple[str, int]]) -> Iterator[_Field]:
    for backend, places in sorted(wanted.items()):
        if held[backend] != places:
            planned, found = f"{places} of {wanted.total()}", f"{held[backend]} of {held.total()}"
            is_drawn = f"endpoint {host_port(*backend)} is drawn {found} times"
            text = f"{is_drawn} from the {name} set instead of {planned}"
            yield _Field(text, name, f"{host_port(*backend)} {planned}", f"{host_port(*backend)} {found}")


def comparable_ranges(ranges: SourceRanges | None) -> frozenset[str] | None:
    """The ranges whatever their order; None for everyone."""
    return None if ranges is None else frozenset(ranges.cidrs)


def _route_differences(want: Routes, have: Routes) -> Iterator[_Field]:
    for source, wanted, held in zip(Routes._fields, want, have, strict=True):
        if wanted != held:
            text = f"traffic from {SOURCES[source]}: {route_text(held)} instead of {route_text(wanted)}"
            yield _Field(text, FIELDS[source], route_text(wanted), route_text(held))


SOURCES = {"pod": "pods", "node": "the node", "outside": "outside"}
FIELDS = {"pod": "pods", "node": "node", "outside": "outside"}
"""Names of a frontend's routes in records, as `show services` has them."""
