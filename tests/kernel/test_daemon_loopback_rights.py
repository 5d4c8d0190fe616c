"""Node ports on 127.0.0.0/8 from a daemon that sees /proc/sys read-only, as containers do."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.kernel.sysctl import ROUTE_LOCALNET, read
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from tests.apiserver.objects import service
from tests.kernel.daemon_lab import PORT, VIP, daemon_lab, looking_plane

READ_ONLY = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"localnet-{os.getpid()}", nodes=1, pods=1)) as lab:
        lab.start_echo(lab.pods, [PORT])
        yield lab


@pytest.mark.parametrize(("mode", "options"), [("iptables", ()), ("nftables", ("--nodeport-addresses", "127.0.0.0/8"))])
def test_what_ran_before_it_with_more_rights_sets_them_up(
    lab: Lab, tmp_path: Path, mode: str, options: tuple[str, ...]
) -> None:
    name = lab.nodes[0].netns
    with daemon_lab(lab, tmp_path, mode) as cluster:
        daemon = cluster.daemons[0]
        cluster.server.apply(
            service("echo", VIP, type="NodePort", ports=[{"port": 80, "protocol": "TCP", "nodePort": 30080}])
        )
        cluster.serve((lab.pods[0], "ready"))
        daemon.run("run", "--init-only", *options)
        daemon.wrapper = ("unshare", "--mount", "sh", "-c", READ_ONLY, "-")
        cluster.start(*options)
        with in_netns(name, socket.create_connection, ("127.0.0.1", 30080), 60) as client:
            client.sendall(b"?\n")
            assert lab.pods[0].name.encode() in client.recv(1000)
        assert " ERROR " not in daemon.text
        assert daemon.stop() == 0
    with netns(name):
        looking_plane("nftables").cleanup()
        assert read(ROUTE_LOCALNET) == "0"
