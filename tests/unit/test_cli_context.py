"""The context: where the mode, the node's name, zone and addresses come from, in which order."""

import argparse
import socket
from pathlib import Path

import pytest

from ctl import context
from ctl.commands.trace import check_device
from ctl.config import ConfigError
from ctl.context import build_context
from ctl.loaded import plane_of
from ctl.parser import parse
from dataplane.errors import UsageError
from dataplane.model.objects import Node
from dataplane.planes.base import Plane
from dataplane.planes.mode import Making
from dataplane.planes.registry import mode_of

NODE = Node("n1", zone="zone-a", addresses=("192.0.2.1", "2001:db8::1"), pod_cidrs=("10.244.0.0/24",))
HERE = ["192.0.2.7", "192.0.2.1", "10.244.0.1"]


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "namespace_addresses", lambda: list(HERE))


def _args(*words: str) -> argparse.Namespace:
    return parse([*words, "doctor"])


def _config(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(f"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{text}\n")
    return str(path)


def test_the_mode_is_the_options_then_the_configs_then_nftables(tmp_path: Path) -> None:
    config = _config(tmp_path, "mode: iptables")
    assert build_context(_args()).mode == "nftables"
    assert build_context(_args("--config", config)).mode == "iptables"
    assert build_context(_args("--config", config, "--mode", "nftables")).mode == "nftables"


def test_the_name_is_the_options_then_the_configs_then_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Host-A")
    config = _config(tmp_path, "hostnameOverride: Config-Name")
    assert build_context(_args()).node.name == "host-a"
    assert build_context(_args("--config", config)).node.name == "config-name"
    assert build_context(_args("--config", config, "--node-name", "n1")).node.name == "n1"


def test_the_zone_is_the_options_then_the_node_objects() -> None:
    assert build_context(_args("--node-name", "n1"), [NODE]).node.zone == "zone-a"
    assert build_context(_args("--node-name", "n1", "--zone", "zone-b"), [NODE]).node.zone == "zone-b"
    assert build_context(_args("--node-name", "n2"), [NODE]).node.zone == ""


def test_pod_cidrs_come_from_the_node_object(tmp_path: Path) -> None:
    config = _config(tmp_path, "detectLocalMode: NodeCIDR")
    node = build_context(_args("--node-name", "n1", "--config", config), [NODE]).node
    assert node.detector.cidrs == ("10.244.0.0/24",)


def test_given_addresses_are_all_there_are() -> None:
    node = build_context(_args("--node-ip", "198.51.100.1", "--node-ip", "2001:DB8::0005"), [NODE]).node
    assert node.addresses == ("198.51.100.1", "2001:db8::5")


def test_the_node_objects_address_is_primary_where_this_namespace_has_it() -> None:
    assert build_context(_args("--node-name", "n1"), [NODE]).node.addresses == ("192.0.2.1", "192.0.2.7", "10.244.0.1")
    assert build_context(_args("--node-name", "n2"), [NODE]).node.addresses == tuple(HERE)


def test_offline_believes_the_node_object() -> None:
    assert build_context(_args("--node-name", "n1"), [NODE], offline=True).node.addresses == NODE.addresses
    assert build_context(_args("--node-name", "n2"), [NODE], offline=True).node.addresses == tuple(HERE)


def test_an_address_that_is_none_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="'node' is not an IP address"):
        build_context(_args("--node-ip", "node"))


def test_a_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ipvs is not offered"):
        build_context(_args("--config", _config(tmp_path, "mode: ipvs")))


def test_unknown_fields_of_the_configuration_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_context(_args("--config", _config(tmp_path, "clusterCdir: 10.0.0.0/8")))
    assert "clusterCdir: is not a field" in capsys.readouterr().err


def test_a_traced_flow_comes_in_by_a_device_that_is_there() -> None:
    check_device("")
    check_device("lo")
    with pytest.raises(UsageError, match=r"^via eth77: there is no such device here"):
        check_device("eth77")


def test_who_only_looks_is_not_told_what_the_features_of_a_mode_lack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(making: Making) -> Plane:
        making.warn("the connect hook is off")
        raise AssertionError

    monkeypatch.setattr(mode_of("ebpf"), "make", make)
    with pytest.raises(AssertionError):
        plane_of("ebpf", None)
    assert not capsys.readouterr().err
