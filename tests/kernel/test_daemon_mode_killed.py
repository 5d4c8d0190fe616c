"""kill -9 of a daemon during a change of modes: the next process removes its leftovers, without lost connections."""

import itertools
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
from tests.apiserver.objects import service
from tests.kernel.daemon_lab import PATIENCE, PORT, VIP, DaemonLab, NodeDaemon, Traffic, daemon_lab, until

EXTERNAL = "203.0.113.78"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"modekill-{os.getpid()}", nodes=1, pods=3)) as lab:
        lab.start_echo(lab.pods[:2], [PORT])
        yield lab


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path) -> Iterator[DaemonLab]:
    with daemon_lab(lab, tmp_path) as cluster:
        cluster.server.apply(service("echo", VIP, externalIPs=[EXTERNAL]))
        cluster.serve(*[(pod, "ready") for pod in lab.pods[:2]])
        yield cluster


def traces(daemon: NodeDaemon) -> set[str]:
    """What is in the node's kernel: modes, and "drain" for packet programs that finish what they had begun."""
    with netns(daemon.netns):
        pins = PinDirectory(default_instance())
        commands = (["iptables-legacy-save", "-t", "nat"], ["nft", "list", "tables"])
        text = "".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in commands)
        found = {mode for mode, word in {"iptables": "KUBE-", "nftables": "ip hotplane"}.items() if word in text}
        if pins.path is not None:
            found.add("drain" if pins.draining else "ebpf")
    return found


def of(mode: str) -> set[str]:
    """The traces that a mode has."""
    return {"ebpf", "nftables"} if mode == "ebpf" else {mode}


def began(daemon: NodeDaemon, old: set[str]) -> bool:
    """Something of the new mode is in the kernel, or none of the old one's frontends is left."""
    return traces(daemon) != old


def loaded(daemon: NodeDaemon, _: set[str]) -> bool:
    """The new mode answers."""
    return " loaded " in daemon.text


def replaced(daemon: NodeDaemon, _: set[str]) -> bool:
    """The old mode's rules went, and the state is about to be written."""
    return "replaced mode" in daemon.text


STEPS: tuple[tuple[Callable[[NodeDaemon, set[str]], bool], bool], ...] = (
    (loaded, False),
    (began, True),
    (replaced, False),
)
"""The moment of the kill, and whether the next start is in the new mode, else in the old one."""


def killed_switch(daemon: NodeDaemon, url: str, mode: str, when: Callable[[NodeDaemon, set[str]], bool]) -> None:
    """Start a daemon in another mode and kill it at a moment."""
    before = traces(daemon)
    daemon.mode = mode
    daemon.start("--master", url, wait=False)
    end = time.monotonic() + PATIENCE
    while not when(daemon, before):
        assert daemon.alive, daemon.text
        assert time.monotonic() < end, daemon.text
        time.sleep(0.001)
    daemon.kill()


def start_in_mode(daemon: NodeDaemon, url: str, mode: str) -> None:
    """Start in a mode, to the end of its first load: nothing of another mode is there."""
    daemon.mode = mode
    daemon.run("run", "--once", "--master", url)
    assert traces(daemon) - {"drain"} == of(mode)


@pytest.mark.parametrize(("one", "other"), [("iptables", "nftables"), ("nftables", "ebpf"), ("ebpf", "iptables")])
def test_a_killed_change_of_modes_leaves_nothing(cluster: DaemonLab, lab: Lab, one: str, other: str) -> None:
    daemon, url = cluster.daemons[0], cluster.server.url
    start_in_mode(daemon, url, one)
    old, new = one, other
    with Traffic(lab.pods[2].netns) as pod, Traffic(lab.client.netns, EXTERNAL) as outside:
        for when, forward in STEPS:
            killed_switch(daemon, url, new, when)
            if forward:
                old, new = new, old
            start_in_mode(daemon, url, old)
    daemon.run("check")
    assert pod.failures == []
    assert outside.failures == []
    killed_switch(daemon, url, new, loaded)
    daemon.run("cleanup")
    assert traces(daemon) == set()
    assert not list((daemon.folder / "state").glob("*"))


def test_a_restarted_daemon_ends_what_a_killed_one_let_drain(cluster: DaemonLab, lab: Lab) -> None:
    daemon, url = cluster.daemons[0], cluster.server.url
    start_in_mode(daemon, url, "ebpf")
    with in_netns(lab.client.netns, socket.create_connection, (EXTERNAL, 80), PATIENCE) as sock:
        # To end by a reset: at once, for both sides.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        daemon.mode = "nftables"
        daemon.start("--master", url)
        until(lambda: traces(daemon) == {"nftables", "drain"}, "the packet programs finish what they had begun")
        daemon.kill()
        daemon.start("--master", url)
        cluster.server.apply(service("second", "10.96.0.60"))
        until(lambda: cluster.holds(daemon, "default/second"), "the change is in the kernel")
        assert traces(daemon) == {"nftables", "drain"}
        sock.sendall(b"?\n")
        assert sock.recv(1000)

    def ended() -> bool:
        cluster.server.apply(service("second", f"10.96.0.{next(numbers)}"))
        return traces(daemon) == {"nftables"}

    numbers = itertools.cycle(range(61, 90))
    until(ended, "the first change after the last flow takes the programs off")
    assert daemon.stop() == 0
