"""The daemon under real traffic: what happens around it must not cost a connection."""

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.kernel.nft.generation import Generation
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family
from tests.apiserver.objects import endpoint_slice, service
from tests.kernel.daemon_lab import PORT, VIP, DaemonLab, Traffic, daemon_lab, until

BOTH_MODES = pytest.mark.parametrize("cluster", ["nftables", "ebpf"], indirect=True)
SPEC = LabSpec(f"daemon-{os.getpid()}", nodes=2, pods=2)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(SPEC) as lab:
        lab.start_echo(lab.pods, [PORT])
        yield lab


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[DaemonLab]:
    """Daemons that hold one Service with every pod behind it; the parameter is their mode. In ebpf mode all packets go
    by the node's stack, so that connection tracking has them, too; other tests leave that as it is by default."""
    mode = getattr(request, "param", "nftables")
    with daemon_lab(lab, tmp_path, mode) as cluster:
        for daemon in cluster.daemons:
            daemon.options = ("--host-routing", "off") if mode == "ebpf" else ()
        cluster.server.apply(service("echo", VIP))
        cluster.serve(*[(pod, "ready") for pod in lab.pods])
        cluster.start()
        yield cluster


def test_an_outage_of_the_api_server_changes_nothing(cluster: DaemonLab, lab: Lab) -> None:
    server = cluster.server
    server.apply(service("other", "10.96.0.20"), endpoint_slice("other", ["10.244.1.11"]))
    cluster.synced()
    with netns(lab.nodes[0].netns):
        generation = Generation()
    with Traffic(lab.pods[0].netns) as traffic:
        server.behave(down=True)
        server.cut()
        before = generation.read()
        server.delete("Service", "default", "other")
        server.apply(service("new", "10.96.0.21"), endpoint_slice("new", ["10.244.1.12"]))
        server.forget()
        time.sleep(1.5)
        assert generation.read() == before, "no rule changes while the API server is away"
        assert all(cluster.holds(daemon, "default/other") for daemon in cluster.daemons)
        server.behave(down=False)
        for daemon in cluster.daemons:
            until(lambda d=daemon: cluster.holds(d, "default/new"), "the new Service arrives")  # type: ignore[misc]
            until(lambda d=daemon: not cluster.holds(d, "default/other"), "the deleted one goes")  # type: ignore[misc]
        assert generation.read() - before <= 9, "three changes, each of three transactions at most"
        assert not any("loaded again" in daemon.text for daemon in cluster.daemons), "only what differs is changed"
        until(lambda: traffic.made > 100 or bool(traffic.failures), "connections")
    assert traffic.failures == []


@BOTH_MODES
def test_killed_at_random_instants_under_load(cluster: DaemonLab, lab: Lab, soak: bool) -> None:
    daemon, rng = cluster.daemons[0], random.Random(7)
    pods = list(lab.pods)
    with Traffic(lab.pods[0].netns) as traffic, Traffic(lab.nodes[0].netns) as local:
        for turn in range(40 if soak else 4):
            for _ in range(rng.randrange(1, 20)):
                chosen = rng.sample(pods, rng.randrange(1, len(pods)))
                cluster.serve(*[(pod, "ready") for pod in chosen])
                cluster.server.apply(service(f"x{rng.randrange(30)}", f"10.96.1.{rng.randrange(1, 250)}"))
                time.sleep(rng.random() * 0.01)
            daemon.kill()
            daemon.start("--master", cluster.server.url, wait=turn % 2 == 0)
            if turn % 2:
                time.sleep(rng.random() * 1.5)  # so that some are killed while they start
        if not daemon.alive:
            daemon.start("--master", cluster.server.url)
        cluster.serve((pods[3], "ready"))
        cluster.synced()
        until(lambda: traffic.made > 100 or bool(traffic.failures), "connections")
    assert traffic.failures == []
    assert local.failures == []
    with Traffic(lab.pods[0].netns, lasting=0) as after:
        until(lambda: after.made > 20, "some more connections")
    assert set(after.servers) == {pods[3].name}, "the last word is in the kernel"


def test_a_rolling_update_fails_no_request(cluster: DaemonLab, lab: Lab) -> None:
    """Pods go one by one: terminating but serving, then gone, their servers ended; new ones are ready before."""
    old, new = lab.pods[:2], lab.pods[2:]
    cluster.serve(*[(pod, "ready") for pod in old])
    cluster.synced()
    with Traffic(lab.nodes[1].netns, lasting=0) as traffic:
        until(lambda: len(traffic.servers) == 2 or bool(traffic.failures), "both are used")
        for index in range(2):
            done, left = old[:index], old[index + 1 :]
            ready = [*left, *new[: index + 1]]
            cluster.serve(*[(pod, "ready") for pod in ready], (old[index], "terminating"))
            cluster.synced()
            before = traffic.servers[old[index].name]
            until(lambda made=traffic.made: traffic.made > made + 20, "some more connections")  # type: ignore[misc]
            assert traffic.servers[old[index].name] - before <= 1, "a terminating endpoint gets no new connections"
            cluster.serve(*[(pod, "ready") for pod in ready], *[(pod, "gone") for pod in done])
            cluster.synced()
    assert traffic.failures == []
    assert traffic.servers.keys() >= {pod.name for pod in (*old, *new)}


def test_the_last_endpoint_serves_while_it_terminates(cluster: DaemonLab, lab: Lab) -> None:
    cluster.serve((lab.pods[2], "ready"))
    cluster.synced()
    with Traffic(lab.pods[0].netns) as traffic:
        for served in ([(lab.pods[2], "terminating")], [(lab.pods[2], "terminating"), (lab.pods[3], "ready")]):
            cluster.serve(*served)
            cluster.synced()
            made = traffic.made
            until(lambda made=made: traffic.made > made + 20, "some more connections")  # type: ignore[misc]
    assert traffic.failures == []


def test_blue_green_moves_all_new_connections_at_once(cluster: DaemonLab, lab: Lab) -> None:
    blue, green = lab.pods[:2], lab.pods[2:]
    cluster.serve(*[(pod, "ready") for pod in blue])
    cluster.synced()
    with Traffic(lab.nodes[0].netns) as traffic:
        cluster.serve(*[(pod, "ready") for pod in green])
        cluster.synced()
        before = {pod.name: traffic.servers[pod.name] for pod in blue}
        until(lambda made=traffic.made: traffic.made > made + 20, "some more connections")  # type: ignore[misc]
        after = {pod.name: traffic.servers[pod.name] for pod in blue}
    assert traffic.failures == []
    assert sum(after.values()) - sum(before.values()) <= 1


@BOTH_MODES
def test_scale_to_zero_and_back_frees_udp_clients(cluster: DaemonLab, lab: Lab) -> None:
    """A client that keeps one UDP socket must neither stay with the dead endpoint nor with the time of none."""
    one, other = lab.pods[2], lab.pods[3]
    cluster.server.apply(service("dns", "10.96.0.53", protocol="UDP", port=53))
    cluster.serve((one, "ready"), name="dns", protocol="UDP")
    cluster.synced()
    with in_netns(lab.pods[0].netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("10.96.0.53", 53))

        def ask() -> str:
            sock.settimeout(0)
            with contextlib.suppress(OSError):  # what was answered too late for the one who asked
                while sock.recv(1000):
                    pass
            sock.settimeout(0.3)
            try:
                sock.send(b"?\n")
                return sock.recv(1000).split(b'"')[3].decode()
            except OSError:
                return ""

        until(lambda: ask() == one.name, "the first endpoint answers")
        cluster.serve(name="dns", protocol="UDP")
        cluster.synced()
        assert [ask() for _ in range(3)] == ["", "", ""], "nobody is there"
        cluster.serve((other, "ready"), name="dns", protocol="UDP")
        cluster.synced()
        until(lambda: ask() == other.name, "the new endpoint answers the same socket")


def test_flushed_rules_come_back_by_themselves(cluster: DaemonLab, lab: Lab) -> None:
    daemon = cluster.daemons[0]
    in_netns(daemon.netns, subprocess.run, ["nft", "delete", "table", "ip", "hotplane"], check=True)
    until(lambda: cluster.holds(daemon, "default/echo"), "the rules come back")
    assert "differs from the plan" in daemon.text
    assert "default/echo" in daemon.text
    cluster.server.apply(service("later", "10.96.0.30"), endpoint_slice("later", [lab.pods[0].addresses[Family.IPV4]]))
    until(lambda: cluster.holds(daemon, "default/later"), "and changes go on")
