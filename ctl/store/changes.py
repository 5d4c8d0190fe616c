"""What a load would change, by Service: the plan against what the kernel holds."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from ctl.store.drift import SOURCES, comparable_ranges, ranges_text, route_text
from dataplane.model.net import host_port
from dataplane.plan.types import FrontendKey, Row, Table
from dataplane.policy.routes import Routes


class ServiceChange(NamedTuple):
    """A Service that would change. change: added, changed or removed. details: what would, a frontend each; none where
    all of it comes or goes."""

    service: str
    change: str
    frontends: int
    details: tuple[str, ...] = ()


def service_of(name: str) -> str:
    """The Service (namespace/name) of a Service port (namespace/name:port)."""
    return name.partition(":")[0]


def changes(want: Table, have: Table, stored: Callable[[str], str] = str) -> Iterator[ServiceChange]:
    """Every Service that differs between a plan's table and the kernel's, by name. Neither is said to be wrong: details
    read as what the load does, `+` for what comes and `-` for what goes. stored: see planes.base.Plane.stored_name."""
    known = {stored(row.service): row.service for row in want.values()}
    have = {key: msgspec.structs.replace(row, service=known.get(row.service, row.service)) for key, row in have.items()}
    wanted, held = _by_service(want), _by_service(have)
    for service in sorted(wanted.keys() | held.keys()):
        new, old = wanted.get(service, {}), held.get(service, {})
        if new == old:
            continue
        change = "changed" if new and old else "added" if new else "removed"
        details = tuple(_details(new, old)) if change == "changed" else ()
        if details or change != "changed":
            yield ServiceChange(service, change, len(new or old), details)


def _by_service(table: Table) -> dict[str, dict[FrontendKey, Row]]:
    found: dict[str, dict[FrontendKey, Row]] = defaultdict(dict)
    for key, row in table.items():
        found[service_of(row.service)][key] = row
    return found


def _details(new: Mapping[FrontendKey, Row], old: Mapping[FrontendKey, Row]) -> Iterator[str]:
    for key in sorted(new.keys() | old.keys()):
        if key not in old:
            yield f"+ {key}"
        elif key not in new:
            yield f"- {key}"
        else:
            yield from (f"{key}: {text}" for text in _row(new[key], old[key]))


def _row(new: Row, old: Row) -> Iterator[str]:
    for source, wanted, held in zip(Routes._fields, new.routes, old.routes, strict=True):
        if wanted != held:
            yield f"{SOURCES[source]}: {route_text(held)} -> {route_text(wanted)}"
    for name, wanted_set, held_set in (("cluster", new.cluster, old.cluster), ("local", new.local, old.local)):
        coming = (f"+ {host_port(*backend)}" for backend in sorted(set(wanted_set) - set(held_set)))
        going = (f"- {host_port(*backend)}" for backend in sorted(set(held_set) - set(wanted_set)))
        if moves := [*coming, *going]:
            yield f"{name} endpoints {', '.join(moves)}"
    if new.affinity_seconds != old.affinity_seconds:
        yield f"session affinity {old.affinity_seconds} s -> {new.affinity_seconds} s"
    if comparable_ranges(new.source_ranges) != comparable_ranges(old.source_ranges):
        yield f"sources {ranges_text(old.source_ranges)} -> {ranges_text(new.source_ranges)}"
