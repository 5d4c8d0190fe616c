"""Finds the control groups of a node's pods, as the kubelet creates them with either of its drivers.

cgroupfs: kubepods/burstable/pod<uid>; systemd: kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with
underscores>.slice; without a class in between for guaranteed pods, and below whatever --cgroup-root names (nodes of
kind: kubelet.slice/kubelet-kubepods.slice/...). Source: kubelet, pkg/kubelet/cm.
"""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_POD = re.compile(r"(?:.*-)?pod([0-9a-f][0-9a-f_-]*)(?:\.slice)?")
_TOP = re.compile(r"kubepods|(?:.*-)?kubepods\.slice")
_DEPTH = 3
"""Depth below the root of the hierarchy to which the kubelet's groups are searched for."""


class PodGroups(NamedTuple):
    """Control groups of pods. groups: by uid. directories: where groups of further pods would be created."""

    groups: dict[str, Path]
    directories: tuple[Path, ...]


def normal_uid(uid: str) -> str:
    """A uid as `PodGroups` has it: with dashes, in lower case."""
    return uid.lower().replace("_", "-")


def pod_groups(root: Path) -> PodGroups:
    """Everything that there is now below the root of a cgroup v2 hierarchy."""
    groups: dict[str, Path] = {}
    directories: list[Path] = []
    for top in _tops(root):
        directories.append(top)
        for child in _children(top):
            if match := _POD.fullmatch(child.name):
                groups[normal_uid(match[1])] = child
                continue
            directories.append(child)
            for each in _children(child):
                if match := _POD.fullmatch(each.name):
                    groups[normal_uid(match[1])] = each
    return PodGroups(groups, tuple(directories))


def _tops(root: Path) -> Iterator[Path]:
    """The groups that hold all pods of a kubelet."""
    level = [root]
    for _ in range(_DEPTH):
        below = [child for directory in level for child in _children(directory)]
        yield from (child for child in below if _TOP.fullmatch(child.name))
        level = [child for child in below if not _TOP.fullmatch(child.name)]


def _children(directory: Path) -> list[Path]:
    """Groups right below one; none where it went meanwhile, as groups of others do all the time."""
    try:
        with os.scandir(directory) as entries:
            return [directory / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV):
            raise
        return []


def hierarchy_of(group: Path) -> Path:
    """The root of what is mounted of the hierarchy that a group is in. Links are not followed: the way may lead through
    another process's root directory."""
    group = group.absolute()
    while (group.parent / "cgroup.procs").exists():
        group = group.parent
    return group
