"""Daemons that tell each other by an API server what they speak: announced once programs are attached, kept over a
restart, taken back before another mode takes over."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.probes.forwarding import probe_forwarding
from ctl.store import state
from dataplane.kernel.namespaces.netns import in_netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.lab.traffic.probe import Outcome, Probe, split_port
from dataplane.model.forwarding import NODE_ANNOTATION
from dataplane.model.net import Family
from dataplane.plan.types import Plan
from dataplane.planes.finding import Finding, Status
from dataplane.planes.registry import mode_of
from dataplane.policy.node import NodeConfig
from tests.apiserver.objects import service
from tests.kernel.daemon_lab import PORT, VIP, DaemonLab, NodeDaemon, daemon_lab, until

OFFER = str(NodeConfig().offer)
CONFIG = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {}\nlbMode: {}\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"fwan-{os.getpid()}", nodes=2, pods=1)) as lab:
        lab.start_echo(lab.pods, [PORT])
        yield lab


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path) -> Iterator[DaemonLab]:
    with daemon_lab(lab, tmp_path, "ebpf") as cluster:
        ports = [{"port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080}]
        cluster.server.apply(service("echo", VIP, type="NodePort", ports=ports))
        cluster.serve(*((pod, "ready") for pod in lab.pods))
        yield cluster


def announced(cluster: DaemonLab, name: str) -> str:
    found = cluster.server.object("Node", "", name)["metadata"].get("annotations") or {}
    return str(found.get(NODE_ANNOTATION, ""))


def plan(daemon: NodeDaemon) -> Plan:
    """What the daemon says that it serves."""
    saved = in_netns(daemon.netns, state.load, daemon.folder / "state")
    assert saved is not None
    return saved.plan()


def tunnels(daemon: NodeDaemon) -> set[str]:
    return {each for entry in plan(daemon).entries.values() for each in entry.tunnels if each}


def findings(daemon: NodeDaemon) -> dict[str, Finding]:
    def look() -> list[Finding]:
        return list(probe_forwarding(mode_of("ebpf"), daemon.folder / "state"))

    return {finding.check: finding for finding in in_netns(daemon.netns, look)}


def statuses(daemon: NodeDaemon) -> dict[str, Status]:
    return {check: finding.status for check, finding in findings(daemon).items()}


def seen(lab: Lab) -> dict[str, set[str]]:
    """Whom each pod saw as the client behind node 1's node port, all connections being answered."""
    [result] = lab.probe("client", Probe(lab.nodes[0].addresses[Family.IPV4], 30080, count=40, timeout=60.0))
    found: dict[str, set[str]] = {}
    for attempt in result.attempts:
        assert attempt.outcome is Outcome.ANSWERED
        found.setdefault(attempt.server, set()).add(split_port(attempt.client)[0])
    return found


def test_nodes_announce_and_take_back(cluster: DaemonLab, lab: Lab, tmp_path: Path) -> None:
    first, second = cluster.daemons
    addresses = [node.addresses[Family.IPV4] for node in lab.nodes]
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format("ebpf", "dsr"))
    second.mode = ""  # the file's, which a reload may change
    second.program = (*second.program, "--cgroup", str(lab.cgroup(second.node)), "--config", str(config))
    first.start("--master", cluster.server.url, "--lb-mode", "dsr")
    until(lambda: announced(cluster, "node1") == OFFER, "the first node announces")
    assert tunnels(first) == set(), "the other one speaks nothing yet"
    client, here = lab.client.addresses[Family.IPV4], {addresses[0]}
    assert seen(lab) == {"pod1-1": {client}, "pod2-1": here}
    until(lambda: statuses(first).get("forwarding, node node2") is Status.LIMITED, "the first one's doctor says so")
    second.start("--master", cluster.server.url)
    until(lambda: tunnels(first) == {addresses[1]} and tunnels(second) == {addresses[0]}, "they forward to each other")
    assert plan(first).tunnel_peers == {addresses[1]}
    assert seen(lab) == {"pod1-1": {client}, "pod2-1": {client}}
    until(lambda: {*statuses(first).values()} == {Status.OK}, "the first one's doctor finds both well")
    told = findings(first)
    assert told["forwarding, this node"].detail == f"announces {OFFER}"
    assert addresses[1] in told["forwarding, node node2"].detail

    second.kill()
    assert announced(cluster, "node2") == OFFER, "what died left its programs"
    second.start("--master", cluster.server.url)
    assert tunnels(second) == {addresses[0]}, "from the first load on"
    assert tunnels(first) == {addresses[1]}
    assert seen(lab) == {"pod1-1": {client}, "pod2-1": {client}}

    config.write_text(CONFIG.format("nftables", "snat"))
    second.hangup()
    until(lambda: "replaced mode" in second.text, "the mode changes")
    assert announced(cluster, "node2") == ""
    until(lambda: tunnels(first) == set(), "the other one hears of it")
    assert seen(lab) == {"pod1-1": {client}, "pod2-1": here}
    taken, gone = second.text.index("no longer announces"), second.text.index("replaced mode")
    assert taken < gone, "while its programs were there"
