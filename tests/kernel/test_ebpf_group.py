"""Whose connections the connect-time programs see where nobody named a control group."""

from pathlib import Path

import pytest

from dataplane.kernel.namespaces import cgroup, netns
from dataplane.kernel.namespaces.cgroup import CgroupError
from dataplane.planes.ebpf.attach.probe_hooks import probe_hooks
from dataplane.planes.ebpf.make import connect_group, make_ebpf_plane
from dataplane.planes.finding import Status
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions

ONLY_CONNECT = PlaneOptions(hooks=("connect",))


def test_a_namespace_of_its_own_leaves_the_machines_processes_alone(namespace: str) -> None:
    told: list[str] = []
    root = cgroup.ensure_root()
    with netns.netns(namespace):
        assert not netns.is_first()
        plane = make_ebpf_plane(Making(ONLY_CONNECT, warn=told.append))
        finding = next(iter(probe_hooks(ONLY_CONNECT)))
    assert cgroup.is_hierarchy_root(root)
    assert plane.hooks == ()
    assert plane.cleaner is None
    [sentence] = told
    assert sentence.startswith("the connect hook is off: this network namespace is not the machine's own")
    assert finding.status is Status.MISSING
    assert "--cgroup" in finding.detail


def test_a_named_group_is_taken_anywhere(namespace: str) -> None:
    root = cgroup.ensure_root()
    with netns.netns(namespace):
        assert connect_group(str(root)) == root
        assert make_ebpf_plane(Making(PlaneOptions(("connect",), str(root)))).hooks[0].name == "connect"


def test_the_machines_own_namespace_has_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    root = cgroup.ensure_root()
    monkeypatch.setattr(netns, "is_first", lambda: True)
    assert connect_group("") == root
    monkeypatch.setattr(netns, "is_first", lambda: False)
    with pytest.raises(CgroupError):
        connect_group("")


def test_a_containers_root_is_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a control group namespace the mount's root has a type, as every group but the machine's root."""
    for name in ("cgroup.procs", "cgroup.type"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(cgroup, "mount_points", lambda: [tmp_path])
    monkeypatch.setattr(netns, "is_first", lambda: False)
    assert connect_group("") == tmp_path
