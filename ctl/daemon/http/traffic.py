"""A plane's own counters as metrics: traffic of Services, reasons of drops, map pressure."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dataplane.planes.answers import Refused, Traffic, Usage
from dataplane.planes.base import Plane
from dataplane.planes.host_routes import HostRoutes

_TRAFFIC = {
    "connections": "New connections to a Service port",
    "packets": "Packets of clients to a Service port, as far as a program sees them",
    "bytes": "Bytes of clients to a Service port, as far as a program sees them",
    "reply_packets": "Packets back to clients of a Service port",
    "reply_bytes": "Bytes back to clients of a Service port",
}


class TrafficCollector(Collector):
    """Collector that returns the last reading; `read` is called for each scrape, in the plane's thread."""

    def __init__(self) -> None:
        self._families: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        """Return the metric families of the last reading."""
        return self._families

    def read(self, plane: Plane) -> None:
        """Read the plane's counters; nothing if it has none."""
        usage = plane.usage()
        traffic = plane.traffic() if usage is not None else None
        self._families = [*_traffic(traffic), *_usage(usage)] if usage is not None and traffic is not None else []
        if plane.counts_refusals_apart:
            self._families += _refused(plane.refused() or ())
        routes = plane.host_routes()
        if routes is not None:
            self._families += _routes(routes)


def _traffic(traffic: Traffic) -> Iterable[Metric]:
    for name, text in _TRAFFIC.items():
        family = CounterMetricFamily(f"hotplane_service_{name}", text, labels=["service"])
        for service, values in traffic.services.items():
            family.add_metric([service], getattr(values, name))
        yield family
    reasons = CounterMetricFamily("hotplane_decisions", "Ways out of a program, by reason", labels=["hook", "reason"])
    for way in traffic.hook_exits:
        reasons.add_metric([way.hook, way.reason], way.times)
    yield reasons


def _refused(refused: Iterable[Refused]) -> Iterable[Metric]:
    packets = CounterMetricFamily(
        "hotplane_refused_packets", "Packets rejected, dropped or not served, by reason", labels=["hook", "reason"]
    )
    for each in refused:
        packets.add_metric([each.where, each.reason], each.times)
    yield packets


def _routes(routes: HostRoutes) -> Iterable[Metric]:
    packets = CounterMetricFamily(
        "hotplane_host_routing_packets", "Packets of pods past the node's stack, and by it, by way", labels=["way"]
    )
    for way, count in routes.packets.items():
        packets.add_metric([way], count)
    yield packets
    for what, ways in (("addresses", routes.addresses), ("devices", routes.devices)):
        gauge = GaugeMetricFamily(f"hotplane_host_routing_{what}", f"Pods' {what} by way", labels=["way"])
        stay = sum(bool(way.reason) for way in ways)
        gauge.add_metric(["stack"], stay)
        gauge.add_metric(["past"], len(ways) - stay)
        yield gauge


def _by_map(name: str, text: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"hotplane_map_{name}", text, labels=["map"])
    for table, value in values.items():
        family.add_metric([table], value)
    return family


def _usage(usage: Usage) -> Iterable[Metric]:
    rounds = usage.rounds
    yield _by_map("bytes", "Kernel memory of each map", usage.memory)
    yield _by_map("left_out", "Service ports that did not fit into a map, which the slow path serves", usage.left_out)
    entries = {each.name: each.entries - each.removed for each in rounds}
    yield _by_map("entries", "Entries of a map that the programs fill", entries)
    yield _by_map("max_entries", "How many it may hold", {each.name: each.limit for each in rounds})
    over = {each.name: each.removed for each in rounds}
    yield _by_map("collected", "Entries that were over in the last round", over)
    seconds = GaugeMetricFamily("hotplane_collector_seconds", "Processor time of the last round", labels=["map"])
    for each in rounds:
        seconds.add_metric([each.name], each.seconds)
    yield seconds
    turned_away = CounterMetricFamily(
        "hotplane_map_refused", "Newcomers that a full map left to the slow path", labels=["map"]
    )
    for name, count in usage.refused.items():
        turned_away.add_metric([name], count)
    yield turned_away
