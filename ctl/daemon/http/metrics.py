"""Metrics of the daemon: kube-proxy's names for the same meaning, hotplane_* for the rest."""

import platform
from collections.abc import Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest

from ctl import VERSION
from dataplane.kernel.netlink.conntrack import Cleaned
from dataplane.model.net import Family

KUBERNETES = (1, 36)
"""The version of kube-proxy whose behaviour this follows, for kubernetes_build_info."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # kube-proxy has no *_created series either

_SYNC_BUCKETS = tuple(0.00025 * 2**power for power in range(17))
_CONNTRACK_BUCKETS = tuple(0.001 * 2**power for power in range(15))
_NETWORK_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, *(float(s) for s in range(1, 60)),
    *(float(s) for s in range(60, 120, 5)), *(float(s) for s in range(120, 301, 30)),
)  # fmt: skip


_FAMILY = ["ip_family"]
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def ip_family(family: Family) -> str:
    """Return a family's value of the label `ip_family`: IPv4 or IPv6."""
    return f"IPv{family.value}"


class Metrics:
    """One registry per daemon. Names and meaning: kube-proxy's pkg/proxy/metrics for kubeproxy_*."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._sync_metrics()
        self._object_metrics()
        self._own_metrics()
        self._begin()

    def _sync_metrics(self) -> None:
        sync = "kubeproxy_sync_proxy_rules_"
        self._seconds = self._histogram(f"{sync}duration_seconds", "SyncProxyRules latency in seconds", _FAMILY)
        self._full_seconds = self._histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for full resyncs",
            _FAMILY,
        )
        self._partial_seconds = self._histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for partial resyncs",
            _FAMILY,
        )
        self._last_sync = self._gauge(
            f"{sync}last_timestamp_seconds", "The last time proxy rules were successfully synced", _FAMILY
        )
        self._last_queued = self._gauge(
            f"{sync}last_queued_timestamp_seconds", "The last time a sync of proxy rules was queued", _FAMILY
        )
        self._nftables_failures = self._counter(
            f"{sync}nftables_sync_failures_total", "Cumulative nftables failures", _FAMILY
        )
        self._iptables_failures = self._counter(
            f"{sync}iptables_restore_failures_total", "Cumulative iptables failures", _FAMILY
        )

    def _object_metrics(self) -> None:
        sync = "kubeproxy_sync_proxy_rules_"
        self.network = Histogram(
            "kubeproxy_network_programming_duration_seconds", "In Cluster Network Programming Latency in seconds",
            _FAMILY, buckets=_NETWORK_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._endpoint_changes = self._counter(f"{sync}endpoint_changes_total", "Cumulative Endpoint changes", _FAMILY)
        self._service_changes = self._counter(f"{sync}service_changes_total", "Cumulative Service changes", _FAMILY)
        self.endpoint_pending = self._gauge(f"{sync}endpoint_changes_pending", "Pending Endpoint changes", _FAMILY)
        self.service_pending = self._gauge(f"{sync}service_changes_pending", "Pending Service changes", _FAMILY)
        self.no_local = self._gauge(
            f"{sync}no_local_endpoints_total",
            "Number of Services with a Local traffic policy and no endpoints",
            ["traffic_policy", *_FAMILY],
        )
        conntrack = "kubeproxy_conntrack_reconciler_"
        self._conntrack_seconds = Histogram(
            f"{conntrack}sync_duration_seconds", "ReconcileConntrackFlowsLatency latency in seconds",
            _FAMILY, buckets=_CONNTRACK_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._conntrack_deleted = self._counter(
            f"{conntrack}deleted_entries_total", "Cumulative conntrack flows deleted by conntrack reconciler", _FAMILY
        )
        self.healthz = self._counter("kubeproxy_proxy_healthz_total", "Cumulative healthz HTTP status", ["code"])
        self.livez = self._counter("kubeproxy_proxy_livez_total", "Cumulative livez HTTP status", ["code"])

    def _begin(self) -> None:
        """Create every series as zero at the start: a rate over one that appears later misses its first events."""
        for family in map(ip_family, Family):
            for metric in (
                self._seconds, self._full_seconds, self._partial_seconds, self._last_sync, self._last_queued,
                self._nftables_failures, self._iptables_failures, self.network, self._endpoint_changes,
                self._service_changes, self.endpoint_pending, self.service_pending, self._conntrack_seconds,
                self._conntrack_deleted,
            ):  # fmt: skip
                metric.labels(family)
        for code in ("200", "503"):
            self.healthz.labels(code)
            self.livez.labels(code)
        major, minor = map(str, KUBERNETES)
        build = {
            "build_date": "", "compiler": platform.python_implementation(), "git_commit": "", "git_tree_state": "",
            "git_version": f"v{major}.{minor}.0+hotplane-{VERSION}", "go_version": "", "major": major, "minor": minor,
            "platform": f"{platform.system().lower()}/{_MACHINES.get(platform.machine(), platform.machine())}",
        }  # fmt: skip
        info = self._gauge("kubernetes_build_info", "The version that this follows, and its own", list(build))
        info.labels(**build).set(1)
        own = {"version": VERSION, "kernel": platform.release(), "python": platform.python_version()}
        self._gauge("hotplane_build_info", "This program, and what it runs on", list(own)).labels(**own).set(1)

    def sync(self, families: Iterable[Family], seconds: float, *, full: bool) -> None:
        """Count one sync, for the families that it changed."""
        for family in map(ip_family, families):
            for metric in (self._seconds, self._full_seconds if full else self._partial_seconds):
                metric.labels(family).observe(seconds)

    def synced(self) -> None:
        """Note that the kernel holds the plan now."""
        for family in map(ip_family, Family):
            self._last_sync.labels(family).set_to_current_time()

    def queued(self) -> None:
        """Note that a sync is queued from now on."""
        for family in map(ip_family, Family):
            self._last_queued.labels(family).set_to_current_time()

    def failed(self, *, iptables: bool) -> None:
        """Count a failed sync; both families share one."""
        for family in map(ip_family, Family):
            (self._iptables_failures if iptables else self._nftables_failures).labels(family).inc()

    def took(self, events: Mapping[tuple[str, Family], int]) -> None:
        """Count the events that were taken in, by kind and family."""
        for kind, metric in (("Service", self._service_changes), ("EndpointSlice", self._endpoint_changes)):
            for family in Family:
                metric.labels(ip_family(family)).inc(events.get((kind, family), 0))

    def cleaned(self, family: Family, cleaned: Cleaned) -> None:
        """Count stale UDP flows of a family that were removed from conntrack."""
        self._conntrack_seconds.labels(ip_family(family)).observe(cleaned.seconds)
        self._conntrack_deleted.labels(ip_family(family)).inc(cleaned.entries)

    def _own_metrics(self) -> None:
        self.event_seconds = self._histogram(
            "hotplane_event_to_kernel_seconds", "From the arrival of the oldest event of a sync to the kernel"
        )
        self.frontends = self._gauge("hotplane_frontends", "Frontends in the plan")
        self.entries = self._gauge("hotplane_service_ports", "Service ports in the plan, one for each family")
        self.behind = self._gauge("hotplane_service_ports_behind", "Service ports that the kernel refused so far")
        self.limited = self._gauge(
            "hotplane_service_ports_limited", "Service ports with more endpoints than the mode can balance over"
        )
        self.problems = self._gauge("hotplane_objects_refused", "Objects with a fault or a conflict, now")
        self.announced = self._gauge(
            "hotplane_forwarding_announced", "1 if other nodes may forward to this one with the client's address kept"
        )
        self.peers = self._gauge("hotplane_forwarding_peers", "Other nodes that take such packets, now")
        self.invalid_events = self._gauge("hotplane_invalid_objects_seen", "Invalid objects and events so far")
        self.repairs = self._counter("hotplane_drift_repairs_total", "Repairs after the kernel was found changed")
        self.drifted = self._counter("hotplane_drifted_frontends_total", "Frontends found changed in the kernel")
        self.watch_failing = Gauge(
            "hotplane_watch_failing_seconds", "How long a kind has not been watched", ["kind"], registry=self.registry
        )
        self.lists = Gauge("hotplane_watch_lists", "Complete lists so far", ["kind"], registry=self.registry)

        self.connections = self._gauge("hotplane_http_connections", "Connections to the daemon's own servers, now")
        self._closed = self._counter(
            "hotplane_http_connections_closed_total",
            "Connections closed for others: of one client, in total, or because they were slow",
            ["reason"],
        )
        for reason in ("client", "total", "slow"):
            self._closed.labels(reason)
        self._job_failures = self._counter("hotplane_job_failures_total", "Failed attempts of a job", ["job"])

    def connection_closed(self, reason: str) -> None:
        """Count a connection to one of the daemon's servers that was closed. reason: client, total or slow."""
        self._closed.labels(reason).inc()

    def job_failed(self, job: str) -> None:
        """Count a failed job of the daemon, which is retried."""
        self._job_failures.labels(job).inc()

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(name, text, labels or [], buckets=_SYNC_BUCKETS, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(name, text, labels or [], registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or [], registry=self.registry)
