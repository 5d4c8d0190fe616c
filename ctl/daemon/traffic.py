"""What the ebpf mode's programs count, as metrics: traffic of Services, reasons of drops, map pressure."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dataplane.planes.base import Plane

if TYPE_CHECKING:
    from dataplane.planes.ebpf.plane import EbpfPlane

_TRAFFIC = {
    "connections": "New connections to a Service port",
    "packets": "Packets of clients to a Service port, as far as a program sees them",
    "bytes": "Bytes of clients to a Service port, as far as a program sees them",
    "reply_packets": "Packets back to clients of a Service port",
    "reply_bytes": "Bytes back to clients of a Service port",
}


class TrafficCollector(Collector):
    """Hands out what was read last; `read` is called for each scrape, in the plane's thread."""

    def __init__(self) -> None:
        self._families: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        """The families of the last reading."""
        return self._families

    def read(self, plane: Plane) -> None:
        """Read the maps. The other modes count nothing: then there is nothing."""
        self._families = _families(plane) if plane.name == "ebpf" else []


def _families(plane: Plane) -> list[Metric]:
    from dataplane.planes.ebpf.plane import EbpfPlane
    from dataplane.planes.ebpf.views import counters, memory, service_counters

    assert isinstance(plane, EbpfPlane), "the plane of that name"
    if not plane.loaded:
        return []
    maps = plane.tables.maps
    found: dict[str, Metric] = {}
    services = service_counters(maps)
    for name, text in _TRAFFIC.items():
        family = CounterMetricFamily(f"hotplane_service_{name}", text, labels=["service"])
        for service, values in services.items():
            family.add_metric([service], getattr(values, name))
        found[name] = family
    reasons = CounterMetricFamily("hotplane_decisions", "Ways out of a program, by reason", labels=["hook", "reason"])
    for hook, by_reason in counters(maps).items():
        for reason, count in by_reason.items():
            reasons.add_metric([hook, reason], count)
    size = GaugeMetricFamily("hotplane_map_bytes", "Kernel memory of each map", labels=["map"])
    for name, amount in memory(maps).items():
        size.add_metric([name], amount)
    full = GaugeMetricFamily(
        "hotplane_map_left_out", "Service ports that did not fit into a map, which the slow path serves", labels=["map"]
    )
    for name, count in plane.overflow.items():
        full.add_metric([name], count)
    return [*found.values(), reasons, size, full, *_rounds(plane)]


def _rounds(plane: "EbpfPlane") -> list[Metric]:
    """What the collector of closed flows found in its last round."""
    from dataplane.planes.ebpf.collect import refused

    entries = GaugeMetricFamily("hotplane_map_entries", "Entries of a map that the programs fill", labels=["map"])
    limit = GaugeMetricFamily("hotplane_map_max_entries", "How many it may hold", labels=["map"])
    removed = GaugeMetricFamily("hotplane_map_collected", "Entries that were over in the last round", labels=["map"])
    seconds = GaugeMetricFamily("hotplane_collector_seconds", "Processor time of the last round", labels=["map"])
    for found in plane.collector.rounds if plane.collector is not None else ():
        entries.add_metric([found.name], found.entries - found.removed)
        limit.add_metric([found.name], found.limit)
        removed.add_metric([found.name], found.removed)
        seconds.add_metric([found.name], found.seconds)
    turned_away = CounterMetricFamily(
        "hotplane_map_refused", "Newcomers that a full map left to the slow path", labels=["map"]
    )
    for name, count in refused(plane.tables.maps).items():
        turned_away.add_metric([name], count)
    return [entries, limit, removed, seconds, turned_away]
