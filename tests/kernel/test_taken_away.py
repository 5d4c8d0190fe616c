"""The ebpf mode while somebody takes parts of it away: its daemon puts them back at once, whatever the sync period."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, LabSpec
from dataplane.model.net import Family
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
from dataplane.planes.ebpf.views import records as views
from tests.apiserver.objects import service
from tests.kernel.daemon_lab import PATIENCE, PORT, VIP, DaemonLab, Traffic, daemon_lab, until

NODE_PORT = 30080
CONNECT = "connect4"


class Node:
    """A node in ebpf mode, and what its daemon pinned."""

    def __init__(self, lab: Lab, cluster: DaemonLab) -> None:
        self.lab, self.daemon = lab, cluster.daemons[0]
        with netns(self.daemon.netns):
            self._pins = PinDirectory(default_instance())
        self.links = self._attached()
        self.maps = self._maps()

    @property
    def folder(self) -> Path:
        assert self._pins.path is not None
        return self._pins.path

    def _attached(self) -> dict[str, int]:
        """What each pinned link is attached to: an ifindex or a control group's id, 0 = nothing."""
        found = {}
        for name, path in self._pins.links().items():
            link = bpf.obj_get(str(path))
            found[name] = bpf.link_info(link).target & 0xFFFFFFFF
            os.close(link)
        return found

    def _maps(self) -> dict[str, int]:
        """The kernel's number of each pinned map."""
        found = {}
        for folder in self.folder.glob("maps-*"):
            for path in folder.iterdir():
                if not path.is_dir():
                    fd = bpf.obj_get(str(path))
                    found[path.name] = bpf.map_info(fd).id
                    os.close(fd)
        return found

    def whole(self) -> bool:
        """Every link is where it was, and the maps are those that were there, with all that they hold."""
        if self._pins.path is None:
            return False
        try:
            return self._attached() == self.links and self._maps() == self.maps
        except (bpf.BpfError, FileNotFoundError):  # while they are put back
            return False

    def slow_path_serves(self) -> bool:
        """Whether a process of the node outside its control group, whom the slow path alone balances, is served."""
        with closing(in_netns(self.daemon.netns, socket.socket)) as sock:
            sock.settimeout(PATIENCE)
            return sock.connect_ex((VIP, 80)) == 0

    def flows(self) -> int:
        with views.open_instance(self._pins.instance) as maps:  # type: ignore[union-attr]
            return len(list(views.flows(maps)))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The daemon compares tables once a day alone, so whatever comes back was missed at once."""
    folder = tmp_path_factory.mktemp("taken")
    config = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
              "clusterCIDR": CLUSTER_CIDR[Family.IPV4], "nftables": {"syncPeriod": "24h"}}  # fmt: skip
    (folder / "config").write_text(json.dumps(config))
    with Lab.up(LabSpec(f"taken-{os.getpid()}", nodes=1, pods=2)) as lab:
        lab.start_echo(lab.pods, [PORT])
        with daemon_lab(lab, folder, "ebpf") as cluster:
            port = {"port": 80, "protocol": "TCP", "nodePort": NODE_PORT}
            cluster.server.apply(service("echo", VIP, type="NodePort", ports=[port]))
            cluster.serve(*[(pod, "ready") for pod in lab.pods])
            cluster.daemons[0].options = ("--config", str(folder / "config"))
            cluster.start()
            yield Node(lab, cluster)


def unpinned(node: Node) -> None:
    for path in (node.folder / "links").iterdir():
        path.unlink()


def detached(node: Node) -> None:
    for path in (node.folder / "links").iterdir():
        link = bpf.obj_get(str(path))
        bpf.link_detach(link)
        os.close(link)


def removed(node: Node) -> None:
    subprocess.run(["rm", "-rf", str(node.folder)], check=False, capture_output=True)  # what came back meanwhile stays


@pytest.mark.parametrize("take", [unpinned, detached, removed])
def test_programs_and_pins_come_back(node: Node, take: Callable[[Node], None]) -> None:
    address = node.lab.nodes[0].addresses[Family.IPV4]
    said = node.daemon.text.count("put back")
    take(node)
    until(lambda: node.whole() and node.daemon.text.count("put back") > said, "all is there again")
    assert CONNECT in node.links
    for place in (node.lab.client, node.lab.pods[0]):
        with Traffic(place.netns, address, NODE_PORT, lasting=1) as traffic:
            until(lambda t=traffic: t.made > 20 or bool(t.failures), "connections")  # type: ignore[misc]
            assert node.flows() > 0
        assert traffic.failures == []


def test_the_slow_path_comes_back(node: Node) -> None:
    assert node.slow_path_serves()
    in_netns(node.daemon.netns, subprocess.run, ["nft", "delete", "table", "ip", "hotplane"], check=True)
    until(node.slow_path_serves, "clients of the slow path are served")
