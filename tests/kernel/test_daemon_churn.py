"""Churn: random changes without end, with load, a misbehaving API server and a daemon killed at random instants.

The kernel must hold the plan whenever one looks, no connection may fail or break, and the memory of the daemon that
lives on stays flat. `tests/run --soak` does it for ten minutes in each mode.
"""

import os
import random
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ctl.config import KubeProxyConfiguration
from ctl.daemon.node.nodes import NodeOptions, describe
from ctl.lb_options import LbOptions
from ctl.store.drift import differences
from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, LabSpec
from dataplane.model.decode import decode_object
from dataplane.model.net import Family
from dataplane.model.objects import ModelObject, Node, ObjectRef
from dataplane.plan.planner import Planner
from dataplane.plan.rows import rows
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from tests.apiserver.objects import endpoint, endpoint_slice, service
from tests.kernel.daemon_lab import PORT, VIP, DaemonLab, NodeDaemon, daemon_lab, http, looking_plane
from tests.kernel.traffic import Traffic, lost

SERVICES = 60
NODE_PORT = 30088
BACKENDS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
MOST_GROWTH = 4096
"""KiB by which a daemon may grow in the second half of a soak: 200 bytes kept of each change would be more."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"churn-{os.getpid()}", nodes=2, pods=3)) as lab:
        lab.start_echo([lab.place(name) for name in BACKENDS], [PORT])
        yield lab


class Churn:
    """Makes random changes and remembers what the cluster should look like."""

    def __init__(self, cluster: DaemonLab, seed: int) -> None:
        self.cluster, self.rng = cluster, random.Random(seed)
        self.objects: dict[ObjectRef, dict[str, Any]] = {}

    def put(self, item: dict[str, Any]) -> None:
        ref = ObjectRef(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])
        self.objects[ref] = item
        self.cluster.server.apply(item)

    def drop(self, ref: ObjectRef) -> None:
        if self.objects.pop(ref, None) is not None:
            self.cluster.server.delete(ref.kind, ref.namespace, ref.name)

    def change(self) -> None:
        """One random change: of the Service that carries the load, or of another one."""
        rng, number = self.rng, self.rng.randrange(SERVICES)
        if rng.random() < 0.1:
            self.choose(*rng.sample(BACKENDS, rng.randrange(1, len(BACKENDS))))
            return
        name, protocol = f"s{number}", "UDP" if number % 3 == 0 else "TCP"
        kind = rng.random()
        if kind < 0.15:
            self.drop(ObjectRef("Service", "default", name))
        elif kind < 0.2:
            self.drop(ObjectRef("EndpointSlice", "default", f"{name}-abcde"))
        elif kind < 0.5:
            self.put(self._service(number, name, protocol))
        else:
            self.put(endpoint_slice(name, self._endpoints(), protocol=protocol))

    def choose(self, *pods: str) -> None:
        """These pods are behind the Service that carries the load. All of them live on, whoever is chosen."""
        places = [self.cluster.lab.place(name) for name in pods]
        self.put(endpoint_slice("echo", [endpoint(p.addresses[Family.IPV4], f"node{p.name[3]}") for p in places]))

    def _service(self, number: int, name: str, protocol: str) -> dict[str, Any]:
        rng = self.rng
        more: dict[str, Any] = rng.choice(
            [
                {},
                {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}},
                {"internalTrafficPolicy": "Local"},
                {"externalIPs": [f"203.0.113.{rng.randrange(1, 9)}"]},
                {
                    "type": "NodePort", "externalTrafficPolicy": rng.choice(("Cluster", "Local")),
                    "ports": [{"port": 80, "protocol": protocol, "nodePort": 30000 + rng.randrange(20)}],
                },
            ]
        )  # fmt: skip
        return service(name, f"10.96.3.{number + 1}", protocol=protocol, **more)

    def _endpoints(self) -> list[dict[str, Any]]:
        rng = self.rng
        return [
            endpoint(
                f"10.244.{rng.randrange(1, 3)}.{100 + rng.randrange(20)}", f"node{rng.randrange(1, 3)}",
                ready=rng.random() < 0.8, terminating=rng.random() < 0.2, serving=rng.random() < 0.8,
            )
            for _ in range(rng.randrange(6))
        ]  # fmt: skip

    def trouble(self) -> None:
        """Something goes wrong with the API server."""
        server = self.cluster.server
        match self.rng.randrange(5):
            case 0:
                server.cut()
            case 1:
                server.forget()
                server.cut()
            case 2:
                server.say(b'{"type":"MODIFIED","object":{"kind":"Serv\n')
            case 3:
                server.behave(down=True)
                server.cut()
                time.sleep(0.3)
                server.behave(down=False)
            case 4:
                server.behave(streaming_lists=not self.rng.randrange(2), page=self.rng.choice((0, 7)))
                server.forget()
                server.cut()

    def kill(self) -> None:
        """The first node's daemon is killed, wherever it is, perhaps still starting, and started again."""
        daemon = self.cluster.daemons[0]
        daemon.kill()
        daemon.start("--master", self.cluster.server.url, wait=False)

    def planner(self, daemon: NodeDaemon) -> Planner:
        """What a planner makes of it all on a node, from nothing."""
        config = msgspec.structs.replace(KubeProxyConfiguration(), cluster_cidr=CLUSTER_CIDR[Family.IPV4])
        address = self.cluster.lab.place(daemon.node).addresses[Family.IPV4]
        with netns(daemon.netns):
            this = Node(daemon.node, addresses=(address,))
            found = describe(mode_of(daemon.mode), config, NodeOptions(daemon.node), this, PlaneOptions(), LbOptions())
        planner = Planner(found)
        items: list[ModelObject] = []
        for item in self.objects.values():
            value = decode_object(msgspec.json.encode(item)).value
            assert value is not None
            items.append(value)
        planner.update(items)
        return planner

    def verify(self) -> None:
        """Every node's kernel holds exactly the plan that follows from the cluster's objects."""
        self.cluster.synced()
        for daemon in self.cluster.daemons:
            plan = self.planner(daemon).plan
            with netns(daemon.netns):
                have = looking_plane(daemon.mode).read_back()
            have = {key: row for key, row in have.items() if not row.service.startswith("default/mark-")}
            assert [str(d) for d in differences(rows(plan), have)] == [], daemon.text[-3000:]


def _rss(daemon: NodeDaemon) -> int:
    """Resident memory in KiB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{daemon.pid}/status").read_text())[0])


def _growth(samples: list[tuple[float, int]]) -> float:
    """KiB by which memory grew over the second half of the samples (time, KiB), by a line through them."""
    half = samples[len(samples) // 2 :]
    slope, _ = statistics.linear_regression([when for when, _ in half], [size for _, size in half])
    return slope * (half[-1][0] - half[0][0])


def _ways(lab: Lab) -> dict[str, tuple[str, str, int]]:
    node = lab.place("node1").addresses[Family.IPV4]
    return {
        "pod": ("pod1-3", VIP, 80),
        "other node's pod": ("pod2-3", VIP, 80),
        "node": ("node1", VIP, 80),
        "outside": ("client", node, NODE_PORT),
    }


@pytest.mark.parametrize("mode", ["nftables", "ebpf"])
def test_churn(lab: Lab, tmp_path: Path, soak: bool, mode: str) -> None:
    seconds, pause, checks = (600.0, 0.02, 30) if soak else (6.0, 0.005, 3)
    troubles, kills = (0.03, 0.2) if soak else (0.2, 0.3)
    with daemon_lab(lab, tmp_path, mode) as cluster:
        churn = Churn(cluster, seed=11)
        port = {"port": 80, "protocol": "TCP", "nodePort": NODE_PORT}
        churn.put(service("echo", VIP, type="NodePort", ports=[port]))
        churn.choose(*BACKENDS)
        cluster.start()
        lasting = cluster.daemons[1]
        memory: list[tuple[float, int]] = []
        traffic = Traffic(lab, _ways(lab), "--tcp-only")
        end, check = time.monotonic() + seconds, time.monotonic() + seconds / checks
        while time.monotonic() < end:
            for _ in range(50):
                churn.change()
                time.sleep(pause)
            if churn.rng.random() < troubles:
                churn.trouble()
            if churn.rng.random() < kills:
                churn.kill()
            assert http(lasting.netns, "127.0.0.1", 10249, "/metrics")[0] == 200
            memory.append((time.monotonic(), _rss(lasting)))
            if time.monotonic() >= check:
                churn.verify()
                check = time.monotonic() + seconds / checks
        churn.verify()
        traffic.until_used()
        reports = traffic.end()
        (tmp_path / "reports").write_text(f"{reports}\n{memory}\n")
        assert not lost(reports), reports
        assert all(report.opened >= 20 and report.exchanges >= 20 for report in reports.values()), reports
        if soak:
            assert _growth(memory) <= MOST_GROWTH, memory


def test_memory_stays_flat(lab: Lab, tmp_path: Path, soak: bool) -> None:
    """The same changes over and over: what the daemon needs after many rounds is what it needed after some."""
    rounds = 200 if soak else 6
    with daemon_lab(lab, tmp_path) as cluster:
        churn = Churn(cluster, seed=5)
        cluster.start()
        sizes = []
        for _ in range(rounds):
            for _ in range(200):
                churn.change()
            cluster.synced()
            sizes.append(_rss(cluster.daemons[0]))
        steady, last = sizes[rounds // 3], max(sizes[-3:])
        assert last <= steady + 4096, sizes
