"""Streams that are closed or full, folders that cannot be written: one sentence each, never a traceback."""

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ctl.daemon.sync.child import Child, ChildError
from ctl.main import main
from ctl.store import state
from ctl.store.state import Saved
from dataplane.errors import HotplaneError
from dataplane.plan.types import Plan
from dataplane.policy.node import NodeConfig

MANIFEST = "kind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n"
FLOW = ("--flow", "1.1.1.1 -> 10.96.0.10:80/tcp", "--node-ip", "192.0.2.1")


def _run(tmp_path: Path, ending: str) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "a.yaml").write_text(MANIFEST)
    command = [sys.executable, "-P", "-m", "ctl.main", "explain", "-f", str(tmp_path / "a.yaml"), *FLOW]
    shell = ["bash", "-c", f'exec "$@" {ending}', "bash", *command]
    return subprocess.run(shell, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


def test_a_full_disk_behind_stdout(tmp_path: Path) -> None:
    done = _run(tmp_path, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr == "hotplane: standard output: No space left on device\n"


def test_a_closed_stdout(tmp_path: Path) -> None:
    done = _run(tmp_path, ">&-")
    assert done.returncode == 0
    assert done.stderr == "hotplane: standard output is closed; what would be printed is lost\n"


@pytest.mark.parametrize("ending", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path: Path, ending: str) -> None:
    assert _run(tmp_path, ending).returncode == 0


def test_a_refusal_of_the_operating_system_that_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> int:
        raise PermissionError(1, "Operation not permitted", "/proc/kcore")

    monkeypatch.setattr("ctl.commands.doctor.run", refuse)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err.startswith("hotplane: /proc/kcore: Operation not permitted")


def test_a_message_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: object) -> int:
        raise HotplaneError("bad name \x1b[31m\nhotplane: all is well")

    monkeypatch.setattr("ctl.commands.doctor.run", refuse)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == "hotplane: bad name \\x1b[31m\n    hotplane: all is well\n"


def test_a_child_s_refusal_is_a_sentence_of_its_parent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "state"

    def save() -> bytes:
        state.save(folder, Saved.of("nftables", Plan(NodeConfig(name="n1"))))
        return b""

    with pytest.raises(ChildError, match=r"netns-.*: cannot be written \(Not a directory\)"):
        asyncio.run(Child(save).answer(60))
    assert capfd.readouterr().err == ""


def test_what_the_system_refuses_a_child_is_a_sentence_of_its_parent(capfd: pytest.CaptureFixture[str]) -> None:
    def look() -> bytes:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    with pytest.raises(ChildError, match="No buffer space available"):
        asyncio.run(Child(look).answer(60))
    assert capfd.readouterr().err == ""


def test_an_interrupted_child_still_tells(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildError, match="status"):
        asyncio.run(Child(lambda: os.fsencode(str(1 / 0))).answer(60))
    assert "ZeroDivisionError" in capfd.readouterr().err
