"""The daemon on a node that is short of processes, descriptors or space: it says so, goes on, and loses nothing."""

import contextlib
import os
import resource
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.main import main
from ctl.store.lock import lock_path, takeover_socket_path
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.nft.transaction import Nft
from dataplane.planes.ebpf.maps.pins import PinDirectory
from tests.faults.inject import ALL, Faults
from tests.kernel.daemon_lab import http, until
from tests.kernel.faulty_node import MANIFEST, Node


@pytest.fixture
def node(namespace: str, tmp_path: Path) -> Iterator[Node]:
    with Faults(tmp_path) as faults:
        node = Node(namespace, tmp_path, faults)
        try:
            node.service("a", "10.96.0.10")
            yield node
        finally:
            node.kill()
            with netns(namespace):
                assert main(["--state-dir", str(node.state), "cleanup"]) == 0


def test_a_fork_that_fails_is_tried_again_until_the_table_is_back(node: Node) -> None:
    node.start()
    node.says(" loaded ")
    node.faults.fail("fork", ALL)
    with netns(node.namespace):
        Nft().run("delete table ip hotplane\n")
    node.says("job failed job=drift")
    node.says("BlockingIOError")
    assert node.services() == set()
    node.faults.fail("fork", 0)
    until(lambda: node.services() == {"default/a"}, "the table is back")
    assert "Traceback" not in node.text
    assert node.end() == 0


def troubles(node: Node) -> int:
    """How often the daemon has told of any."""
    return sum(f" {level} " in line for line in node.text.splitlines() for level in ("WARNING", "ERROR"))


def test_every_kind_of_fault_in_a_change_is_made_good_at_the_next_try(node: Node) -> None:
    node.start()
    node.says(" loaded ")
    for number, kind in enumerate(("send", "open"), start=1):
        told = troubles(node)
        node.faults.fail(kind, ALL)
        node.service(f"s{number}", f"10.96.1.{number}")
        until(lambda told=told: troubles(node) > told, f"{kind} fails")  # type: ignore[misc]
        assert node.faults.count(kind) > 0
        node.faults.fail(kind, 0)
        until(lambda n=number: f"default/s{n}" in node.services(), f"s{number}")  # type: ignore[misc]
        assert node.alive, node.text
    assert "Traceback" not in node.text
    assert node.end() == 0


def test_iptables_that_cannot_be_started(node: Node) -> None:
    node.start(mode="iptables")
    node.says(" loaded ")
    node.faults.fail("fork", ALL)
    node.service("b", "10.96.0.11")
    until(lambda: node.text.count("retry_s") > 0, "it fails and says so")
    node.faults.fail("fork", 0)
    until(lambda: node.services("iptables") == {"default/a", "default/b"}, "both are there")
    assert "Traceback" not in node.text
    assert node.end() == 0


def test_a_first_load_that_cannot_be(node: Node) -> None:
    """Short of descriptors from the start: sockets of the plane, pipes of children."""
    node.faults.fail("fork", ALL)
    node.start(mode="iptables")
    until(lambda: node.text.count("retry_s") > 0, "it fails and says so")
    node.faults.fail("fork", 0)
    node.says(" loaded ")
    assert node.services("iptables") == {"default/a"}
    assert os.path.exists(node.state)
    assert node.end() == 0


CHECKED = """\
kind: Service
metadata: {{name: lb{n}}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: {port}
  clusterIP: 10.97.{high}.{low}
  ports: [{{port: 80, nodePort: {node_port}}}]
---
"""


def _ask(node: Node, port: int, address: str = "127.0.0.1") -> int:
    return http(node.namespace, address, port, "/healthz")[0]


def _open(node: Node, port: int) -> bool:
    try:
        return _ask(node, port, "192.0.2.1") > 0
    except ConnectionRefusedError:
        return False


def test_more_health_check_ports_than_select_knows_descriptors(node: Node) -> None:
    """On two addresses each: 1,200 listening sockets, of which a limit of 1,024 holds most, and the rest is told."""
    checked = [
        CHECKED.format(n=n, port=32000 + n, node_port=31000 + n, high=n // 200, low=n % 200 + 1) for n in range(600)
    ]
    (node.manifests / "lb.yaml").write_text("".join(checked))
    for address in ("192.0.2.1/32", "fd00::1/128"):
        subprocess.run(["ip", "-n", node.namespace, "address", "add", address, "dev", "lo"], check=True)
    node.start("--nodeport-addresses", "192.0.2.0/24,fd00::/64")
    node.says(" loaded ")
    until(lambda: _open(node, 32599), "the last port is open")
    with netns(node.namespace):
        Nft().run("delete table ip hotplane\n")
    until(lambda: "default/a" in node.services(), "a child looks, and the table comes back")
    assert _ask(node, 32599, "192.0.2.1") == 503
    assert node.end() == 0
    node.wrapper = ("prlimit", "--nofile=1024:1024")
    node.start("--nodeport-addresses", "192.0.2.0/24,fd00::/64")
    node.says(" loaded ")
    node.says("descriptors none is left for it")
    node.service("b", "10.96.0.11")
    until(lambda: "default/b" in node.services(), "changes go on")
    with netns(node.namespace):
        Nft().run("delete table ip hotplane\n")
    until(lambda: "default/b" in node.services(), "repairs go on")
    assert "Traceback" not in node.text
    assert node.end() == 0


def test_half_open_requests_of_one_host_to_the_health_port(node: Node) -> None:
    node.wrapper = ("prlimit", "--nofile=1024:1024")
    node.start()
    node.says(" loaded ")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = []
    try:
        with netns(node.namespace):
            for _ in range(1150):
                client = socket.create_connection(("127.0.0.1", 10256), 60)
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
                clients.append(client)
        assert _ask(node, 10256) == 200
        node.service("b", "10.96.0.11")
        until(lambda: "default/b" in node.services(), "changes go on")
        assert node.process is not None
        assert len(os.listdir(f"/proc/{node.process.pid}/fd")) < 400
        metrics = http(node.namespace, "127.0.0.1", 10249, "/metrics")[2].decode()
        closed = next(
            line for line in metrics.splitlines() if line.startswith("hotplane_http_connections_closed_total")
        )
        assert 'reason="client"' in closed
        assert float(closed.split()[-1]) > 800
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert node.end() == 0


@pytest.fixture
def small_state(node: Node) -> Iterator[Path]:
    """A state directory with room for 64 KiB."""
    node.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "hotplane-test", str(node.state)], check=True)
    yield node.state
    subprocess.run(["umount", str(node.state)], check=True)


def test_a_full_state_directory(node: Node, small_state: Path) -> None:
    node.start()
    node.says(" loaded ")
    until(lambda: any(small_state.glob("*.msgpack")), "the plan is saved")
    full = small_state / "full"
    with contextlib.suppress(OSError), full.open("wb", buffering=0) as out:
        while out.write(bytes(4096)):
            pass
    many = [MANIFEST.format(name=f"s{n}", ip=f"10.98.0.{n + 1}") for n in range(200)]
    (node.manifests / "many.yaml").write_text("---\n".join(many))
    node.says("changes can no longer be written down")
    until(lambda: len(node.services()) == 201, "they are served nevertheless")
    assert node.end() == 0
    assert "WARNING the plan could not be written down at the end" in node.text
    command = ["--state-dir", str(node.state), "check"]
    with netns(node.namespace):
        assert main(command) == 1
        assert main([*command, "--repair"]) == 1
    assert len(node.services()) == 201, "a repair would bring back what was"
    full.unlink()
    node.start()
    node.says(" loaded ")
    until(lambda: any(small_state.glob("*.msgpack")) and not any(small_state.glob("*.begun")), "it is saved again")
    assert node.end() == 0
    with netns(node.namespace):
        assert main([*command, "--repair"]) == 0
    assert len(node.services()) == 201
    with netns(node.namespace):
        assert main(["--state-dir", str(node.state), "cleanup"]) == 0


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_files_have_modes_of_their_own(node: Node, umask: int) -> None:
    """Also where nobody, or everybody, might read and write what is made."""
    node.wrapper = ("bash", "-c", f'umask {umask:o}; exec "$@"', "bash")
    node.state.mkdir(mode=0o777)
    node.state.chmod(0o777)
    node.start()
    node.says(" loaded ")
    until(lambda: any(node.state.glob("*.journal-*")), "a journal is begun")
    until(lambda: any(node.state.glob("*.msgpack")), "the plan is saved")
    with netns(node.namespace):
        locks = [lock_path(), takeover_socket_path()]
    made = {}
    for path in (*node.state.iterdir(), *locks):
        with contextlib.suppress(FileNotFoundError):  # it was renamed, or an older one's time was over
            made[path] = stat.S_IMODE(path.lstat().st_mode)
    assert len(made) >= 4
    assert {mode & ~0o100 for mode in made.values()} == {0o600}, made
    assert node.state.stat().st_mode & 0o022 == 0
    assert node.end() == 0


def test_iptables_that_hangs_does_not_keep_the_daemon_from_ending(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    real = shutil.which("iptables-legacy-restore")
    fake = folder / "iptables-legacy-restore"
    fake.write_text(f'#!/bin/sh\n[ -e {folder}/hang ] && echo $$ >> {folder}/pids && sleep 600\nexec {real} "$@"\n')
    fake.chmod(0o755)
    node.wrapper = ("env", f"PATH={folder}:{os.environ['PATH']}")
    node.start(mode="iptables")
    node.says(" loaded ")
    (folder / "hang").touch()
    node.service("b", "10.96.0.11")
    until(lambda: (folder / "pids").exists(), "a restore hangs")
    assert _ask(node, 10256) == 200, "health is answered meanwhile"
    assert node.end() == 0
    assert "Traceback" not in node.text
    for pid in (folder / "pids").read_text().split():
        until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "what hung is gone, too")  # type: ignore[misc]


ONLY = "-all,+net_admin"


def test_leaving_the_iptables_mode_without_its_rights(node: Node, tmp_path: Path) -> None:
    """The new mode serves and follows; what lacks is said, and once it is there the old chains go."""
    with netns(node.namespace):
        manifests = str(node.manifests)
        assert main(["--state-dir", str(node.state), "--mode", "iptables", "apply", "-f", manifests]) == 0
    node.wrapper = ("setpriv", f"--bounding-set={ONLY}", f"--inh-caps={ONLY}", "--no-new-privs")
    node.start()
    node.says("the legacy tools need CAP_NET_ADMIN, CAP_NET_RAW and a writable /run/xtables.lock")
    node.service("b", "10.96.0.11")
    until(lambda: "default/b" in node.services(), "changes go on")
    assert node.services("iptables") == {"default/a"}
    assert node.end() == 0
    rights = f"{ONLY},+net_raw"
    node.wrapper = ("setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", "--no-new-privs")
    node.start()
    node.says("replaced mode old=iptables new=nftables")
    assert node.services("iptables") == set()
    assert node.end() == 0


def test_another_user_s_daemon_beside_root_s_pins(node: Node) -> None:
    """The bpffs is there, and nobody but root may look into it."""
    pins = PinDirectory(f"hp-{os.getpid()}-other")
    pins.ensure()
    try:
        node.state.mkdir()
        os.chown(node.state, 65534, 65534)
        for parent in node.state.parents:
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
        who = ("--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+net_admin", "--ambient-caps=+net_admin")
        node.wrapper = ("setpriv", *who)
        node.start()
        node.says(" loaded ")
        node.service("b", "10.96.0.11")
        until(lambda: "default/b" in node.services(), "changes go on")
        assert "Traceback" not in node.text
        assert " ERROR " not in node.text
        assert node.end() == 0
        node.start("--once")
        assert node.process is not None
        assert node.process.wait(180) == 0, node.text
    finally:
        pins.remove()
