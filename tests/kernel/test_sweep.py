"""What network namespaces that are gone left behind goes on the way; what might live stays."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctl.main import main
from ctl.store import stale
from dataplane.kernel.namespaces import netns
from dataplane.kernel.namespaces.netns_cookie import netns_cookie
from dataplane.planes.ebpf.flows import stale as pinned
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance, instance_names
from tests.kernel.daemon_lab import PATIENCE, ROOT, until

YOUNG, OLD = 100.0, 200.0
"""Seconds that what goes is old at least, here. Everywhere else what is OLD is young still, so that no other command or
daemon of this machine sweeps it."""
_MAIN = """
import sys
from ctl.main import main
from ctl.store import stale
from dataplane.planes.ebpf.flows import stale as pins
stale.YOUNG_SECONDS = float(sys.argv[1])
pins.instance_names = lambda names=sys.argv[2].split(","): names
sys.exit(main(sys.argv[3:]))
"""
MANIFEST = "kind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n"


def hotplane(*left: "Left") -> list[str]:
    """The command in a process of its own, with these instances alone."""
    return [sys.executable, "-P", "-c", _MAIN, str(YOUNG), ",".join(each.instance for each in left)]


class Left:
    """The plan and the pins of a network namespace."""

    def __init__(self, place: str, folder: Path, age: float) -> None:
        with netns.netns(place):
            self.instance, cookie = default_instance(), netns_cookie()
        self.files = [folder / f"netns-c{cookie}.{each}" for each in ("msgpack", "journal-1", "takeover", "door")]
        folder.mkdir(parents=True, exist_ok=True)
        pins = PinDirectory(self.instance)
        pins.ensure()
        assert pins.path is not None
        then = time.time() - age
        for path in self.files:
            path.write_bytes(b"")
            os.utime(path, (then, then))
        os.utime(pins.path, (then, then))

    @property
    def there(self) -> bool:
        found = {*(path.exists() for path in self.files), self.instance in instance_names()}
        assert len(found) == 1, found
        return found.pop()


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = tmp_path / "a.yaml"
    path.write_text(MANIFEST)
    return str(path)


@pytest.fixture
def places() -> Iterator[Callable[[], str]]:
    made: list[str] = []

    def make() -> str:
        made.append(f"hp-sweep-{os.getpid()}-{len(made)}")
        netns.create(made[-1])
        return made[-1]

    yield make
    for name in made:
        netns.remove(name)


def test_apply_sweeps_what_is_gone_and_nothing_else(
    namespace: str, places: Callable[[], str], tmp_path: Path, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state"
    where = [places() for _ in range(3)]
    gone, young, living = (Left(place, folder, age) for place, age in zip(where, (OLD, 0, OLD), strict=True))
    monkeypatch.setattr(stale, "YOUNG_SECONDS", YOUNG)
    monkeypatch.setattr(pinned, "instance_names", lambda: [each.instance for each in (gone, young, living)])
    netns.remove(where[0])
    netns.remove(where[1])
    try:
        with netns.netns(namespace):
            assert main(["--state-dir", str(folder), "apply", "-f", manifest]) == 0
            assert (gone.there, young.there, living.there) == (False, True, True)
            assert main(["--state-dir", str(folder), "cleanup", "--stale"]) == 0
            assert (young.there, living.there) == (False, True)
            assert main(["--state-dir", str(folder), "cleanup"]) == 0
    finally:
        for each in (gone, young, living):
            PinDirectory(each.instance).remove()


def test_who_may_not_look_at_every_process_sweeps_nothing(
    namespace: str, places: Callable[[], str], tmp_path: Path, manifest: str
) -> None:
    folder, place = tmp_path / "state", places()
    gone = Left(place, folder, OLD)
    netns.remove(place)
    try:
        for missing in ("sys_ptrace", "sys_admin"):
            rights = ("setpriv", f"--bounding-set=-{missing}", f"--inh-caps=-{missing}")
            common = [*rights, *hotplane(gone), "--state-dir", str(folder)]
            for command, status in ((["apply", "-f", manifest], 0), (["cleanup", "--stale"], 1)):
                done = netns.in_netns(
                    namespace, subprocess.run, [*common, *command], capture_output=True, text=True, cwd=ROOT
                )
                assert done.returncode == status, done.stderr
                assert ("not every process may be looked at" in done.stderr) == bool(status)
                assert gone.there
        with netns.netns(namespace):
            assert main(["--state-dir", str(folder), "cleanup"]) == 0
    finally:
        PinDirectory(gone.instance).remove()


def test_the_daemon_sweeps_at_its_start(
    namespace: str, places: Callable[[], str], tmp_path: Path, manifest: str
) -> None:
    folder, place, log = tmp_path / "state", places(), tmp_path / "log"
    gone = Left(place, folder, OLD)
    netns.remove(place)
    command = [*hotplane(gone), "--state-dir", str(folder), "run", "-f", manifest]
    try:
        with netns.netns(namespace), log.open("wb") as out:
            daemon = subprocess.Popen(command, stderr=out, cwd=ROOT)
        words = {f"kind=pins name={gone.instance}", *(f"kind=state name={path.name}" for path in gone.files)}
        until(lambda: all(each in log.read_text() for each in words), "it says so")
        assert not gone.there
        daemon.terminate()
        assert daemon.wait(PATIENCE) == 0
        with netns.netns(namespace):
            assert main(["--state-dir", str(folder), "cleanup"]) == 0
    finally:
        PinDirectory(gone.instance).remove()


def test_a_lab_takes_along_what_its_nodes_left(tmp_path: Path) -> None:
    name = f"sw{os.getpid()}"
    common = ["--state-dir", str(tmp_path / "state"), "lab"]
    up = [*common, "up", "--name", name, "--nodes", "1", "--pods", "1", "--echo-port", "0"]
    assert main(up) == 0
    try:
        first = Left(f"hp-{name}-node1", tmp_path / "state", 0)
        assert main(up) == 0
        assert not first.there
        second = Left(f"hp-{name}-node1", tmp_path / "state", 0)
        assert second.there
    finally:
        assert main([*common, "down", "--name", name]) == 0
    assert not second.there
