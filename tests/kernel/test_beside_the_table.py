"""What a mode needs besides its main tables while somebody takes it away: the sysctl for node ports on 127.0.0.0/8, the
rules that keep others off loopback addresses, the tables that answer pings and that share out ports. The daemon puts it
back at once, whatever the sync period."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.kernel.nft.transaction import Nft
from dataplane.kernel.sysctl import ROUTE_LOCALNET
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, LabSpec
from dataplane.model.net import Family
from dataplane.plan.types import Plan
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from dataplane.policy.node import NodeConfig
from tests.apiserver.objects import service
from tests.kernel.daemon_lab import PATIENCE, PORT, VIP, NodeDaemon, daemon_lab, until
from tests.kernel.modes import MODES

NODE_PORT = 30080
_SYSCTL = f"/proc/sys/{ROUTE_LOCALNET}"
_GUARD, _PING, _PORTS = "ip hotplane-localnet", "ip hotplane-ping", "inet hotplane-ports"
_TABLES = {"iptables": (), "nftables": (_GUARD, _PING), "ebpf": (_GUARD, _PING, _PORTS)}


@pytest.fixture(scope="module", params=MODES)
def daemon(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeDaemon]:
    folder = tmp_path_factory.mktemp("beside")
    config = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
              "clusterCIDR": CLUSTER_CIDR[Family.IPV4], "nodePortAddresses": ["127.0.0.0/8", "172.16.0.0/12"],
              "iptables": {"syncPeriod": "24h"}, "nftables": {"syncPeriod": "24h"}}  # fmt: skip
    (folder / "config").write_text(json.dumps(config))
    with Lab.up(LabSpec(f"beside-{os.getpid()}", nodes=1, pods=1)) as lab:
        lab.start_echo(lab.pods, [PORT])
        with daemon_lab(lab, folder, request.param) as cluster:
            port = {"port": 80, "protocol": "TCP", "nodePort": NODE_PORT}
            cluster.server.apply(service("echo", VIP, type="NodePort", ports=[port]))
            cluster.serve((lab.pods[0], "ready"))
            hooks = ("--hooks", "tc") if request.param == "ebpf" else ()  # at connect time no sysctl is needed
            cluster.daemons[0].options = ("--config", str(folder / "config"), *hooks)
            cluster.start(*(() if request.param == "iptables" else ("--answer-ping",)))
            yield cluster.daemons[0]


def _run(daemon: NodeDaemon, *words: str) -> str:
    return in_netns(daemon.netns, subprocess.run, words, check=True, capture_output=True, text=True).stdout


def _listed(daemon: NodeDaemon, table: str) -> str:
    """The table as text without counts, "" where there is none."""
    done = in_netns(daemon.netns, subprocess.run, ["nft", "-s", "list", "table", *table.split()], capture_output=True)
    return done.stdout.decode()


def _routes_loopback(daemon: NodeDaemon) -> bool:
    return in_netns(daemon.netns, Path(_SYSCTL).read_text).strip() == "1"


def _said(daemon: NodeDaemon, what: str) -> int:
    return sum(f'put back what another process had taken away what="{what}"' in line for line in _lines(daemon))


def _lines(daemon: NodeDaemon) -> list[str]:
    return daemon.text.splitlines()


def test_the_sysctl_comes_back(daemon: NodeDaemon) -> None:
    assert _routes_loopback(daemon)
    in_netns(daemon.netns, Path(_SYSCTL).write_text, "0\n")
    until(lambda: _routes_loopback(daemon), "the sysctl is set again")
    until(lambda: _said(daemon, f"sysctl {ROUTE_LOCALNET}") == 1, "that is said")
    with in_netns(daemon.netns, socket.create_connection, ("127.0.0.1", NODE_PORT), PATIENCE) as client:
        client.sendall(b"?\n")
        assert client.recv(1000)


@pytest.mark.parametrize("how", ["delete table", "flush table"])
@pytest.mark.parametrize("table", [_GUARD, _PING, _PORTS])
def test_tables_come_back(daemon: NodeDaemon, table: str, how: str) -> None:
    if table not in _TABLES[daemon.mode]:
        assert _listed(daemon, table) == ""
        return
    before, said = _listed(daemon, table), _said(daemon, f"table {table}")
    assert "hook" in before
    _run(daemon, "nft", f"{how} {table}")
    until(lambda: _listed(daemon, table) == before, f"{table} is as it was: {before}")
    until(lambda: _said(daemon, f"table {table}") == said + 1, "that is said")


def test_nothing_is_put_back_twice(daemon: NodeDaemon) -> None:
    """What the daemon puts back itself is no change by others: after a look at the tables all is quiet."""
    said = daemon.text.count("put back")
    _run(daemon, "nft", "add table ip stranger")
    _run(daemon, "nft", "delete table ip stranger")
    assert daemon.text.count("put back") == said
    assert " ERROR " not in daemon.text


@pytest.mark.parametrize("mode", ["nftables", "ebpf"])
def test_a_table_that_is_taken_away_is_missed(namespace: str, mode: str) -> None:
    with netns(namespace):
        plane = mode_of(mode).make(Making(PlaneOptions(hooks=(), instance=f"hp-{os.getpid()}-gone")))
        try:
            assert not plane.is_gone()
            plane.load(Plan(NodeConfig(name="n")))
            assert not plane.is_gone()
            Nft().run("delete table ip6 hotplane\n")
            assert plane.is_gone()
            plane.load(Plan(NodeConfig(name="n")))
            assert not plane.is_gone()
        finally:
            plane.cleanup()
