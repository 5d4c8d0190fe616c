"""One process a network namespace changes its rules: daemons, commands beside them, and who gives way to whom."""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctl.main import main
from ctl.store.lock import TAKEN_OVER_STATUS, LockError, hold, lock_path
from dataplane.kernel.namespaces.netns import in_netns, netns
from tests.kernel.daemon_lab import PATIENCE, ROOT, looking_plane, until

NOBODY_ANSWERS = ("--master", "http://192.0.2.1:1")
MANIFEST = "kind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"


class Daemons:
    """`hotplane run` in one network namespace, each with a state directory of its own."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace, self.folder = namespace, folder
        self.running: list[subprocess.Popen[bytes]] = []

    def command(self, name: str, *arguments: str) -> list[str]:
        options = ["--state-dir", str(self.folder / name), "--node-name", "n1"]
        return [sys.executable, "-P", "-m", "ctl.main", *options, *arguments]

    def start(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with netns(self.namespace), self.log(name).open("wb") as out:
            process = subprocess.Popen(self.command(name, *arguments), stderr=out, cwd=ROOT)
        self.running.append(process)
        return process

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def run(self, name: str, *arguments: str) -> tuple[int, str]:
        done = in_netns(
            self.namespace, subprocess.run, self.command(name, *arguments), capture_output=True, text=True, cwd=ROOT,
            timeout=240,
        )  # fmt: skip
        return done.returncode, done.stderr

    def manifests(self, name: str, ip: str) -> str:
        folder = self.folder / f"{name}-manifests"
        folder.mkdir(exist_ok=True)
        (folder / "a.yaml").write_text(MANIFEST.format(name=name, ip=ip))
        return str(folder)

    def services(self, mode: str) -> set[str]:
        with netns(self.namespace):
            return {row.service for row in looking_plane(mode).read_back().values()}


@pytest.fixture
def daemons(namespace: str, tmp_path: Path) -> Iterator[Daemons]:
    found = Daemons(namespace, tmp_path)
    try:
        yield found
    finally:
        for process in found.running:
            process.kill()
            process.wait()
        with netns(namespace):
            assert main(["--state-dir", str(tmp_path / "state"), "cleanup"]) == 0


def test_two_daemons_before_an_api_server_answers(daemons: Daemons) -> None:
    """With different state directories; and a daemon that is killed locks nobody out."""
    first = daemons.start("one", "run", *NOBODY_ANSWERS)
    until(lambda: "watching" in daemons.log("one").read_text(), "the first waits for its API server")
    status, text = daemons.run("two", "--mode", "iptables", "run", *NOBODY_ANSWERS)
    assert status == 1
    shown = (
        rf"hotplane run \(pid {first.pid}, nftables mode, since 20..-..-.. ..:..:.. UTC\) has this network namespace"
    )
    assert re.search(shown, text), text
    assert "--takeover" in text
    assert first.poll() is None
    first.kill()
    first.wait()
    third = daemons.start("two", "run", *NOBODY_ANSWERS)
    until(lambda: "watching" in daemons.log("two").read_text(), "the next one waits for its API server")
    third.terminate()
    assert third.wait(PATIENCE) == 0
    with netns(daemons.namespace):
        assert not lock_path().exists()


def test_a_reload_asked_for_at_the_start_ends_nothing(daemons: Daemons) -> None:
    """By default the signal ends a process. The configuration may have been read before."""
    with netns(daemons.namespace):
        held = hold("apply")
    daemon = daemons.start("one", "run", "-f", daemons.manifests("a", "10.96.0.10"))
    log = daemons.log("one")
    until(lambda: "waiting for hotplane apply" in log.read_text(), "it waits for the command")
    daemon.send_signal(signal.SIGHUP)
    held.release()
    until(lambda: " loaded " in log.read_text() or daemon.poll() is not None, "it loads")
    assert daemon.poll() is None
    until(lambda: "configuration reloaded" in log.read_text(), "it reads its configuration again")


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_commands_beside_a_daemon_stop_or_take_over(daemons: Daemons, mode: str) -> None:
    daemon = daemons.start("one", "--mode", "iptables", "run", "-f", daemons.manifests("old", "10.96.0.10"))
    until(lambda: " loaded " in daemons.log("one").read_text(), "it loads")
    fresh = daemons.manifests("new", "10.96.0.11")
    for command in (["apply", "-f", fresh], ["cleanup"], ["check", "--repair"], ["run", "--cleanup"]):
        status, text = daemons.run("one", "--mode", mode, *command)
        assert (status, f"hotplane run (pid {daemon.pid}, iptables mode, since" in text) == (1, True), text
    assert daemons.services("iptables") == {"default/old"}
    assert daemons.services("nftables") == set()
    status, text = daemons.run("one", "--mode", mode, "apply", "-f", fresh, "--takeover")
    assert status == 0, text
    assert daemon.wait(PATIENCE) == TAKEN_OVER_STATUS
    assert 'gives way, as it was asked to to="hotplane apply' in daemons.log("one").read_text()
    assert daemons.services(mode) == {"default/new"}
    assert daemons.services("nftables" if mode == "iptables" else "iptables") == set()


def test_a_daemon_takes_over_from_a_daemon(daemons: Daemons) -> None:
    first = daemons.start("one", "run", "-f", daemons.manifests("old", "10.96.0.10"))
    until(lambda: " loaded " in daemons.log("one").read_text(), "it loads")
    status, text = daemons.run("two", "run", "--takeover", "--kubeconfig", "/none")
    assert (status, "/none" in text, first.poll()) == (1, True, None), "one that cannot start ends nobody"
    daemons.start("two", "run", "--takeover", "-f", daemons.manifests("new", "10.96.0.11"))
    assert first.wait(PATIENCE) == TAKEN_OVER_STATUS
    until(lambda: " loaded " in daemons.log("two").read_text(), "the second loads")
    assert daemons.services("nftables") == {"default/new"}


def touch(path: Path) -> None:
    """Make a file where the locks are, a directory that others remove when it is empty."""
    while not path.exists():
        path.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.touch()


EARLIER = (
    "import sys; from ctl.store import lock; lock.TAKEOVER_SUFFIX = '.door'; import ctl.main as m; sys.exit(m.main())"
)


def test_a_daemon_of_an_earlier_version_gives_way_and_leaves_no_socket(daemons: Daemons) -> None:
    """It listens under the socket's earlier name; one that was killed leaves it to the next."""

    def earlier(name: str) -> "subprocess.Popen[bytes]":
        words = daemons.command(name, "run", "-f", daemons.manifests("old", "10.96.0.10"))
        with netns(daemons.namespace), daemons.log(name).open("wb") as out:
            process = subprocess.Popen([words[0], "-P", "-c", EARLIER, *words[4:]], stderr=out, cwd=ROOT)
        daemons.running.append(process)
        until(lambda: " loaded " in daemons.log(name).read_text(), "it loads")
        return process

    killed = earlier("one")
    with netns(daemons.namespace):
        socket_of_it = lock_path().with_suffix(".door")
    assert socket_of_it.is_socket()
    killed.kill()
    killed.wait()
    assert socket_of_it.is_socket()
    first = earlier("two")
    status, text = daemons.run("three", "apply", "-f", daemons.manifests("new", "10.96.0.11"), "--takeover")
    assert (status, first.wait(PATIENCE)) == (0, TAKEN_OVER_STATUS), text
    assert daemons.services("nftables") == {"default/new"}
    assert not list(socket_of_it.parent.glob(f"{socket_of_it.stem}.*"))
    touch(socket_of_it)
    status, text = daemons.run("three", "cleanup")
    assert (status, socket_of_it.exists()) == (0, False), text


def test_a_command_is_waited_for(daemons: Daemons) -> None:
    with netns(daemons.namespace), held_by_another("apply"):
        with pytest.raises(LockError, match=r"hotplane apply \(pid \d+, ebpf mode, since .* after 0 s; end it first"):
            hold("cleanup", seconds=0.3)
        waiting = subprocess.Popen(daemons.command("one", "cleanup"), stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith("hotplane: waiting for hotplane apply (pid ")
        assert waiting.poll() is None
    assert waiting.wait(PATIENCE) == 0
    waiting.stderr.close()


@contextlib.contextmanager
def held_by_another(command: str) -> Iterator[int]:
    """A child process holds the lock meanwhile; its pid."""
    ready, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        hold(command, "ebpf")
        os.write(write_end, b"+")
        signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(write_end)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_nobody_else_s_process_can_take_it(namespace: str, make_namespace: Callable[[str], str]) -> None:
    """Not even with the lock file there, which anybody could lock who can open it."""
    before = os.umask(0)
    try:
        with netns(namespace), hold("apply"):
            path = lock_path()
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o022 == 0
            script = f"open({str(path)!r}, 'rb')"
            done = subprocess.run(
                ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", script],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert "PermissionError" in done.stderr
            with netns(make_namespace("other")), hold("apply"):
                pass  # another network namespace's is another lock
    finally:
        os.umask(before)


def test_a_file_that_somebody_else_made_is_no_lock(namespace: str) -> None:
    """In a directory that anybody could write to before it was this one's."""
    with netns(namespace):
        path = lock_path()
        with hold("apply"):
            pass
        touch(path)
        os.chown(path, 65534, 65534)
        try:
            with pytest.raises(LockError, match="belongs to user 65534"):
                hold("apply").release()
        finally:
            path.unlink()


def test_a_file_that_its_last_holder_removed_is_no_lock(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opened before, and locked after: the next process makes another one."""
    whole, removed = fcntl.lockf, list[Path]()

    def lockf(descriptor: int, *rest: int) -> None:
        if not removed:
            removed.append(path)
            path.unlink()
        whole(descriptor, *rest)

    with netns(namespace):
        path = lock_path()
        monkeypatch.setattr(fcntl, "lockf", lockf)
        with hold("apply"):
            assert removed
            assert path.exists()


def test_many_at_once_are_one_after_the_other(namespace: str, tmp_path: Path) -> None:
    """Also where each removes the file that the next one has opened already."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    children = []
    with netns(namespace):
        for _ in range(4):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    for _ in range(25):
                        with hold("apply", warn=lambda _: None):
                            value = int(counter.read_text())
                            time.sleep(0.001)
                            counter.write_text(str(value + 1))
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert counter.read_text() == "100"
