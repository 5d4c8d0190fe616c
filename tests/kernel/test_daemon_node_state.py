"""What other programs and other people's connections do to a node: the daemon, doctor and show say so in words."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.bench.events import full_table
from dataplane.kernel import sysctl
from dataplane.kernel.namespaces.netns import in_netns, netns
from tests.faults.inject import Faults
from tests.kernel.daemon_lab import ROOT, http, looking_plane, until
from tests.kernel.faulty_node import Node

_FORWARDING, _TIMEOUT = "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_tcp_timeout_close_wait"


@pytest.fixture
def node(namespace: str, tmp_path: Path) -> Iterator[Node]:
    with Faults(tmp_path) as faults:
        node = Node(namespace, tmp_path, faults)
        try:
            in_netns(namespace, subprocess.run, ["ip", "link", "set", "lo", "up"], check=True)
            in_netns(namespace, sysctl.write, _FORWARDING, 1)
            node.service("a", "10.96.0.10")
            node.start()
            node.says(" loaded ")
            yield node
        finally:
            node.kill()
            with netns(namespace):
                looking_plane("nftables").cleanup()


def _ask(node: Node, *words: str) -> list[dict[str, object]]:
    command = [sys.executable, "-P", "-m", "ctl.main", "--state-dir", str(node.state), *words, "-o", "json"]
    done = in_netns(node.namespace, subprocess.run, command, capture_output=True, text=True, cwd=ROOT)
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_sysctls_that_others_change_are_named(node: Node) -> None:
    for name, wanted in ((_FORWARDING, 1), (_TIMEOUT, 3600)):
        changed = f"another program changed a sysctl name={name} wanted={wanted} value=0 "
        assert changed not in node.text
        in_netns(node.namespace, sysctl.write, name, 0)
        node.says(changed)
        in_netns(node.namespace, sysctl.write, name, wanted)
        node.says(f"a sysctl is again as it was set name={name}")
    assert node.end() == 0


def _connect(node: Node) -> None:
    """Send what makes a connection, to the node's own address."""
    command = "exec 3<>/dev/udp/127.0.0.1/9; echo >&3"
    in_netns(node.namespace, subprocess.run, ["bash", "-c", command], check=False, capture_output=True)


def _metric(node: Node, name: str) -> float:
    text = http(node.namespace, "127.0.0.1", 10249, "/metrics")[2].decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


def test_a_full_connection_table_is_named(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_table, "FREE", 0)
    with full_table.nearly_full(node.namespace) as entries:
        node.says("connection tracking's table is nearly full")

        def dropped() -> bool:
            _connect(node)
            return "connection tracking's table is full, new connections are dropped" in node.text

        until(dropped, "it says that it drops")
        [check] = [each for each in _ask(node, "doctor") if each["check"] == "conntrack over netlink"]
        assert check["status"] == "limited"
        assert "were dropped so far" in str(check["detail"])
        assert "nf_conntrack_max" in str(check["advice"])
        [drops] = [each for each in _ask(node, "show", "drops") if each["reason"] == "table_full"]
        assert (drops["hook"], int(str(drops["count"])) > 0) == ("conntrack", True)
    node.says("connection tracking's table has room again")
    assert _metric(node, "hotplane_conntrack_max_entries") >= entries
    assert 0 < _metric(node, "hotplane_conntrack_entries") < entries
    assert _metric(node, "hotplane_conntrack_dropped_total") > 0
    assert node.end() == 0
