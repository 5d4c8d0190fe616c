"""Rollout patterns under load, in the modes that a node runs in: no request fails where Kubernetes promises none."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family
from tests.apiserver.objects import endpoint, endpoint_slice, service
from tests.kernel.daemon_lab import PORT, VIP, DaemonLab, daemon_lab, until
from tests.kernel.traffic import SOURCE_PORTS, Report, Traffic

STEADY = "10.96.0.11"
NODE_PORTS = {"echo": 30080, "steady": 30081}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"roll-{os.getpid()}", nodes=3, pods=3)) as lab:
        yield lab


class Rollout:
    """Two Services and the containers behind them: `echo`, which the tests roll out, and `steady`."""

    def __init__(self, lab: Lab, cluster: DaemonLab) -> None:
        self.lab, self.cluster = lab, cluster
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._traffic: list[Traffic] = []
        self._ranges = 0
        for name, address in (("echo", VIP), ("steady", STEADY)):
            ports = [{"port": 80, "protocol": "TCP", "nodePort": NODE_PORTS[name]}]
            cluster.server.apply(service(name, address, type="NodePort", ports=ports))

    def start(self, *pods: str) -> None:
        """Start the containers of pods."""
        self._servers |= self.lab.start_echo([self.lab.place(pod) for pod in pods], [PORT], ["tcp"])

    def end(self, *pods: str) -> None:
        """End containers once nobody is connected to them (what a preStop hook and SIGTERM come to)."""
        for pod in pods:
            until(lambda p=pod: not self._connected(p), f"{pod} has no client left")  # type: ignore[misc]
            self._servers[pod].kill()
            self._servers.pop(pod).wait()

    def clear(self) -> None:
        """End all clients, and all containers, used or not."""
        for traffic in self._traffic:
            traffic.kill()
        for server in self._servers.values():
            server.kill()
            server.wait()
        self._servers.clear()

    def _connected(self, pod: str) -> bool:
        command = ["ss", "-Htn", "state", "established", "sport", "=", f":{PORT}"]
        done = in_netns(self.lab.place(pod).netns, subprocess.run, command, capture_output=True, text=True, check=True)
        return bool(done.stdout.strip())

    def publish(self, states: dict[str, str], name: str = "echo") -> None:
        """Set the state of endpoints at the API server: ready, terminating (and serving), or gone (not even that)."""
        items = [
            endpoint(
                self.lab.place(pod).addresses[Family.IPV4], f"node{pod[3]}", ready=state == "ready",
                serving=state != "gone", terminating=state == "terminating",
            )
            for pod, state in states.items()
        ]  # fmt: skip
        self.cluster.server.apply(endpoint_slice(name, items))

    def states(self, states: dict[str, str], lost: str = "") -> None:
        """The same, and every node but a lost one has taken it in."""
        self.publish(states)
        self.cluster.synced([daemon for daemon in self.cluster.daemons if daemon.node != lost])

    def traffic(self, name: str = "echo", hold: int = 0) -> Traffic:
        """Clients in a pod, on a node and outside, none of them on node3. hold: every which connection is kept; 0 for
        none."""
        address = {"echo": VIP, "steady": STEADY}[name]
        node = self.lab.place("node2").addresses[Family.IPV4]
        ways = {
            "pod": ("pod1-3", address, 80), "other node's pod": ("pod2-3", address, 80),
            "node": ("node1", address, 80), "outside": ("client", node, NODE_PORTS[name]),
        }  # fmt: skip
        self._ranges += 1  # of source ports, so that clients of one place do not meet
        options = ("--tcp-only", f"--hold={hold}", f"--first={33000 + SOURCE_PORTS * self._ranges}")
        self._traffic.append(Traffic(self.lab, ways, *options))
        return self._traffic[-1]


@pytest.fixture(params=["nftables", "ebpf"])
def rollout(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rollout]:
    with daemon_lab(lab, tmp_path, request.param) as cluster:
        rollout = Rollout(lab, cluster)
        try:
            yield rollout
        finally:
            rollout.clear()


def none_failed(reports: dict[str, Report]) -> None:
    assert {name: report.failed for name, report in reports.items() if report.failed} == {}
    assert all(report.opened for report in reports.values()), reports


def test_rolling_update(rollout: Rollout) -> None:
    """One pod at a time: the new one is ready, the old one terminates but serves on, ends when nobody uses it, goes."""
    old, new = ["pod1-1", "pod2-1", "pod3-1"], ["pod1-2", "pod2-2", "pod3-2"]
    rollout.start(*old)
    states = dict.fromkeys(old, "ready")
    rollout.publish(states)
    rollout.cluster.start()
    traffic = rollout.traffic()
    for before, after in zip(old, new, strict=True):
        rollout.start(after)
        rollout.states(states | {after: "ready"})
        states |= {after: "ready", before: "terminating"}
        rollout.states(states)
        rollout.end(before)
        states[before] = "gone"
        rollout.states(states)
        del states[before]
        rollout.states(states)
    none_failed(traffic.end())


def test_scale_to_zero_and_back(rollout: Rollout, lab: Lab) -> None:
    """Until the last pod ends it serves, although it terminates; then clients are refused at once; afterwards no
    request fails again."""
    pods = ["pod2-1", "pod3-1"]
    rollout.start(*pods)
    rollout.publish(dict.fromkeys(pods, "ready"))
    rollout.cluster.start()
    traffic = rollout.traffic()
    rollout.states(dict.fromkeys(pods, "terminating"))
    none_failed(traffic.end())
    rollout.end(*pods)
    rollout.states({})
    with in_netns(lab.place("pod1-3").netns, socket.socket, socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(60)
        with pytest.raises(ConnectionRefusedError):
            sock.connect((VIP, 80))
    rollout.start("pod1-1")
    rollout.states({"pod1-1": "ready"})
    traffic = rollout.traffic()
    rollout.states({"pod1-1": "ready", "pod2-1": "gone"})
    none_failed(traffic.end())


def test_node_loss(rollout: Rollout, lab: Lab) -> None:
    """A node falls off the network. Whoever was connected elsewhere stays so, nobody notices but users of its pods, and
    once the cluster knows, no new request fails; the node comes back and serves again."""
    here, there = ["pod1-1", "pod2-1"], ["pod3-1", "pod3-2"]
    rollout.start(*here, *there, "pod1-2")
    everywhere = dict.fromkeys((*here, *there), "ready")
    rollout.publish(everywhere)
    rollout.publish({"pod1-2": "ready"}, "steady")
    rollout.cluster.start()
    steady = rollout.traffic("steady", hold=10)
    held = rollout.traffic(hold=2)
    rollout.cluster.synced()
    switch = in_netns(lab.topology.underlay.netns, subprocess.run, ["ip", "link", "set", "node3", "down"])
    assert switch.returncode == 0
    rollout.states(dict.fromkeys(here, "ready") | dict.fromkeys(there, "gone"), lost="node3")
    after = rollout.traffic("echo")
    in_netns(lab.topology.underlay.netns, subprocess.run, ["ip", "link", "set", "node3", "up"], check=True)
    before = held.end()
    broken = [text for report in before.values() for text in report.broken]
    assert all(" of pod3-" in text for text in broken), broken
    assert all(report.held for report in before.values()), "connections to the other nodes' pods live on"
    none_failed(after.end())
    rollout.states(everywhere)
    back = rollout.traffic()
    rollout.states(everywhere)
    none_failed(back.end())
    reports = steady.end()
    none_failed(reports)
    assert not [report.broken for report in reports.values() if report.broken]


def test_blue_green_by_selector(rollout: Rollout) -> None:
    """The Service's selector changes: from one update to the next all its endpoints are others. Connections to the
    old ones live as long as those do."""
    blue, green = ["pod1-1", "pod2-1"], ["pod1-2", "pod3-2"]
    rollout.start(*blue, *green)
    rollout.publish(dict.fromkeys(blue, "ready"))
    rollout.cluster.start()
    traffic = rollout.traffic(hold=5)
    for colour in (green, blue, green):
        rollout.states(dict.fromkeys(colour, "ready"))
    reports = traffic.end()
    none_failed(reports)
    assert not [report.broken for report in reports.values() if report.broken]
    traffic = rollout.traffic()
    rollout.end(*blue)
    rollout.states(dict.fromkeys(green, "ready"))
    none_failed(traffic.end())
