"""What a load would change, by Service: the plan against what the kernel holds."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from ctl.store.drift import FIELDS, SOURCES, comparable_ranges, ranges_text, route_text
from dataplane.model.net import host_port
from dataplane.plan.types import FrontendKey, Row, Table
from dataplane.policy.routes import Routes


class FieldChange(NamedTuple):
    """What would change of a frontend. field: "" where the frontend itself comes or goes; "cluster" and "local" are its
    sets of endpoints. before, after: the field's value; None where there is none."""

    frontend: str
    field: str
    before: object
    after: object


class ServiceChange(NamedTuple):
    """A Service that would change. change: added, changed or removed. details: what would, in words, fields: the same
    for scripts; neither where all of it comes or goes."""

    service: str
    change: str
    frontends: int
    details: tuple[str, ...] = ()
    fields: tuple[FieldChange, ...] = ()


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
            fields = tuple(_fields(new, old)) if change == "changed" else ()
            yield ServiceChange(service, change, len(new or old), details, fields)


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


def _fields(new: Mapping[FrontendKey, Row], old: Mapping[FrontendKey, Row]) -> Iterator[FieldChange]:
    """The same as `_details`, in fields."""
    for key in sorted(new.keys() | old.keys()):
        before, after = (_values(table[key]) if key in table else None for table in (old, new))
        if before is None or after is None:
            yield FieldChange(str(key), "", None if before is None else str(key), None if after is None else str(key))
            continue
        for name, value in after.items():
            if before[name] != value:
                yield FieldChange(str(key), name, before[name], value)


def _values(row: Row) -> dict[str, object]:
    """What a frontend does, by field."""
    ranges = comparable_ranges(row.source_ranges)
    return {
        **{FIELDS[source]: route_text(route) for source, route in zip(Routes._fields, row.routes, strict=True)},
        **{name: [host_port(*each) for each in sorted(set(pairs))] for name, pairs in _sets(row)},
        "affinitySeconds": row.affinity_seconds,
        "sources": None if ranges is None else sorted(ranges),
    }


def _sets(row: Row) -> tuple[tuple[str, tuple[tuple[str, int], ...]], ...]:
    return ("cluster", row.cluster), ("local", row.local)
