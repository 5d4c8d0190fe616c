"""KubeProxyConfiguration: defaults, nulls and zeros, durations, unknown fields, and what is refused."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.config import ConfigError, KubeProxyConfiguration, LoadedConfig, load_config, parse_config, parse_duration
from dataplane.policy.settings import LocalMode, Masquerading, ProxySettings

HEAD = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}


def parse(**fields: Any) -> LoadedConfig:
    return parse_config(json.dumps({**HEAD, **fields}).encode(), "c.yaml")


def test_defaults() -> None:
    config, unknown = parse()
    assert unknown == ()
    assert msgspec.structs.replace(config, api_version="", kind="") == KubeProxyConfiguration()
    assert config.mode == ""
    assert config.proxy_settings() == ProxySettings()
    assert (config.bind_address, config.healthz_bind_address) == ("0.0.0.0", "0.0.0.0:10256")
    assert (config.metrics_bind_address, config.oom_score_adj) == ("127.0.0.1:10249", -999)
    assert (config.conntrack.max_per_core, config.conntrack.min) == (32768, 131072)
    assert (config.conntrack.tcp_established_timeout, config.conntrack.tcp_close_wait_timeout) == (86400.0, 3600.0)
    assert (config.iptables.sync_period, config.iptables.min_sync_period, config.config_sync_period) == (
        30.0,
        1.0,
        900.0,
    )
    assert (config.client_connection.qps, config.client_connection.burst) == (5, 10)


KUBEADM = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: 0s
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"""


def test_the_file_that_kubeadm_writes_means_the_defaults() -> None:
    config, unknown = parse_config(KUBEADM.encode(), "config.conf")
    assert unknown == ()
    default: KubeProxyConfiguration = parse().config
    assert config.iptables == default.iptables
    assert config.nftables == default.nftables
    assert config.config_sync_period == default.config_sync_period
    assert config.client_connection.qps == default.client_connection.qps
    assert config.client_connection.kubeconfig == "/var/lib/kube-proxy/kubeconfig.conf"
    assert config.conntrack.tcp_established_timeout == 0.0
    assert config.conntrack.tcp_close_wait_timeout == default.conntrack.tcp_close_wait_timeout
    assert config.proxy_settings().cluster_cidrs == ("10.244.0.0/16", "fd00:10:244::/56")


def test_settings_for_policy() -> None:
    config, _ = parse(
        mode="ebpf",
        detectLocalMode="InterfaceNamePrefix",
        detectLocal={"interfaceNamePrefix": "veth", "bridgeInterface": "cni0"},
        nodePortAddresses=["192.168.0.0/24", "primary"],
        iptables={"masqueradeAll": True, "localhostNodePorts": False},
        nftables={"masqueradeBit": 3},
    )
    assert config.mode == "ebpf"
    assert config.proxy_settings() == ProxySettings(
        detect_local=LocalMode.INTERFACE_NAME_PREFIX,
        bridge_interface="cni0",
        interface_name_prefix="veth",
        nodeport_addresses=("192.168.0.0/24", "primary"),
        localhost_node_ports=False,
        iptables=Masquerading(True, 14),
        nftables=Masquerading(False, 3),
    )


def test_unknown_fields_are_named_with_their_path() -> None:
    config, unknown = parse(mode="nftables", conntrack={"min": 5, "max": 6}, colour="blue", featureGates={"X": True})
    assert unknown == ("conntrack.max", "colour")
    assert config.conntrack.min == 5
    assert config.feature_gates == {"X": True}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("30s", 30),
        ("2h45m", 9900),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("250ms", 0.25),
        ("1m0.5s", 60.5),
        ("-5s", -5),
        ("3us", 3e-6),
        ("3µs", 3e-6),
        ("1ns", 1e-9),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-", "s", "5", "5 s", "5d", "1h 2m", "1e3s", "٣s", "1..5s"])
def test_texts_that_are_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.text(alphabet="0123456789.-+hmsnuµ ", max_size=12))
def test_any_duration_text_is_a_number_or_a_sentence(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        reason = str(error)
    else:
        reason = "" if abs(seconds) < 1e17 else "too long"
    assert not reason or "is not a duration" in reason


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"mode": "ipvs"}, "mode", "ipvs is not offered; choose one of iptables, nftables, ebpf"),
    ({"mode": "userspace"}, "mode", "is 'userspace'; choose one of"),
    ({"mode": 5}, "mode", "must be a string, not a whole number"),
    ({"iptables": {"syncPeriod": 30}}, "iptables.syncPeriod", "write a duration as a string"),
    ({"iptables": {"syncPeriod": "-1s"}}, "iptables.syncPeriod", "is negative"),
    ({"nftables": {"minSyncPeriod": "soon"}}, "nftables.minSyncPeriod", "'soon' is not a duration"),
    ({"iptables": {"masqueradeAll": "yes"}}, "iptables.masqueradeAll", "must be true or false, not a string"),
    ({"iptables": {"masqueradeBit": 32}}, "iptables.masqueradeBit", "bits 0 to 31"),
    ({"nftables": {"masqueradeBit": -1}}, "nftables.masqueradeBit", "bits 0 to 31"),
    ({"iptables": []}, "iptables", "must be a mapping, not a list"),
    ({"conntrack": {"min": -1}}, "conntrack.min", "write 0 or more"),
    ({"oomScoreAdj": 2000}, "oomScoreAdj", "write -1000 to 1000"),
    ({"nodePortAddresses": "primary"}, "nodePortAddresses", "must be a list, not a string"),
    ({"nodePortAddresses": ["10.0.0.1"]}, "nodePortAddresses", "'10.0.0.1' is not a CIDR"),
    ({"clusterCIDR": "10.0.0.0/8;fd00::/8"}, "clusterCIDR", "is not a CIDR"),
    ({"detectLocalMode": "Guess"}, "detectLocalMode", "is 'Guess'; choose one of ClusterCIDR"),
    ({"detectLocalMode": "BridgeInterface"}, "detectLocal.bridgeInterface", "is missing"),
    ({"detectLocalMode": "InterfaceNamePrefix"}, "detectLocal.interfaceNamePrefix", "is missing"),
    ({"bindAddress": "localhost"}, "bindAddress", "'localhost' is not an IP address"),
    ({"healthzBindAddress": "0.0.0.0:http"}, "healthzBindAddress", "'http' is not a port"),
    ({"metricsBindAddress": "0.0.0.0:70000"}, "metricsBindAddress", "'70000' is not a port"),
    ({"apiVersion": "v1"}, "apiVersion", "is 'v1'; it must be kubeproxy.config.k8s.io/v1alpha1"),
    ({"kind": "KubeletConfiguration"}, "kind", "is 'KubeletConfiguration'; it must be"),
    ({"kind": None}, "kind", "is missing; it must be KubeProxyConfiguration"),
]


@pytest.mark.parametrize(("fields", "field", "reason"), REFUSED)
def test_what_is_refused(fields: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**fields)
    assert caught.value.field == field
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"c.yaml: {field}: ")


@pytest.mark.parametrize(
    ("given_text", "healthz"),
    [
        ("1.2.3.4", "1.2.3.4:10256"),
        ("1.2.3.4:1", "1.2.3.4:1"),
        ("[::]:99", "[::]:99"),
        ("::", "[::]:10256"),
        ("[::1]", "[::1]:10256"),
    ],
)
def test_bind_addresses_are_completed(given_text: str, healthz: str) -> None:
    assert parse(healthzBindAddress=given_text).config.healthz_bind_address == healthz


def test_an_ipv6_bind_address_moves_the_defaults() -> None:
    config = parse(bindAddress="fd00::5").config
    assert (config.healthz_bind_address, config.metrics_bind_address) == ("[::]:10256", "[::1]:10249")


@pytest.mark.parametrize("data", ["", "a: [", "- a\n", "a: b\n---\nc: d\n", "{", "5"])
def test_a_file_that_holds_no_configuration(data: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(data.encode(), "c.yaml")
    assert caught.value.field in ("", "apiVersion")


def test_load_config(tmp_path: Path) -> None:
    file = tmp_path / "config.conf"
    file.write_text(KUBEADM)
    assert load_config(str(file)) == parse_config(KUBEADM.encode(), "x")
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load_config(str(tmp_path / "none"))


@pytest.mark.parametrize("name", ['a" accept; iifname "b', "a\nb", "a b", "x" * 16, "br*", "a/b"])
@pytest.mark.parametrize("field", ["bridgeInterface", "interfaceNamePrefix"])
def test_a_device_s_name_is_one(field: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"detectLocal.{field}: is .*write a device's name"):
        parse(detectLocal={field: name})


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (KubeProxyConfiguration(), False),
        (KubeProxyConfiguration(detect_local_mode="ClusterCIDR"), False),
        (KubeProxyConfiguration(cluster_cidr="10.244.0.0/16"), True),
        (KubeProxyConfiguration(detect_local_mode="NodeCIDR"), True),
    ],
)
def test_whether_anything_tells_pods(config: KubeProxyConfiguration, known: bool) -> None:
    assert config.knows_pods() is known
