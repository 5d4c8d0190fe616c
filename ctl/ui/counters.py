"""What a node's plane counts, as the page shows it, and what was refused since the last look."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ctl.ui.view import Counters, Event, ServiceCount
from ctl.views import claimed
from dataplane.plan.types import FrontendKey
from dataplane.planes.answers import Counted, Refused, Traffic
from dataplane.planes.base import Plane

NOW = "that there are now"
Services = Mapping[FrontendKey, str]
"""Of which Service port each frontend is."""


class Reading(NamedTuple):
    """What the plane of a mode counts; of each, None where it does not. See the methods of Plane."""

    mode: str
    traffic: Traffic | None
    frontends: Mapping[FrontendKey, Counted] | None
    refused: Sequence[Refused] | None
    pings: int | None


def read(plane: Plane) -> Reading:
    """Read a plane's counters. Raises PlaneError."""
    return Reading(plane.name, plane.traffic(), *plane.counted(), plane.answered_pings())


def connections_now(services: Services) -> Counter[str]:
    """Return how many connections conntrack has of each Service port: its whole table is read."""
    return Counter(service for _, service, _ in claimed(services))


def shown(
    reading: Reading, node: str, services: Callable[[], Services], now: Mapping[str, int] | None = None
) -> Counters:
    """Return counters as the page shows them. services: called where something is counted by frontend; now: see
    `connections_now`, for modes that do not count connections by Service."""
    by_frontend = reading.frontends is not None or now is not None
    names = services() if by_frontend and reading.traffic is None else {}
    found, since, notes = _services(reading, names, now), _since(reading, now), []
    if not since:
        notes.append(
            f"the {reading.mode} mode counts what it refuses, not connections; hotplane show connections lists those"
        )
    if reading.refused is None:
        notes.append(f"the {reading.mode} mode does not count what it refuses")
    return Counters(node, found, _refusals(reading, names), since, "; ".join(notes), reading.pings)


def _since(reading: Reading, now: Mapping[str, int] | None) -> str:
    """Return which connections are counted, "" for none."""
    if reading.traffic is not None:
        return "since the Services were added"
    if now is not None:
        return NOW
    return "since the rules were last written" if reading.frontends is not None else ""


def _services(reading: Reading, names: Services, now: Mapping[str, int] | None) -> tuple[ServiceCount, ...]:
    if reading.traffic is not None:
        counted = sorted(reading.traffic.services.items())
        return tuple(ServiceCount(name, each.connections, each.packets) for name, each in counted)
    opened, refused = Counter[str](), Counter[str]()
    for key, each in (reading.frontends or {}).items():
        if key in names:
            opened[names[key]] += each.new
            refused[names[key]] += each.refused
    connections = opened if now is None else now
    return tuple(
        ServiceCount(name, connections.get(name, 0), None, refused[name] if reading.frontends is not None else None)
        for name in sorted(set(names.values()))
    )


def _refusals(reading: Reading, names: Services) -> dict[str, int]:
    """Numbers of refused packets by reason, by Service where that is counted, and by hook where there are some."""
    found: Counter[str] = Counter()
    for each in reading.refused or ():
        hook = "" if reading.traffic is None else f"{each.where}: "
        service = names.get(each.frontend, "") if each.frontend is not None else ""
        found[f"{hook}{each.reason} ({each.fate})" + (f" to {service}" if service else "")] += each.times
    return dict(sorted(found.items()))


def news(before: Counters | None, now: Counters) -> list[Event]:
    """Refusals since the look before; none at the first."""
    if before is None:
        return []
    return [
        Event("refusal", now.node, f"{reason}: {more} more")
        for reason, count in now.refusals.items()
        if (more := count - before.refusals.get(reason, 0)) > 0
    ]
