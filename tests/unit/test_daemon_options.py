"""Flags and file make one configuration; what is written can be read again."""

import argparse
from pathlib import Path

import pytest
import yaml

from ctl.commands import run as run_command
from ctl.config import KubeProxyConfiguration, load_config, parse_config
from ctl.daemon.options import FLAGS, effective, go_duration, to_document
from ctl.daemon.settings import settings_of
from ctl.main import main
from ctl.parser import parse
from dataplane.errors import HotplaneError, UsageError

_HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def args(*arguments: str) -> argparse.Namespace:
    return parse(["run", *arguments])


def test_without_flags_everything_has_its_default() -> None:
    assert effective(args()).config == KubeProxyConfiguration()


def test_every_flag_sets_a_field_that_exists() -> None:
    document = to_document(KubeProxyConfiguration())
    assert all(flag.path or flag.idle for flag in FLAGS)
    for flag in (flag for flag in FLAGS if flag.path):
        for path in [flag.path.replace("*", mode) for mode in ("iptables", "nftables")]:
            node = document
            for part in path.split("."):
                assert part in node, f"{flag.name} sets {path}"
                node = node[part]


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(_HEAD + "clusterCIDR: 10.1.0.0/16\nmode: iptables\nconntrack: {min: 5}\nbindAddress: '::'\n")
    config = effective(
        args(
            "--config", str(file), "--cluster-cidr=10.2.0.0/16,fd00::/48", "--masquerade-all", "--conntrack-min", "7",
            "--nodeport-addresses=primary", "--iptables-sync-period=1m", "--feature-gates=A=true,B=false",
            "--iptables-localhost-nodeports=false", "--metrics-bind-address=0.0.0.0:9",
        )
    ).config  # fmt: skip
    assert config.cluster_cidr == "10.2.0.0/16,fd00::/48"
    assert (config.iptables.masquerade_all, config.nftables.masquerade_all) == (True, True)
    assert (config.conntrack.min, config.node_port_addresses) == (7, ("primary",))
    assert (float(config.iptables.sync_period), config.iptables.localhost_node_ports) == (60, False)
    assert config.feature_gates == {"A": True, "B": False}
    assert config.metrics_bind_address == "0.0.0.0:9"
    assert config.healthz_bind_address == "[::]:10256", "what only the file says stays"
    assert config.mode == "iptables"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--cluster-cidr=nonsense",), "--cluster-cidr"),
        (("--conntrack-min=x",), "--conntrack-min"),
        (("--masquerade-all=maybe",), "--masquerade-all"),
        (("--nftables-sync-period=5",), "--nftables-sync-period"),
        (("--iptables-masquerade-bit=40",), "--iptables-masquerade-bit"),
        (("--node-ip=1.2.3",), "--node-ip"),
    ],
)
def test_a_wrong_flag_is_named(arguments: tuple[str, ...], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        settings_of(args(*arguments))


def test_settings_choose_mode_name_and_periods() -> None:
    settings = settings_of(
        args("--hostname-override", " Node-7 ", "--proxy-mode=iptables", "--iptables-sync-period=9s")
    )
    assert (settings.node.name, settings.mode, settings.sync_period, settings.min_sync_period) == (
        "node-7", "iptables", 9, 1,
    )  # fmt: skip
    settings = settings_of(args("--mode=nftables", "--node-name=x"))
    assert (settings.mode, settings.min_sync_period) == ("nftables", 0), "a sync costs what changed, so none waits"


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out.yaml"
    arguments = ["--cluster-cidr", "10.2.0.0/16", "--conntrack-udp-timeout", "1m30s", "--write-config-to", str(out)]
    assert main(["run", *arguments]) == 0
    config = parse_config(out.read_bytes(), "out").config
    assert (config.cluster_cidr, float(config.conntrack.udp_timeout)) == ("10.2.0.0/16", 90)
    document = to_document(config)
    assert parse_config(yaml.safe_dump(document).encode(), "again").config == config
    with pytest.raises(HotplaneError, match="cannot be written"):
        run_command.run(args("--write-config-to", str(tmp_path / "no" / "out.yaml")))


def test_only_one_source_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-f", "/tmp", "--master", "http://127.0.0.1:1"]) == 2
    assert "choose one" in capsys.readouterr().err
    assert main(["run", "-f", "-"]) == 2
    assert "standard input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (1.5, "1.5s"), (90, "1m30s"), (86400, "24h0m0s"), (3661, "1h1m1s")]
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


IDLE = (
    *("--boot-id-file=/proc/sys/kernel/random/boot_id", "--machine-id-file=/etc/machine-id,/var/lib/dbus/machine-id"),
    *("--log-flush-frequency=5s", "--log-json-info-buffer-size=0", "--log-json-split-stream", "--vmodule=a=1,b=2"),
    *("--log-text-info-buffer-size=1Ki", "--log-text-split-stream=false", "--ipvs-exclude-cidrs=10.0.0.0/8"),
    *("--ipvs-min-sync-period=1s", "--ipvs-scheduler=rr", "--ipvs-strict-arp", "--ipvs-sync-period=30s"),
    *("--ipvs-tcp-timeout=0s", "--ipvs-tcpfin-timeout=1m", "--ipvs-udp-timeout=5s", "--profiling"),
    "--proxy-port-range=1-2",
)


def test_flags_of_kube_proxy_without_effect_are_taken_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "config.yaml"
    assert main(["run", *IDLE, "--conntrack-min", "1", "--write-config-to", str(written)]) == 0
    stderr = capsys.readouterr().err
    for flag in IDLE:
        assert f"flag={flag.partition('=')[0]}\n" in stderr
    assert "conntrack-min" not in stderr
    assert load_config(str(written)).config.ipvs.scheduler == "rr"


@pytest.mark.parametrize("flag", ["--windows-service", "--bogus"])
def test_what_kube_proxy_does_not_have_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", flag]) == 2
    assert f"there is no option {flag}" in capsys.readouterr().err
