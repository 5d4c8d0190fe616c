"""Rules that kube-proxy left behind on the node: they get connections first, so the daemon and doctor name them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.daemon.log import Log
from ctl.daemon.node.kube_proxy import KubeProxyWatch
from dataplane.kernel.kube_proxy import kube_proxy_rules
from dataplane.kernel.namespaces.netns import in_netns, netns
from tests.faults.inject import Faults
from tests.kernel.daemon_lab import ROOT, looking_plane
from tests.kernel.faulty_node import Node

_SAID = "kube-proxy's rules are here, too where="
_TOOLS = ("iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft")


def _run(namespace: str, text: str) -> None:
    in_netns(namespace, subprocess.run, text.split(), check=True, capture_output=True)


@pytest.fixture
def node(namespace: str, tmp_path: Path) -> Iterator[Node]:
    with Faults(tmp_path) as faults:
        node = Node(namespace, tmp_path, faults)
        node.service("a", "10.96.0.10")
        try:
            yield node
        finally:
            node.kill()
            with netns(namespace):
                looking_plane("nftables").cleanup()
                looking_plane("iptables").cleanup()


def _doctor(node: Node) -> list[str]:
    """What doctor says of kube-proxy's rules."""
    command = [sys.executable, "-P", "-m", "ctl.main", "--state-dir", str(node.state), "doctor", "-o", "json"]
    done = in_netns(node.namespace, subprocess.run, command, capture_output=True, text=True, cwd=ROOT)
    return [each["detail"] for each in json.loads(done.stdout) if each["check"] == "kube-proxy's rules"]


def test_each_place_of_its_rules_is_found(namespace: str) -> None:
    with netns(namespace):
        assert kube_proxy_rules() == []
    for tool in _TOOLS:
        _run(namespace, f"{tool} -t nat -N KUBE-MARK-MASQ")  # kubelet's
        with netns(namespace):
            assert kube_proxy_rules() == []
        _run(namespace, f"{tool} -t nat -N KUBE-SERVICES")
        with netns(namespace):
            assert kube_proxy_rules() == [tool]
        for chain in ("KUBE-SERVICES", "KUBE-MARK-MASQ"):
            _run(namespace, f"{tool} -t nat -X {chain}")
    _run(namespace, "nft add table ip6 kube-proxy")
    with netns(namespace):
        assert kube_proxy_rules(chains=False) == ["table ip6 kube-proxy"]


def test_chains_of_ones_own_do_not_count(namespace: str) -> None:
    _run(namespace, "iptables-legacy -t nat -N KUBE-SERVICES")
    with netns(namespace):
        assert kube_proxy_rules(chains=False) == []
    _run(namespace, "iptables-nft -t nat -N KUBE-SERVICES")
    with netns(namespace):
        assert kube_proxy_rules(chains=False) == ["iptables-legacy", "iptables-nft"]


def test_the_daemon_and_doctor_name_what_was_left(node: Node) -> None:
    _run(node.namespace, "iptables-legacy -t nat -N KUBE-SERVICES")
    node.start()
    node.says(f"{_SAID}iptables-legacy ")
    assert ["iptables-legacy" in each for each in _doctor(node)] == [True]
    assert node.end() == 0
    node.start("--adopt")
    node.says("removed kube-proxy's iptables rules")
    node.service("b", "10.96.0.11")
    node.says("synced")
    assert _SAID not in node.text
    assert _doctor(node) == []
    assert node.end() == 0


def test_one_s_own_iptables_mode_is_not_kube_proxy(node: Node) -> None:
    node.start(mode="iptables")
    node.says("INFO loaded mode=iptables")
    node.service("b", "10.96.0.11")
    node.says("synced")
    assert _SAID not in node.text
    assert _doctor(node) == []
    assert node.end() == 0


class _Here:
    """Instead of the plane's thread."""

    async def call(self, function: object) -> object:
        assert callable(function)
        return function()


def test_what_has_gone_is_told(namespace: str, capsys: pytest.CaptureFixture[str]) -> None:
    watch = KubeProxyWatch(_Here(), lambda: "nftables", Log(out=sys.stdout))  # type: ignore[arg-type]
    for command in ("iptables-legacy -t nat -N KUBE-SERVICES", "true", "iptables-legacy -t nat -X KUBE-SERVICES"):
        _run(namespace, command)
        with netns(namespace):
            asyncio.run(watch.look())
    said = capsys.readouterr().out
    assert (said.count(_SAID), said.count("kube-proxy's rules are gone")) == (1, 1)
