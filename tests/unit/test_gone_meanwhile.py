"""What others remove between a look and the next step: files of locks, directories, pins and where they are."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctl.store import state
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError
from dataplane.kernel.namespaces import netns
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
