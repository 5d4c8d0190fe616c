"""What others remove between a look and the next step: files of locks, directories, pins and where they are."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctl.store import state, unfinished_loads
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.planes.ebpf.flows import stale
from dataplane.planes.ebpf.maps import pins


def before(patch: pytest.MonkeyPatch, name: str, which: Callable[[Path], bool], remove: Callable[[Path], None]) -> None:
    """Have a path removed right before a call of this method of it."""
    whole = getattr(Path, name)

    def called(path: Path, *words: Any, **more: Any) -> Any:
        if which(path):
            remove(path)
        return whole(path, *words, **more)

    patch.setattr(Path, name, called)


def test_a_lock_that_is_let_go_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "netns-c2.msgpack"
    for path in (tmp_path / "netns-c1.lock", kept):
        path.touch()
    before(monkeypatch, "lstat", lambda path: path.suffix == ".lock", os.unlink)
    assert state.of_namespaces(tmp_path) == [kept]


def test_a_state_directory_that_goes_with_its_last_lock_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    before(monkeypatch, "rmdir", lambda path: path == folder, os.rmdir)
    assert not state.forget(folder)
    assert not folder.exists()


def test_pins_whose_file_system_was_unmounted_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "find_root", lambda: tmp_path / "unmounted")
    assert pins.instance_names() == []


def test_a_link_that_its_owner_removes_is_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netns-1" / "links").mkdir(parents=True)
    (tmp_path / "netns-1" / "links" / "tc_ingress-7").touch()
    monkeypatch.setattr(pins, "find_root", lambda: tmp_path)
    monkeypatch.setattr(stale, "living_cookies", frozenset)

    def get(path: str) -> int:
        raise BpfError(errno.ENOENT, f"obj_get {path}")

    monkeypatch.setattr(bpf, "obj_get", get)
    assert stale.stale_instances() == ["netns-1"]


def test_a_namespace_that_goes_while_it_is_looked_at_has_no_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netns, "NETNS_DIR", tmp_path)
    (tmp_path / "hp-1").touch()
    whole = netns._is_namespace

    def is_namespace(path: Path) -> bool:
        path.unlink()
        return whole(path)

    monkeypatch.setattr(netns, "_is_namespace", is_namespace)
    assert netns.pids(["hp-1"]) == {}


@pytest.mark.parametrize("step", ["looked into", "read"])
def test_a_control_group_that_goes_while_processes_are_listed_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Where pods come and go, so do their groups; the processes of the others are found."""
    for number, name in enumerate(("", "a", "going", "z"), 1):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "cgroup.procs").write_text(f"{number}\n")
    going, scan = tmp_path / "going", os.scandir
    if step == "read":
        before(monkeypatch, "read_text", lambda path: path.parent == going, lambda path: shutil.rmtree(path.parent))

    def scandir(path: Any) -> Any:
        if Path(path) == going and going.exists():
            monkeypatch.setattr(os, "scandir", scan)
            shutil.rmtree(going)
        return scan(path)

    if step == "looked into":
        monkeypatch.setattr(os, "scandir", scandir)
    assert cgroup.pids(tmp_path) == [1, 2, 4]
    assert not going.exists()


def test_a_record_of_loads_that_is_removed_while_it_is_read_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished_loads.record(tmp_path, "nftables")
    before(monkeypatch, "read_text", lambda path: path.suffix == ".begun", os.unlink)
    assert unfinished_loads.unfinished_modes(tmp_path) == frozenset()
