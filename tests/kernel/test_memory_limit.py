"""The ebpf mode where the process may use less memory than its maps take: it says so instead of being killed."""

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.memory_limit import memory_limit
from dataplane.kernel.namespaces.netns import netns
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.maps.mapset import create_maps
from dataplane.planes.ebpf.maps.need import map_bytes
from tests.faults.inject import Faults
from tests.kernel.daemon_lab import looking_plane
from tests.kernel.faulty_node import Node

SMALL, ENOUGH = 150 << 20, 2 << 30
_MOUNTS = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
_RELEASE = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))


class Group:
    """A control group whose processes may use so much memory."""

    def __init__(self) -> None:
        self.path = Path()
        for mount, name in _MOUNTS.items():
            self.path, self._file = mount / f"hotplane-test-{os.getpid()}", name
            with contextlib.suppress(OSError):
                self.path.mkdir()
                if (self.path / name).exists():
                    return
                self.path.rmdir()
        pytest.skip("no control group with a limit of memory can be made here")

    def limit(self, size: int) -> None:
        (self.path / self._file).write_text(str(size))


@pytest.fixture
def group() -> Iterator[Group]:
    made = Group()
    yield made
    made.path.rmdir()


@pytest.mark.skipif(_RELEASE < (6, 4), reason="before Linux 6.4 the kernel tells what keys and values take alone")
def test_the_estimate_is_what_the_kernel_says() -> None:
    with create_maps(Sizes()) as maps:
        total = 0
        for name, fd in maps.fds.items():
            told = re.search(r"^memlock:\s*(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.MULTILINE)
            assert told is not None
            total += int(told[1])
            assert map_bytes(maps.specs[name]) <= int(told[1]) * 1.02 + (1 << 16), name
        assert sum(map(map_bytes, maps.specs.values())) >= 0.95 * total


def test_the_smallest_limit_of_all_groups_counts(tmp_path: Path) -> None:
    for where, name, value in (
        ("one/a/b", "memory.limit_in_bytes", "9223372036854771712"),
        ("one/a", "memory.limit_in_bytes", "300"),
        ("two/c", "memory.max", "max"),
        ("two", "memory.max", "200"),
    ):
        (tmp_path / where).mkdir(parents=True, exist_ok=True)
        (tmp_path / where / name).write_text(f"{value}\n")
    (tmp_path / "mounts").write_text(
        f"cgroup {tmp_path}/one cgroup rw,memory 0 0\ncgroup2 {tmp_path}/two cgroup2 rw 0 0\n"
    )
    for groups, limit in (("4:memory:/a/b\n", 300), ("4:memory:/a/b\n0::/c\n", 200), ("3:cpu:/a/b\n", None)):
        (tmp_path / "cgroup").write_text(groups)
        assert memory_limit(tmp_path) == limit


def test_too_little_memory_is_said_and_more_is_used(namespace: str, tmp_path: Path, group: Group) -> None:
    group.limit(SMALL)
    with Faults(tmp_path) as faults:
        node = Node(namespace, tmp_path, faults)
        node.wrapper = ("sh", "-c", f'echo $$ > {group.path}/cgroup.procs; exec "$@"', "-")
        node.service("a", "10.96.0.10")
        try:
            node.start("--cgroup", "none", mode="ebpf")
            node.says("WARNING the maps take")
            node.says("ERROR the plan cannot be loaded")
            node.says("and the control group of this process lets it use 150 MiB, of which")
            node.says("resources.limits.memory")
            group.limit(ENOUGH)
            node.says("INFO loaded mode=ebpf")
            assert node.services() == {"default/a"}
            assert node.end() == 0
        finally:
            node.kill()
            with netns(namespace):
                looking_plane("ebpf").cleanup()
