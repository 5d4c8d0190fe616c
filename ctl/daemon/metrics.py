"""What /metrics says: kube-proxy's names where they mean the same, hotplane_* for the rest."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

_SYNC_BUCKETS = tuple(0.00025 * 2**power for power in range(17))
_NETWORK_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, *(float(s) for s in range(1, 60)),
    *(float(s) for s in range(60, 120, 5)), *(float(s) for s in range(120, 301, 30)),
)  # fmt: skip


class Metrics:
    """One registry a daemon. Names and meaning: kube-proxy's pkg/proxy/metrics for kubeproxy_*."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._sync_metrics()
        self._object_metrics()
        self._own_metrics()

    def _sync_metrics(self) -> None:
        sync = "kubeproxy_sync_proxy_rules_"
        self.sync_seconds = self._histogram(f"{sync}duration_seconds", "SyncProxyRules latency in seconds")
        self.full_seconds = self._histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds for full resyncs"
        )
        self.partial_seconds = self._histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for partial resyncs",
        )
        self.last_sync = self._gauge(
            f"{sync}last_timestamp_seconds", "The last time proxy rules were successfully synced"
        )
        self.last_queued = self._gauge(
            f"{sync}last_queued_timestamp_seconds", "The last time a sync of proxy rules was queued"
        )
        self.nftables_failures = self._counter(f"{sync}nftables_sync_failures_total", "Cumulative nftables failures")
        self.iptables_failures = self._counter(f"{sync}iptables_restore_failures_total", "Cumulative iptables failures")

    def _object_metrics(self) -> None:
        sync = "kubeproxy_sync_proxy_rules_"
        self.network = Histogram(
            "kubeproxy_network_programming_duration_seconds", "In Cluster Network Programming Latency in seconds",
            buckets=_NETWORK_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self.endpoint_changes = self._counter(f"{sync}endpoint_changes_total", "Cumulative Endpoint changes")
        self.service_changes = self._counter(f"{sync}service_changes_total", "Cumulative Service changes")
        self.endpoint_pending = self._gauge(f"{sync}endpoint_changes_pending", "Pending Endpoint changes")
        self.service_pending = self._gauge(f"{sync}service_changes_pending", "Pending Service changes")
        self.no_local = Gauge(
            f"{sync}no_local_endpoints_total", "Number of Services with a Local traffic policy and no endpoints",
            ["traffic_policy"], registry=self.registry,
        )  # fmt: skip
        self.healthz = self._counter("kubeproxy_proxy_healthz_total", "Cumulative healthz HTTP status", ["code"])
        self.livez = self._counter("kubeproxy_proxy_livez_total", "Cumulative livez HTTP status", ["code"])

    def _own_metrics(self) -> None:
        self.event_seconds = self._histogram(
            "hotplane_event_to_kernel_seconds", "From the arrival of the oldest event of a sync to the kernel"
        )
        self.frontends = self._gauge("hotplane_frontends", "Frontends in the plan")
        self.entries = self._gauge("hotplane_service_ports", "Service ports in the plan, one for each family")
        self.behind = self._gauge("hotplane_service_ports_behind", "Service ports that the kernel refused so far")
        self.problems = self._gauge("hotplane_objects_refused", "Objects with a fault or a conflict, now")
        self.invalid_events = self._gauge("hotplane_invalid_objects_seen", "Invalid objects and events so far")
        self.repairs = self._counter("hotplane_drift_repairs_total", "Repairs after the kernel was found changed")
        self.drifted = self._counter("hotplane_drifted_frontends_total", "Frontends found changed in the kernel")
        self.watch_failing = Gauge(
            "hotplane_watch_failing_seconds", "How long a kind has not been watched", ["kind"], registry=self.registry
        )
        self.lists = Gauge("hotplane_watch_lists", "Complete lists so far", ["kind"], registry=self.registry)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_SYNC_BUCKETS, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or [], registry=self.registry)
