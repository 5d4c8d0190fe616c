"""Connection tracking's table as metrics."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dataplane.kernel.netlink.conntrack_usage import TableUsage, table_usage


class ConnectionTableCollector(Collector):
    """Reads the table's usage at each scrape; zeros where connections are not tracked."""

    def collect(self) -> Iterable[Metric]:
        """Return the metric families."""
        usage = table_usage() or TableUsage(0, 0, 0)
        yield GaugeMetricFamily("hotplane_conntrack_entries", "Connections in this node's table", usage.entries)
        yield GaugeMetricFamily("hotplane_conntrack_max_entries", "How many it may hold", usage.limit)
        yield CounterMetricFamily(
            "hotplane_conntrack_dropped", "Packets of new connections that it had no room for", usage.dropped
        )
