"""The parts of the benchmark in a cluster that need none: manifests, choice of nodes, what statuses and proxies say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dataplane.bench.cluster import proxy, tables
from dataplane.bench.cluster.kubectl import ClusterError
from dataplane.bench.cluster.manifests import INSIDE, LABEL, PodShape, Role, documents, namespace, pod, services
from dataplane.bench.cluster.nodes import Node, choose, nodes, quantity
from dataplane.bench.cluster.pods import state
from dataplane.bench.cluster.settings import PORT, ROUNDS, SCENARIOS, SECONDS, WAYS, settings
from dataplane.bench.cluster.ship import archive
from dataplane.bench.figures.export import k8s_netperf
from dataplane.bench.figures.results import Cell, CellKey, Machine, Results
from dataplane.bench.scenarios import SCENARIOS as ALL
from dataplane.errors import UsageError
from dataplane.model.decode import decode
from dataplane.model.net import Family

SHAPE = PodShape("python:3", "IfNotPresent", PORT)


def test_only_host_pods_have_the_nodes_network_and_none_has_rights() -> None:
    for role in Role:
        spec = pod(role, "n1", SHAPE)["spec"]
        assert spec["hostNetwork"] is role.on_host
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        [container] = spec["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert bool(container["ports"]) is role.serves
        assert spec["tolerations"] == []
    assert pod(Role.CLIENT, "n1", SHAPE._replace(tolerant=True))["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_the_namespace_lets_host_pods_in_and_is_marked() -> None:
    labels = namespace("room", "run-1")["metadata"]["labels"]
    assert labels[LABEL] == "hotplane-bench"
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"


def test_services_are_ones_that_the_model_takes_and_the_last_has_udp() -> None:
    found = list(services(0, 600, Family.IPV6, PORT))
    assert [len(item["spec"]["ports"]) for item in found[-2:]] == [1, 2]
    assert found[-1]["metadata"]["name"] == "svc-000599"
    assert [count for count, _ in documents(found)] == [250, 250, 100]
    for item in found:
        item["metadata"]["namespace"] = "room"
        item["spec"] |= {"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"]}
    [(_, document)] = documents(found[:3])
    assert [str(problem) for problem in decode(document, "x").problems] == []


def node(name: str, **spec: Any) -> dict[str, Any]:
    ready = spec.pop("ready", "True")
    return {
        "metadata": {"name": name},
        "spec": spec,
        "status": {
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "capacity": {"cpu": "4", "memory": "16Gi"},
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}],
            "nodeInfo": {"architecture": "arm64", "kernelVersion": "6.12.0", "osImage": "Debian"},
        },
    }


def chosen(*items: dict[str, Any], client: str = "", server: str = "") -> tuple[str, str]:
    pair = choose(nodes(items), client, server)
    return pair.client.name, pair.server.name


def test_nodes_that_take_pods_are_chosen() -> None:
    control = node("a", taints=[{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}])
    cordoned, lame = node("b", unschedulable=True), node("c", ready="Unknown")
    fine, other, soft = node("d"), node("e"), node("f", taints=[{"key": "x", "effect": "PreferNoSchedule"}])
    assert chosen(control, cordoned, lame, other, fine) == ("d", "e")
    assert chosen(control, fine) == ("d", "d")
    assert chosen(fine, soft) == ("d", "f")
    assert chosen(control, fine, other, client="e") == ("e", "d")
    assert chosen(control, fine, other, server="d") == ("e", "d")
    assert chosen(control, fine, server="a") == ("d", "a")
    assert chosen(control, client="a") == ("a", "a")
    assert choose(nodes([control, fine]), "a").named == {"a"}


@pytest.mark.parametrize(
    ("items", "client", "expected"),
    [
        ([node("a", unschedulable=True), node("b", ready="False")], "", "a is cordoned, b is not Ready; name one by"),
        ([], "", "there are no nodes"),
        ([node("a")], "z", "--client-node z: there is no such node; there are a"),
        ([node("a", ready="False")], "a", "--client-node a: the node is not Ready"),
    ],
)
def test_where_no_node_can_be_used_it_is_told_why(items: list[Any], client: str, expected: str) -> None:
    with pytest.raises(ClusterError, match=expected):
        choose(nodes(items), client)


def test_a_node_is_read() -> None:
    [found] = nodes([node("a")])
    expected = Node("a", ("10.0.0.1",), "aarch64", "6.12.0", "Debian", "", "", 4, 16 << 30)
    assert found == expected
    assert found.address(Family.IPV4) == "10.0.0.1"
    with pytest.raises(ClusterError, match="no InternalIP of IPv6; try another --family"):
        found.address(Family.IPV6)
    assert [quantity(text) for text in ("3", "500m", "2Ki", "1G", "", "much")] == [3, 0.5, 2048, 1e9, 0, 0]


def status(**found: Any) -> Any:
    return state({"metadata": {"name": "client"}, "status": found})


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]}


def test_a_pods_status_tells_why_it_waits() -> None:
    fine = status(podIPs=[{"ip": "10.1.1.1"}, {"ip": "fd00::1"}], conditions=[{"type": "Ready", "status": "True"}])
    assert fine.ready
    assert fine.address(Family.IPV6) == "fd00::1"
    assert not status().ready
    assert status(**waiting("ContainerCreating")).waits_for == ""
    pull = status(**waiting("ErrImagePull", "no such host"))
    assert (pull.waits_for, pull.hopeless) == ("ErrImagePull: no such host", False)
    assert status(**waiting("ImagePullBackOff")).hopeless
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
    assert status(conditions=[unplaced]).waits_for == "Unschedulable: 0/2 nodes"
    over = {"reason": "StartError", "message": 'exec: "python3": not found', "exitCode": 128}
    failed = status(phase="Failed", containerStatuses=[{"state": {"terminated": over}}])
    assert failed.waits_for == 'StartError: exec: "python3": not found (exit status 128)'
    assert failed.hopeless
    assert status(phase="Failed", reason="Evicted", message="disk").waits_for == "Evicted: disk"


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (proxy.Seen(modes=("iptables", "iptables")), "kube-proxy iptables"),
        (proxy.Seen(modes=("ipvs", "nftables")), "kube-proxy ipvs/nftables"),
        (proxy.Seen(modes=("ebpf",), metrics=("# HELP\nhotplane_services 3\n",)), "hotplane ebpf"),
        (proxy.Seen(daemons=("cilium",), cilium={"kube-proxy-replacement": "true"}), "cilium"),
        (proxy.Seen(daemons=("cilium", "kube-proxy"), cilium={"kube-proxy-replacement": "false"}), "kube-proxy"),
        (proxy.Seen(daemons=("kube-proxy",), kube_proxy={"config.conf": "kind: X\nmode: ipvs\n"}), "kube-proxy ipvs"),
        (proxy.Seen(daemons=("kube-proxy",), kube_proxy={"config.conf": 'mode: ""\n'}), "kube-proxy iptables"),
        (proxy.Seen(daemons=("hotplane",)), "hotplane"),
        (proxy.Seen(daemons=("kube-router",)), "kube-router (perhaps)"),
        (proxy.Seen(), "unknown"),
    ],
)
def test_the_proxy_is_told_by_what_can_be_seen(seen: proxy.Seen, name: str) -> None:
    assert proxy.judge(seen).name == name


def test_what_could_not_be_seen_is_told() -> None:
    found = proxy.judge(proxy.Seen(daemons=("cilium",), cilium={"bpf-lb-mode": "dsr"}, unread=("x: (Forbidden)",)))
    assert found.told == ("DaemonSets: cilium.", "Cilium: bpf-lb-mode=dsr.", "Not seen: x: (Forbidden).")


def test_settings_are_all_or_what_is_asked_for() -> None:
    found = settings()
    assert (found.modes, found.scenarios, found.services) == (WAYS, SCENARIOS, (1,))
    assert (found.rounds, found.light_rounds, found.seconds) == (ROUNDS, ROUNDS, SECONDS)
    assert set(SCENARIOS) <= set(ALL)
    found = settings(["node-port"], ["rr", "connect"], [1000, 1])
    assert found.modes == ("direct", "direct-again", "node-port")
    assert (found.scenarios, found.services) == (("connect", "TCP_RR"), (1, 1000))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"modes": ["nftables"]}, "--modes nftables: there is none in a cluster; choose of direct"),
        ({"scenarios": ["coldstart"]}, "--scenario coldstart"),
        ({"services": [0]}, "--services 0: numbers from 1"),
        ({"rounds": 0}, "--rounds 0"),
        ({"seconds": 0.0}, "--seconds 0"),
    ],
)
def test_what_does_not_exist_is_refused(words: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        settings(**words)


def test_the_python_load_generator_is_one_file_that_needs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "load.pyz"
    file.write_bytes(archive())
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", str(file), "run"], input=b"lunch 127.0.0.1 1 0 -\n", check=True, capture_output=True
    )
    assert json.loads(done.stdout) == {"error": "no operation lunch"}


def inside(*words: str, input: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-c", INSIDE.read_text(), *words]
    return subprocess.run(command, input=input, check=False, capture_output=True, timeout=60)


def test_what_runs_in_pods_does_what_it_says(tmp_path: Path) -> None:
    program = tmp_path / "program"
    assert inside("write", str(program), input=b"#!/bin/sh\necho $1; exec sleep $2\n").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["program"]
    assert inside("start", str(tmp_path / "log"), str(program), "ready", "0").returncode == 0
    failed = inside("start", str(tmp_path / "log"), str(program), "bind: in use", "0")
    assert (failed.returncode, failed.stderr) == (1, b"bind: in use\n")
    assert {"cpu_model", "load_average", "python"} == set(json.loads(inside("facts").stdout))
    assert len(inside("tracked", input=b"?\n?\n").stdout.splitlines()) == 2
    assert inside("ask", "http://127.0.0.1:1/").returncode == 1


class Table:
    """A node's connection table that empties with each look."""

    def __init__(self, *counts: int, most: int = 100) -> None:
        self.counts, self.most = list(counts), most

    def ask(self, line: str, seconds: float) -> dict[str, Any]:
        return {"count": self.counts.pop(0) if len(self.counts) > 1 else self.counts[0], "most": self.most}


def test_a_full_connection_table_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_PAUSE_SECONDS", 0.0)
    said: list[str] = []
    first, second = Table(90, 80, 50), Table(0, most=0)
    tables.wait([first, second], 30.0, said.append)
    assert first.counts == [50]
    assert said == ["a node tracks 90 of 100 connections: waiting for room"]
    with pytest.raises(ClusterError, match=r"stays full \(51 of 100\): raise net.netfilter.nf_conntrack_max"):
        tables.wait([Table(51)], 0.01, said.append)


@pytest.mark.parametrize(("server", "same"), [("a", "true"), ("b", "false")])
def test_exports_tell_of_nodes_and_their_network(server: str, same: str) -> None:
    machine = Machine(versions={"client node": "a", "server node": server})
    keys = [CellKey(mode, "TCP_RR", 1, "last", 1) for mode in ("direct", "host-network", "cluster-ip")]
    cells = [Cell(key, {"rate": 1000.0, "p99": 5000.0}) for key in keys]
    lines = k8s_netperf(Results(machine, settings(), cells=cells)).splitlines()[1:]
    found = [tuple(line.split(",")[index] for index in (0, 2, 3, 4)) for line in lines]
    assert found == [
        ("direct", same, "false", "false"),
        ("host-network", same, "true", "false"),
        ("cluster-ip", same, "false", "true"),
    ]


def test_documents_are_json_lists() -> None:
    [(count, document)] = documents([{"kind": "Pod"}])
    assert (count, msgspec.json.decode(document)["kind"]) == (1, "List")
