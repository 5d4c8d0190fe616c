"""A plane that is a file of four methods and one line in the registry: every command works with it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.planes import registry
from tests import toy_plane
from tests.apiserver.objects import service
from tests.json_views import check_output
from tests.kernel.daemon_lab import VIP, daemon_lab, http, until
from tests.kernel.test_cli_apply import ECHO, ROOT
from tests.toy_plane import NAME

FRONTENDS = {"10.96.0.10:80/tcp", "203.0.113.1:80/tcp", "*:30080/tcp"}
FLOW = "10.244.1.7 -> 10.96.0.10:80/tcp"


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plane's line, in this process, and the folder of its files, for every process."""
    folder = tmp_path / "toy"
    folder.mkdir()
    monkeypatch.setenv(toy_plane.FOLDER, str(folder))
    for name, module in toy_plane.LINE.items():
        monkeypatch.setitem(registry._TABLE, name, module)
    return folder


class Cli:
    """hotplane, with the plane's line, in a network namespace."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace, self.state, self.manifest = namespace, folder / "state", folder / "objects.yaml"
        self.manifest.write_text(ECHO)

    def __call__(self, *words: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tests.toy_plane", "--state-dir", str(self.state), "--node-name", "n1", *words]
        done = in_netns(self.namespace, subprocess.run, command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *words: str, status: int = 0) -> Any:
        return check_output(words, self(*words, "-o", "json", status=status).stdout)

    def apply(self, mode: str = NAME) -> dict[str, Any]:
        (record,) = self.json("apply", "--mode", mode, "--hooks", "tc", "-f", str(self.manifest))
        assert isinstance(record, dict)
        return record


@pytest.fixture
def cli(make_namespace: Callable[[str], str], tmp_path: Path) -> Iterator[Cli]:
    namespace = make_namespace("toy")
    subprocess.run(["ip", "-n", namespace, "address", "add", "192.0.2.10/24", "dev", "lo"], check=True)
    subprocess.run(["ip", "-n", namespace, "link", "set", "lo", "up"], check=True)
    cli = Cli(namespace, tmp_path)
    yield cli
    cli("cleanup")


def test_it_is_applied_shown_and_removed(cli: Cli, toy: Path) -> None:
    applied = cli.apply()
    assert (applied["mode"], applied["frontends"], applied["added"]) == (NAME, 3, 1)
    assert cli.apply()["added"] == 0
    assert {record["frontend"] for record in cli.json("show", "services")} == FRONTENDS
    assert {record["endpoint"] for record in cli.json("show", "endpoints")} == {"10.244.0.5:8080", "10.244.0.6:8080"}
    counters = cli.json("show", "counters")
    assert {(each["frontend"], each["connections"], each["opened"]) for each in counters} == {
        (frontend, 0, None) for frontend in FRONTENDS
    }
    for what in ("connections", "affinity", "connect-time"):
        assert cli.json("show", what) == []
    nothing = cli.json("show", "drops")
    assert (nothing["counted"], "do not count what they refuse" in nothing["why"]) == (False, True)
    assert "the toy mode's rules do not count what they refuse" in cli("show", "drops").stderr
    for command in ("monitor", "top"):
        assert "and the toy mode has none: its rules neither report" in cli(command, status=1).stderr
    assert "answers no ping" in cli("apply", "--mode", NAME, "--answer-ping", "-f", str(cli.manifest), status=2).stderr
    [explained] = cli.json("explain", "--mode", NAME, "-f", str(cli.manifest), "--flow", FLOW)
    assert (explained["verdict"], explained["service"]) == ("dnat", "default/echo:http")
    assert [*toy.iterdir()]
    cli("cleanup")
    assert [*toy.iterdir()] == []
    assert cli.json("show", "services", "--mode", NAME) == []


def test_what_differs_is_found_and_repaired(cli: Cli, toy: Path) -> None:
    cli.apply()
    assert cli.json("check") == []
    [kept] = toy.iterdir()
    kept.unlink()
    assert {each["difference"] for each in cli.json("check", status=1)} == {"is missing in the kernel"}
    assert "the toy rules hold the plan again" in cli("check", "--repair").stderr
    assert cli.json("check") == []


@pytest.mark.parametrize("other", registry.MODES)
def test_other_modes_give_way_to_it_and_it_to_them(cli: Cli, toy: Path, other: str) -> None:
    cli.apply(other)
    assert cli.apply()["replacedMode"] == other
    assert cli.json("show", "services", "--mode", other) == []
    assert cli.json("check") == []
    assert cli.apply(other)["replacedMode"] == NAME
    assert [*toy.iterdir()] == []
    assert cli.json("check") == []


def test_the_daemon_serves_it_and_changes_to_it_and_back(tmp_path: Path) -> None:
    """From nftables by adopt, then a change, drift and its repair, metrics, and back by a new mode at a restart."""
    with (
        Lab.up(LabSpec(f"toy-{os.getpid()}", nodes=1, pods=2)) as lab,
        daemon_lab(lab, tmp_path, "nftables") as cluster,
    ):
        one, two = lab.pods
        cluster.server.apply(service("echo", VIP))
        cluster.serve((one, "ready"))
        daemon = cluster.daemons[0]
        daemon.program = ("-m", "tests.toy_plane")
        daemon.run("run", "--once", "--master", cluster.server.url)
        daemon.mode = NAME
        daemon.run("adopt", "--master", cluster.server.url)
        assert cluster.holds(daemon, "default/echo")
        cluster.start("--nftables-sync-period", "1s")
        cluster.serve((one, "ready"), (two, "ready"))
        cluster.synced()
        assert b"sync_proxy_rules" in http(daemon.netns, "127.0.0.1", 10249, "/metrics")[2]
        in_netns(daemon.netns, toy_plane.file).unlink()
        until(lambda: cluster.holds(daemon, "default/echo"), "drift is repaired")
        assert daemon.stop() == 0
        daemon.mode = "nftables"
        cluster.start()
        until(lambda: "replaced mode" in daemon.text, "the toy plane gives way")
        assert not in_netns(daemon.netns, toy_plane.file).exists()
