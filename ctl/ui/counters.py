"""Counters of a node's plane as the page shows them, and what was refused since the last look."""

from collections import Counter
from collections.abc import Iterable, Mapping

from ctl.ui.view import Counters, Event, ServiceCount
from ctl.views import claimed
from dataplane.plan.types import FrontendKey
from dataplane.planes.answers import Refused, Traffic
from dataplane.planes.base import Plane


def of_plane(plane: Plane, node: str, services: Mapping[FrontendKey, str]) -> Counters:
    """Read a plane's counters. services: of which Service port each frontend is, for planes that count by frontend or
    leave it to conntrack. Raises PlaneError."""
    traffic = plane.traffic()
    if traffic is not None:
        return of_traffic(traffic, node)
    now = Counter(service for _, service, _ in claimed(services))
    counts = plane.frontend_counts()
    refused: Counter[str] = Counter()
    for key, counted in (counts or {}).items():
        if key in services:
            refused[services[key]] += counted.refused
    found = tuple(
        ServiceCount(name, now[name], None, refused[name] if counts is not None else None)
        for name in sorted(set(services.values()))
    )
    told = plane.refused()
    note = "" if told is not None else f"the {plane.name} mode does not count what it refuses"
    return Counters(node, found, _refusals(told or (), services), counts_now=True, note=note)


def _refusals(told: Iterable[Refused], services: Mapping[FrontendKey, str]) -> dict[str, int]:
    """Numbers of refused packets by reason, and by Service where that is counted."""
    found: Counter[str] = Counter()
    for each in told:
        service = services.get(each.frontend, "") if each.frontend is not None else ""
        found[f"{each.reason} ({each.fate})" + (f" to {service}" if service else "")] += each.times
    return dict(sorted(found.items()))


def of_traffic(traffic: Traffic, node: str) -> Counters:
    """Counters of a plane that counts by itself."""
    services = tuple(
        ServiceCount(name, counted.connections, counted.packets) for name, counted in sorted(traffic.services.items())
    )
    refusals: Counter[str] = Counter()
    for way in traffic.hook_exits:
        if way.fate and way.times:
            refusals[f"{way.hook}: {way.reason}"] += way.times
    return Counters(node, services, dict(sorted(refusals.items())))


def news(before: Counters | None, now: Counters) -> list[Event]:
    """Refusals since the look before; none at the first."""
    if before is None:
        return []
    return [
        Event("refusal", now.node, f"{reason}: {more} more")
        for reason, count in now.refusals.items()
        if (more := count - before.refusals.get(reason, 0)) > 0
    ]
