"""The daemon with exactly the capabilities that docs/deploy gives it in each mode, and with one of them missing."""

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
from dataplane.planes.ebpf.maps.pins import PinDirectory
from dataplane.planes.registry import MODES, mode_of
from dataplane.planes.rights import Right
from tests.apiserver.objects import service
from tests.kernel.daemon_lab import PORT, ROOT, VIP, NodeDaemon, daemon_lab, http, until
from tests.kernel.traffic import Traffic, lost


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"rights-{os.getpid()}", nodes=1, pods=3)) as lab:
        lab.start_echo(lab.pods[:2], [PORT])
        yield lab


def only(rights: tuple[Right, ...]) -> tuple[str, ...]:
    """Run what follows as root with these capabilities and no others, and no way to others."""
    chosen = ",".join(["-all", *(f"+{right.name.removeprefix('CAP_').lower()}" for right in rights)])
    return ("setpriv", f"--bounding-set={chosen}", f"--inh-caps={chosen}", "--no-new-privs")


def effective(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff"))


@pytest.mark.parametrize("mode", MODES)
def test_the_capabilities_of_the_manifest_are_enough(lab: Lab, tmp_path: Path, mode: str) -> None:
    """Load, change, clean up after UDP, serve health, carry pods', the node's and outside traffic, start again."""
    rights = (*mode_of(mode).needs, *mode_of(mode).uses)
    one, other, client = lab.pods
    node = lab.nodes[0].addresses[Family.IPV4]
    with daemon_lab(lab, tmp_path, mode) as cluster:
        daemon = cluster.daemons[0]
        daemon.wrapper = only(rights)
        port = {"port": 80, "protocol": "TCP", "nodePort": 30080}
        cluster.server.apply(
            service("echo", VIP, type="NodePort", ports=[port]),
            service("dns", "10.96.0.53", protocol="UDP", port=53),
        )
        cluster.serve((one, "ready"), (other, "ready"))
        cluster.serve((one, "ready"), name="dns", protocol="UDP")
        cluster.start()
        assert effective(daemon.pid) == sum(1 << right.bit for right in rights)
        ways = {"pod": (client.name, VIP, 80), "node": ("node1", VIP, 80), "outside": ("client", node, 30080)}
        traffic = Traffic(lab, ways, "--tcp-only")
        cluster.serve((other, "ready"), name="dns", protocol="UDP")
        cluster.serve((other, "ready"))
        cluster.synced()
        daemon.kill()
        daemon.start("--master", cluster.server.url)
        assert http(lab.client.netns, node, 10256, "/healthz")[0] == 200
        with in_netns(client.netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(60)
            sock.connect(("10.96.0.53", 53))
            sock.send(b"?\n")
            assert other.name.encode() in sock.recv(1000)
        traffic.until_used()
        reports = traffic.end()
        assert not lost(reports), reports
        assert all(report.opened > 10 for report in reports.values()), reports
        assert not [line for line in daemon.text.splitlines() if " ERROR " in line or " WARNING " in line], daemon.text


@pytest.mark.parametrize("mode", MODES)
def test_without_one_of_them_it_ends_and_names_it(lab: Lab, tmp_path: Path, mode: str) -> None:
    for missing in mode_of(mode).needs:
        daemon = NodeDaemon(lab, lab.nodes[0].name, tmp_path, mode)
        daemon.wrapper = only(tuple(right for right in mode_of(mode).needs if right is not missing))
        command = daemon.command("run", "--once", "--master", "http://192.0.2.1:1")
        done = in_netns(daemon.netns, subprocess.run, command, capture_output=True, text=True, cwd=ROOT, timeout=300)
        assert done.returncode == 1
        assert f"{mode} mode lacks {missing.name}, {missing.why}" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_ebpf_mode_says_what_it_cannot_do_without_the_last_two(lab: Lab, tmp_path: Path) -> None:
    with daemon_lab(lab, tmp_path, "ebpf") as cluster:
        daemon = cluster.daemons[0]
        cluster.server.apply(service("dns", "10.96.0.53", protocol="UDP", port=53))
        cluster.serve((lab.pods[0], "ready"), name="dns", protocol="UDP")
        daemon.run("run", "--init-only")
        other = PinDirectory(f"hp-{os.getpid()}-other")
        other.ensure()
        other.remove()  # who removes what is the last of the others' leaves what was made for this daemon
        daemon.wrapper = only(mode_of("ebpf").needs)
        cluster.start()
        assert "UDP sockets of pods stay connected" in daemon.text
        for states in ((), ((lab.pods[1], "ready"),), ()):
            cluster.serve(*states, name="dns", protocol="UDP")
            cluster.synced()
        until(lambda: "could not all be disconnected" in daemon.text, "the cleaner says so too")
        assert daemon.text.count("could not all be disconnected: there are processes") == 1, "once"
        assert "Traceback" not in daemon.text
