"""The daemon and its node's Pods: labels that switch connect time off, hostPorts, all by an API server's events."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.lab.traffic.probe import Outcome, Probe
from dataplane.model.net import Family
from dataplane.planes.ebpf.maps.pins import default_instance
from dataplane.planes.ebpf.views.records import counters, open_instance
from tests.apiserver.objects import namespace, pod, service
from tests.kernel.daemon_lab import PORT, VIP, DaemonLab, daemon_lab, until
from tests.kernel.ebpf_lab import Process

KEY = "service.hotplane.io/connect-time"
UID = "0f6c1d3e-1111-4222-8333-bbbbbbbbbbbb"
HOST_PORT = 9090


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"dpods-{os.getpid()}", nodes=1, pods=2, ipv6=True)) as lab:
        lab.start_echo(lab.pods, [PORT])
        yield lab


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path) -> Iterator[DaemonLab]:
    with daemon_lab(lab, tmp_path, "ebpf") as cluster:
        cluster.server.apply(service("echo", VIP))
        cluster.serve((lab.pods[1], "ready"))
        cluster.start("--host-ports")
        yield cluster


def reasons(cluster: DaemonLab) -> dict[str, int]:
    with netns(cluster.daemons[0].netns):
        maps = open_instance(default_instance())
    assert maps is not None
    with maps:
        return counters(maps).get("connect", {})


def is_off(cluster: DaemonLab, process: Process) -> bool:
    """Whether one connection of this process was left to its packets; it works either way."""
    before = reasons(cluster)
    process.call("open", "s", socket.AF_INET, socket.SOCK_STREAM)
    assert process.call("connect", "s", VIP, 80) == (VIP, 80)
    process.call("close", "s")
    after = reasons(cluster)
    ways = {reason for reason in after if after[reason] != before.get(reason, 0)}
    assert ways in ({"switched_off"}, {"connected"})
    return ways == {"switched_off"}


def test_labels_of_a_pod_and_its_namespace(cluster: DaemonLab, lab: Lab) -> None:
    server, node, here = cluster.server, lab.nodes[0].name, lab.pods[0]
    kubepods = lab.cgroup(node) / "kubepods" / "besteffort"
    kubepods.mkdir(parents=True)
    addresses = tuple(here.addresses.values())
    server.apply(namespace("mesh"), pod("app", node, namespace="mesh", uid=UID, annotations={KEY: "off"}))
    cluster.synced()
    group = kubepods / f"pod{UID}" / "main"
    group.mkdir(parents=True)  # the kubelet comes to it only now
    process, beside = Process(here.netns, group), Process(here.netns, lab.cgroup(node))
    try:
        until(lambda: is_off(cluster, process), "the group is found")
        assert not is_off(cluster, beside)
        server.apply(pod("app", node, *addresses, namespace="mesh", uid=UID))
        until(lambda: not is_off(cluster, process), "without the annotation it is over")
        server.apply(namespace("mesh", **{KEY: "off"}))
        until(lambda: is_off(cluster, process), "the Namespace says so too")
        server.apply(pod("app", node, *addresses, namespace="mesh", uid=UID, labels={KEY: "on"}))
        until(lambda: not is_off(cluster, process), "a Pod's own word counts")
        server.apply(pod("app", node, *addresses, namespace="mesh", uid=UID, labels={KEY: "of"}))
        until(lambda: is_off(cluster, process), "a wrong word is none")
        until(lambda: "is 'of'; write" in cluster.daemons[0].text, "it is told")
        cluster.daemons[0].kill()
        assert is_off(cluster, process), "nothing changes without a daemon"
        cluster.start("--host-ports")
        assert is_off(cluster, process)
        server.delete("Pod", "mesh", "app")
        until(lambda: not is_off(cluster, process), "it is over with the Pod")
    finally:
        process.end()
        beside.end()


def test_host_ports_come_and_go(cluster: DaemonLab, lab: Lab) -> None:
    server, node = cluster.server, lab.nodes[0]
    first, second = lab.pods
    ports = [{"containerPort": PORT, "hostPort": HOST_PORT}]

    def servers(family: Family) -> set[str]:
        probe = Probe(node.addresses[family], HOST_PORT, count=2, timeout=60.0)
        [found] = lab.probe("client", probe)
        return set(found.servers) if found.count(Outcome.ANSWERED) else set(found.details)

    server.apply(
        pod("a", node.name, *first.addresses.values(), ports=ports),
        pod("b", node.name, *second.addresses.values(), ports=ports, creationTimestamp="2026-02-01T00:00:00Z"),
    )
    cluster.synced()
    assert [servers(family) for family in Family] == [{first.name}, {first.name}]
    daemon = cluster.daemons[0]
    until(lambda: "already taken by the older Pod default/a" in daemon.text, "the loser is told")
    until(lambda: any(e["regarding"]["name"] == "b" for e in server.written()), "an Event about the Pod says so, too")
    assert cluster.holds(daemon, "default/a:9090")
    assert not cluster.holds(daemon, "default/b:9090")
    server.delete("Pod", "default", "a")
    cluster.synced()
    assert [servers(family) for family in Family] == [{second.name}, {second.name}]
    server.delete("Pod", "default", "b")
    cluster.synced()
    assert servers(Family.IPV4) == {"rst"}
    assert not cluster.holds(daemon, "default/b:9090")
