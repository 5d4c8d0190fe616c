"""/metrics for those who come with a kube-proxy dashboard and its alerts: every series that their queries select."""

import re

import pytest

from ctl.daemon.http.metrics import Metrics
from ctl.daemon.sync.inbox import Inbox
from dataplane.model.decode import DecodedObject
from dataplane.model.net import Family
from dataplane.model.objects import EndpointSlice, ObjectRef, Service

SYNC = "kubeproxy_sync_proxy_rules_"
QUERIES = [
    # Dashboards.
    'sum(rate(kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}[5m]))',
    'histogram_quantile(0.99, sum by (le) (rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="+Inf"}[5m])))',
    'rate(kubeproxy_sync_full_proxy_rules_duration_seconds_sum{ip_family="IPv6"}[5m])',
    'rate(kubeproxy_sync_partial_proxy_rules_duration_seconds_sum{ip_family="IPv6"}[5m])',
    'sum(rate(kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}[5m]))',
    'histogram_quantile(0.99, rate(kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6"}[5m]))',
    'sum by (ip_family) (rate(kubeproxy_sync_proxy_rules_service_changes_total{ip_family="IPv4"}[5m]))',
    'sum by (ip_family) (rate(kubeproxy_sync_proxy_rules_endpoint_changes_total{ip_family="IPv6"}[5m]))',
    'max(kubeproxy_sync_proxy_rules_service_changes_pending{ip_family="IPv4"})',
    'max(kubeproxy_sync_proxy_rules_endpoint_changes_pending{ip_family="IPv4"})',
    'kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="external",ip_family="IPv6"}',
    'kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy="internal",ip_family="IPv4"}',
    'rate(kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{ip_family="IPv6",le="0.001"}[5m])',
    'rate(kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"}[5m])',
    'sum by (code) (rate(kubeproxy_proxy_healthz_total{code="503"}[5m]))',
    'sum by (code) (rate(kubeproxy_proxy_livez_total{code="200"}[5m]))',
    "process_resident_memory_bytes",
    "rate(process_cpu_seconds_total[5m])",
    "process_start_time_seconds",
    # Alerts: rules that stopped following, refusals, a version that differs from the others.
    'kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}'
    ' - kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} > 60',
    'increase(kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"}[5m]) > 0',
    'increase(kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv6"}[5m]) > 0',
    'count by (git_version) (label_replace(kubernetes_build_info{major="1",minor="36"}, "git_version", "$1", '
    '"git_version", "(v[0-9]*.[0-9]*).*"))',
]


@pytest.fixture
def lines() -> list[str]:
    metrics = Metrics()
    for family in ("IPv4", "IPv6"):
        for policy in ("internal", "external"):
            metrics.no_local.labels(policy, family).set(0)
    return metrics.text().decode().splitlines()


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_of_a_kube_proxy_dashboard_selects_something(lines: list[str], query: str) -> None:
    selectors = re.findall(r"((?:kubeproxy|process|kubernetes)_\w+)(?:\{([^}]*)\})?", query)
    assert selectors
    for name, labels in selectors:
        found = [line for line in lines if re.match(rf"{name}[{{ ]", line)]
        assert found, name
        assert any(all(label in line for label in labels.split(",")) for line in found), (labels, found)


def test_every_series_of_a_sync_says_its_family(lines: list[str]) -> None:
    mine = [line for line in lines if line.startswith(("kubeproxy_sync_", "kubeproxy_network_"))]
    assert len(mine) > 100
    assert all('ip_family="IPv' in line for line in mine)


def test_no_series_says_when_it_was_created(lines: list[str]) -> None:
    assert not [line for line in lines if "_created" in line]


def test_the_build_is_of_one_version(lines: list[str]) -> None:
    [line] = [line for line in lines if line.startswith("kubernetes_build_info{")]
    assert re.search(r'git_version="v1\.36\.\d+\+hotplane-\S+"', line)
    assert line.endswith(" 1.0")


def test_events_count_for_the_families_they_concern() -> None:
    inbox, metrics = Inbox(("Service", "EndpointSlice")), Metrics()
    for family in Family:
        inbox.put(DecodedObject(EndpointSlice("d", f"s{family}", "s", family)), 5.0 + family)
    inbox.put(DecodedObject(Service("d", "s")))
    inbox.remove(ObjectRef("EndpointSlice", "d", "s6"))
    assert [inbox.pending_of("EndpointSlice", family) for family in Family] == [1, 1]
    assert [inbox.pending_of("Service", family) for family in Family] == [1, 1]
    batch = inbox.take()
    assert batch.triggers == [(Family.IPV4, 9.0), (Family.IPV6, 11.0)]
    metrics.took(batch.events)
    text = metrics.text().decode()
    for kind, version, count in (("endpoint", 4, 1.0), ("endpoint", 6, 2.0), ("service", 4, 1.0), ("service", 6, 1.0)):
        assert f'{SYNC}{kind}_changes_total{{ip_family="IPv{version}"}} {count}\n' in text
