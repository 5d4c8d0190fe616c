"""For whom connect time is off: control groups as the kubelet names them, and what the command line may say."""

import select
import shutil
import threading
from pathlib import Path

import pytest

from ctl.parser import parse
from ctl.plane_options import plane_options
from dataplane.errors import UsageError
from dataplane.kernel.inotify import Inotify
from dataplane.kernel.namespaces.pod_groups import hierarchy_of, normal_uid, pod_groups
from dataplane.plan.types import OffPod
from dataplane.planes.ebpf.connect_time.off_targets import OffSelection, find_targets, group_path
from dataplane.planes.ebpf.maps.layout import unpack

UID = "0f6c1d3e-1111-4222-8333-aaaaaaaaaaaa"
BELOW = UID.replace("-", "_")


def group(root: Path, path: str) -> Path:
    made = root
    for part in Path(path).parts:
        made = made / part
        made.mkdir(exist_ok=True)
        (made / "cgroup.procs").write_text("")
        (made / "cgroup.type").write_text("domain\n")
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What looks like the root of a hierarchy."""
    (tmp_path / "cgroup.procs").write_text("")
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        f"kubepods/pod{UID}",
        f"kubepods/burstable/pod{UID}",
        f"kubepods.slice/kubepods-pod{BELOW}.slice",
        f"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{BELOW}.slice",
        f"kubelet/kubepods/besteffort/pod{UID}",
        f"kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{BELOW}.slice",
    ],
)
def test_a_pods_group(root: Path, path: str) -> None:
    made = group(root, f"{path}/cri-containerd-1.scope").parent
    group(root, "system.slice/podman.service")
    found = pod_groups(root)
    assert found.groups == {UID: made}
    assert made.parent in found.directories
    assert hierarchy_of(made) == root
    pod = OffPod("shop", "web", UID, (), False, "label of Namespace shop")
    [target] = find_targets(root, OffSelection(), {("shop", "web"): pod}).targets
    assert target.level == len(Path(path).parts)
    assert unpack("off_key", target.key or b"") == {"id": made.stat().st_ino, "kind": 1, "pad": 0}
    assert target[:3] == ("Pod shop/web", "label of Namespace shop", f"control group /{path}")


def test_groups_that_go_while_they_are_looked_at(root: Path) -> None:
    """As those of others do all the time."""
    made = group(root, f"kubepods/burstable/pod{UID}")
    end = threading.Event()

    def churn() -> None:
        while not end.is_set():
            group(root, "a/b/c")
            shutil.rmtree(root / "a")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        assert all(pod_groups(root).groups == {UID: made} for _ in range(2000))
    finally:
        end.set()
        thread.join()


def test_a_static_pod_has_the_hash_of_its_manifest(root: Path) -> None:
    made = group(root, "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2f1a.slice")
    assert pod_groups(root).groups == {normal_uid("2F1A"): made}


def test_what_is_missing_is_told_and_watched_for(root: Path) -> None:
    group(root, "kubepods/burstable")
    pod = OffPod("shop", "web", UID, (), True, "label of the Pod")
    found = find_targets(root, OffSelection(("/machine/vm1",)), {("shop", "web"): pod})
    assert [target.where for target in found.missing] == [
        "control group /machine/vm1 is not there", f"no control group of cgroup v2 for uid {UID}",
    ]  # fmt: skip
    assert found.directories == {root, root / "kubepods", root / "kubepods" / "burstable"}
    assert (found.levels, found.keys) == (0, set())


def test_a_container_sees_no_depth(tmp_path: Path) -> None:
    """Its own group looks like the root, and programs count from the machine's."""
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "cgroup.type").write_text("domain\n")
    group(tmp_path, "a")
    [target] = find_targets(tmp_path, OffSelection(("/a",)), {}).missing
    assert target.where.endswith("or that is not the root of all control groups; mount that one")


def test_levels_and_keys(root: Path) -> None:
    deep = "/".join("abcdefghijklmnopqrstuvwxyzabcdefghi")
    group(root, deep)
    found = find_targets(root, OffSelection((f"/{deep[:1]}", f"/{deep[:5]}", f"/{deep}"), ("7",)), {})
    assert found.levels == 1 | 1 << 1 | 1 << 3
    assert len(found.keys) == 3
    assert found.missing[0].where.endswith("is 35 levels deep; at most 31 are looked at")


def test_hearing_of_directories(tmp_path: Path) -> None:
    with Inotify() as heard:
        heard.watch([tmp_path, tmp_path / "none"])
        (tmp_path / "a").mkdir()
        heard.drain()
        heard.watch([tmp_path / "a"])
        (tmp_path / "b").mkdir()
        assert _ready(heard), "a watch that went tells so"
        heard.drain()
        (tmp_path / "c").mkdir()
        assert not _ready(heard)
        (tmp_path / "a" / "x").mkdir()
        assert _ready(heard)


def _ready(heard: Inotify) -> bool:
    return bool(select.select([heard], [], [], 0.05)[0])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--connect-time-off-cgroup", "kubepods"),
        ("--connect-time-off-cgroup", "/"),
        ("--connect-time-off-cgroup", "/a/../b"),
        ("--connect-time-off-cgroup", "/usr"),
        ("--connect-time-off-netns", "0"),
        ("--connect-time-off-netns", "18446744073709551616"),
        ("--connect-time-off-netns", "a/b"),
        ("--connect-time-off-netns", ""),
    ],
)
def test_wrong_values_are_told(option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^{option} {value}: "):
        plane_options(parse([option, value, "doctor"]))


def test_right_values() -> None:
    words = ["--connect-time-off-cgroup", "/x/y", "--connect-time-off-netns", "7", "--connect-time-off-netns", "vm-1"]
    options = plane_options(parse([*words, "check", "--connect-time-off-netns", "/run/netns/z"]))
    assert (options.off_cgroups, options.off_netns) == (("/x/y",), ("7", "vm-1", "/run/netns/z"))


@pytest.mark.parametrize(
    ("root", "text", "path"),
    [
        ("/sys/fs/cgroup", "/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a/b"),
        ("/sys/fs/cgroup", "/a/b", "/sys/fs/cgroup/a/b"),
        ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified/a", "/sys/fs/cgroup/unified/a"),
        ("/host/cgroup", "/sys/fs/cgroup/a", "/host/cgroup/a"),
        ("/host/cgroup", "/host/cgroup/a", "/host/cgroup/a"),
        ("/proc/7/root/sys/fs/cgroup", "/sys/fs/cgroup/a", "/proc/7/root/sys/fs/cgroup/a"),
        ("/proc/7/root/sys/fs/cgroup", "/a", "/proc/7/root/sys/fs/cgroup/a"),
    ],
)
def test_what_a_path_names(root: str, text: str, path: str) -> None:
    assert group_path(Path(root), text) == Path(path)
