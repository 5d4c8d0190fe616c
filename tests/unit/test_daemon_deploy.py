"""The deployment files against the code: rights asked for, metrics drawn, flags and fields documented."""

import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from ctl import VERSION
from ctl.config import KubeProxyConfiguration, Section, parse_config
from ctl.daemon.http.connection_table import ConnectionTableCollector
from ctl.daemon.http.metrics import Metrics
from ctl.daemon.http.traffic import TrafficCollector
from ctl.daemon.node.rights import check_rights
from ctl.daemon.options import FLAGS
from ctl.parser import parse
from ctl.sources.watch import resources
from ctl.store.lock import DIRECTORY, TAKEN_OVER_STATUS
from dataplane.errors import HotplaneError
from dataplane.kernel.ebpf.bcc_loader import DEFAULT_CACHE_DIR
from dataplane.kernel.nft.forms import CACHE_DIRS
from dataplane.planes.answers import HookExit, Refused, Round, ServiceCounters, Traffic, Usage
from dataplane.planes.host_routes import HostRoutes, Way
from dataplane.planes.registry import MODES, mode_of
from dataplane.planes.rights import SYS_ADMIN
from tests.service import unit

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    return {item["kind"]: item for item in yaml.safe_load_all((DOCS / "deploy" / "hotplane.yaml").read_text())}


def test_the_role_allows_what_is_watched_and_nothing_more(documents: dict[str, Any]) -> None:
    allowed = {
        (group, resource, verb)
        for rule in documents["ClusterRole"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    wanted = {("events.k8s.io", "events", verb) for verb in ("create", "patch")}
    for resource in resources("n"):
        parts = resource.path.split("/")
        group = parts[2] if parts[1] == "apis" else ""
        wanted |= {(group, parts[-1], "list"), (group, parts[-1], "watch")}
    assert allowed == wanted


def test_the_daemonset_has_one_capability_and_a_command_that_parses(documents: dict[str, Any]) -> None:
    spec = documents["DaemonSet"]["spec"]["template"]["spec"]
    [container] = spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    for each in (*spec["initContainers"], container):
        assert parse(each["args"]).command == "run"
    config = parse_config(documents["ConfigMap"]["data"]["config.yaml"].encode(), "config.yaml")
    assert config.unknown == ()
    port = int(config.config.healthz_bind_address.rpartition(":")[2])
    assert container["livenessProbe"]["httpGet"]["port"] == port


def test_every_mode_s_capabilities_stand_in_the_deployment_files(documents: dict[str, Any]) -> None:
    table = (DOCS / "migration.md").read_text()
    for mode in MODES:
        wanted = [right.name for right in (*mode_of(mode).needs, *mode_of(mode).uses)]
        assert unit.capabilities(mode) == wanted
        row = next(line for line in table.splitlines() if line.startswith(f"| {mode} | `CAP_"))
        assert re.findall(r"CAP_\w+", row) == wanted
    patch = yaml.safe_load((DOCS / "deploy" / "ebpf-patch.yaml").read_text())["spec"]["template"]["spec"]
    [container] = patch["containers"]
    added = container["securityContext"]["capabilities"]["add"]
    ebpf = mode_of("ebpf")
    assert [f"CAP_{name}" for name in added] == [right.name for right in (*ebpf.needs, *ebpf.uses)]
    assert parse(container["args"]).cgroup == "/host/cgroup"
    spec = documents["DaemonSet"]["spec"]["template"]["spec"]
    assert container["name"] == spec["containers"][0]["name"], "a patch is merged by name"
    assert patch["initContainers"][0]["name"] == spec["initContainers"][0]["name"]
    assert spec["initContainers"][0]["args"][-1] == "--init-only", "which mounts the bpffs"


def test_a_missing_capability_is_named_with_its_purpose() -> None:
    for mode in MODES:
        rights = mode_of(mode).needs
        everything = sum(1 << right.bit for right in (*rights, *mode_of(mode).uses))
        assert check_rights(mode, everything, prepared=False) == ""
        for right in rights:
            held = everything & ~(1 << right.bit) & ~(1 << SYS_ADMIN.bit)
            with pytest.raises(HotplaneError, match=f"{mode} mode lacks {right.name}, {right.why}"):
                check_rights(mode, held, prepared=True)
    least = sum(1 << right.bit for right in mode_of("ebpf").needs)
    assert "CAP_SYS_ADMIN and CAP_SYS_PTRACE" in check_rights("ebpf", least, prepared=True)
    with pytest.raises(HotplaneError, match="lacks CAP_SYS_ADMIN, to mount the bpffs"):
        check_rights("ebpf", least, prepared=False)
    old = 1 << mode_of("ebpf").needs[0].bit | 1 << SYS_ADMIN.bit
    assert "CAP_SYS_PTRACE" in check_rights("ebpf", old, prepared=False), (
        "CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON"
    )


def _metric_names() -> set[str]:
    """Names of all series, those of modes with programs included."""
    metrics = Metrics()
    metrics.no_local.labels("internal", "IPv4").set(0)
    metrics.watch_failing.labels("Service").set(0)
    metrics.healthz.labels("200").inc()
    metrics.livez.labels("200").inc()
    metrics.job_failed("connections")
    traffic = TrafficCollector()
    traffic.read(_Counting())  # type: ignore[arg-type]
    metrics.registry.register(traffic)
    metrics.registry.register(ConnectionTableCollector())
    return {line.split("{")[0].split(" ")[0] for line in metrics.text().decode().splitlines() if line[0] != "#"}


class _Counting:
    """A plane that counts one thing of each kind."""

    counts_refusals_apart = True

    def refused(self) -> Sequence[Refused]:
        return [Refused("nftables", "no_endpoint", 1, "rejected")]

    def usage(self) -> Usage:
        rounds = (Round("tcp_flows", 10, 4, 1, 0.0),)
        return Usage({"tcp_flows": 1}, {"tcp_flows": 0}, rounds, {"tcp_flows": 0})

    def traffic(self) -> Traffic:
        return Traffic({"default/web:http": ServiceCounters(1, 1, 1, 1, 1)}, [HookExit("xdp", "flow", 1)])

    def host_routes(self) -> HostRoutes:
        return HostRoutes([Way("veth1")], [Way("10.244.1.11", "a policy")], {"into_pod": 1})


_OF_METRICS = r"\b(?:hotplane|kubeproxy|process)_[a-z_]+"


def test_the_dashboard_draws_metrics_that_exist() -> None:
    dashboard = json.loads((DOCS / "deploy" / "grafana-dashboard.json").read_text())
    drawn = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(_OF_METRICS, target["expr"])
    }
    assert {"hotplane_map_entries", "hotplane_decisions_total", "hotplane_refused_packets_total"} <= drawn
    assert drawn <= _metric_names()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_alerts_are_about_metrics_and_labels_that_exist() -> None:
    document = yaml.safe_load((DOCS / "deploy" / "alerts.yaml").read_text())
    rules = [rule for group in document["spec"]["groups"] for rule in group["rules"]]
    named = {name for rule in rules for name in re.findall(_OF_METRICS, rule["expr"])}
    assert named
    assert named <= _metric_names()
    assert all(
        rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"] for rule in rules
    )


def test_the_metrics_say_what_runs() -> None:
    (line,) = [line for line in Metrics().text().decode().splitlines() if line.startswith("hotplane_build_info{")]
    assert f'version="{VERSION}"' in line
    assert f'kernel="{platform.release()}"' in line


def test_the_unit_runs_a_command_that_parses() -> None:
    [command] = unit.setting("ExecStart")
    assert parse(command.split()[1:]).command == "run"


def test_the_unit_comes_back_for_ever_but_where_it_gave_way() -> None:
    """systemd gives a unit up that ends five times in ten seconds, unless it is told not to count."""
    head, _, _ = unit.UNIT.read_text().partition("[Service]")
    assert "\nStartLimitIntervalSec=0\n" in head
    assert unit.setting("Restart") == ["always"]
    assert unit.setting("RestartPreventExitStatus") == [str(TAKEN_OVER_STATUS)]


def test_the_unit_lets_the_daemon_write_where_it_does() -> None:
    """All else is read-only to it (ProtectSystem=strict)."""
    [run], [cache] = unit.setting("RuntimeDirectory"), unit.setting("CacheDirectory")
    assert DIRECTORY == Path("/run") / run == Path(parse(["run"]).state_dir)
    assert {CACHE_DIRS[0].parent, DEFAULT_CACHE_DIR.parent} == {Path("/var/cache") / cache}
    assert unit.setting("RuntimeDirectoryPreserve") == ["yes"]


def test_the_unit_s_comments_make_a_drop_in_for_each_mode() -> None:
    assert unit.drop_in("nftables") == ""
    for mode in ("ebpf", "iptables"):
        settings = unit.drop_in(mode).splitlines()
        assert settings[0] == "[Service]"
        held = [line.partition("=")[2].split() for line in settings if "Capabilit" in line]
        assert held == [[right.name for right in (*mode_of(mode).needs, *mode_of(mode).uses)]] * 2
    [prepare] = [line for line in unit.drop_in("ebpf").splitlines() if line.startswith("ExecStartPre=+")]
    assert parse(prepare.partition("hotplane ")[2].split()).init_only


KUBE_PROXY_FLAGS = """bind-address bind-address-hard-fail cleanup cluster-cidr config config-sync-period
    conntrack-max-per-core conntrack-min conntrack-tcp-be-liberal conntrack-tcp-timeout-close-wait
    conntrack-tcp-timeout-established conntrack-udp-timeout conntrack-udp-timeout-stream detect-local-mode feature-gates
    healthz-bind-address healthz-port hostname-override init-only iptables-localhost-nodeports iptables-masquerade-bit
    iptables-min-sync-period iptables-sync-period ipvs-exclude-cidrs ipvs-min-sync-period ipvs-scheduler ipvs-strict-arp
    ipvs-sync-period ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout kube-api-burst kube-api-content-type
    kube-api-qps kubeconfig log-flush-frequency log-json-info-buffer-size log-json-split-stream
    log-text-info-buffer-size log-text-split-stream logging-format masquerade-all master metrics-bind-address
    metrics-port nodeport-addresses oom-score-adj pod-bridge-interface pod-interface-name-prefix profiling proxy-mode
    show-hidden-metrics-for-version version vmodule write-config-to"""
"""kube-proxy 1.33 --help, without the flags of klog that went with 1.26."""


def test_the_migration_page_names_every_flag_and_field() -> None:
    page = (DOCS / "migration.md").read_text()
    patterns = [word.removesuffix("*") for word in re.findall(r"`(--[\w-]+\*)`", page)]
    for word in KUBE_PROXY_FLAGS.split():
        name = f"--{word}"
        assert f"`{name}`" in page or any(name.startswith(start) for start in patterns), name
    for flag in FLAGS:
        assert f"`{flag.name}`" in page, flag.name
    for field in msgspec.structs.fields(KubeProxyConfiguration):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            for inner in msgspec.structs.fields(field.type):
                path = f"{field.encode_name}.{inner.encode_name}"
                assert f"`{path}`" in page or f"`{field.encode_name}.*`" in page, path
        elif field.encode_name not in ("apiVersion", "kind"):
            assert f"`{field.encode_name}`" in page, field.encode_name
