"""Targets for which connect-time load balancing is off, as cgroup ids and network namespace cookies.

A Pod is identified by its control group, which exists before its first process and contains all later ones. If the
kubelet uses cgroup v1, or no group is found, the Pod is identified by the network namespace that has its address.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dataplane.kernel.namespaces.cgroup import is_hierarchy_root
from dataplane.kernel.namespaces.netns import NETNS_DIR, netns
from dataplane.kernel.namespaces.netns_cookie import netns_cookie
from dataplane.kernel.namespaces.pod_groups import PodGroups, normal_uid, pod_groups
from dataplane.kernel.namespaces.pod_netns import cookies_by_address
from dataplane.plan.types import OffPod
from dataplane.planes.ebpf.maps.layout import constant, record

_KEY = record("off_key", "id", "kind", "pad")
_NETNS, _CGROUP = constant("OFF_NETNS"), constant("OFF_CGROUP")
_LEVELS = constant("OFF_LEVELS")

_MOUNTS = (
    "/sys/fs/cgroup/unified",
    "/sys/fs/cgroup",
)  # usual mount points, as users write them
CGROUP_OPTION, NETNS_OPTION = "--connect-time-off-cgroup", "--connect-time-off-netns"


class OffSelection(NamedTuple):
    """Targets that the command line names. cgroups: directories, or paths as /proc/PID/cgroup has them. netns: cookies,
    names in /run/netns, or paths of namespace files."""

    cgroups: tuple[str, ...] = ()
    netns: tuple[str, ...] = ()


class Target(NamedTuple):
    """One requested target. what: its name for messages. why: who requested it. where: the kernel object that it is, or
    why there is none. key: its key in the map `connect_off`, None = no such object (yet). level: depth of a control
    group, 0 for a network namespace."""

    what: str
    why: str
    where: str
    key: bytes | None = None
    level: int = 0


class Found(NamedTuple):
    """Result of find_targets. targets: all requested ones. directories: to watch for missing control groups."""

    targets: tuple[Target, ...]
    directories: frozenset[Path]

    @property
    def levels(self) -> int:
        """Value of node.connect_off (bpf/structs.h): bit n = some target is a control group of depth n."""
        return sum(1 << level for level in {target.level for target in self.targets if target.key is not None})

    @property
    def keys(self) -> set[bytes]:
        """Keys for the map `connect_off`."""
        return {target.key for target in self.targets if target.key is not None}

    @property
    def missing(self) -> tuple[Target, ...]:
        """Targets for which no kernel object exists."""
        return tuple(target for target in self.targets if target.key is None)


def find_targets(root: Path, selection: OffSelection, pods: Mapping[tuple[str, str], OffPod]) -> Found:
    """Resolve all requested targets. root: mount point of the cgroup v2 hierarchy."""
    whole = is_hierarchy_root(root)
    directories: set[Path] = set()
    targets = [_option_group(root, path, whole, directories) for path in selection.cgroups]
    targets += [_option_netns(text) for text in selection.netns]
    groups = pod_groups(root) if pods and whole else PodGroups({}, ())
    directories.update(groups.directories)
    left = []
    for pod in pods.values():
        group = groups.groups.get(normal_uid(pod.uid)) if pod.uid else None
        found = _group(group, root, _name(pod), pod.why) if group is not None else None
        if found is None or found.key is None:
            left.append(pod)
        else:
            targets.append(found)
    return Found((*targets, *_by_address(left, whole)), frozenset(directories))


def _name(pod: OffPod) -> str:
    return f"Pod {pod.namespace}/{pod.name}"


def _group(group: Path, root: Path, what: str, why: str) -> Target:
    """Resolve a control group to its id, which is its inode number (kernfs, Linux 5.5)."""
    level = len(group.relative_to(root).parts)
    where = f"control group /{group.relative_to(root)}"
    if level >= _LEVELS:
        return Target(what, why, f"{where} is {level} levels deep; at most {_LEVELS - 1} are looked at")
    try:
        return Target(what, why, where, _KEY.pack(group.stat().st_ino, _CGROUP, 0), level)
    except FileNotFoundError:
        return Target(what, why, f"{where} is not there")


def group_path(root: Path, text: str) -> Path:
    """Return the directory that a path names: below the mounted root, or as in /proc/PID/cgroup. It need not exist."""
    outside = root.parts[1:2] == ("proc",) and root.parts[3:4] == ("root",)  # another process's view of the files
    path = Path(*root.parts[:4] if outside else "/") / text.lstrip("/")
    if path.is_relative_to(root):
        return path
    mount = next((mount for mount in _MOUNTS if text.startswith(f"{mount}/")), "")
    return root / text.removeprefix(mount).lstrip("/")


def _option_group(root: Path, text: str, whole: bool, directories: set[Path]) -> Target:
    path, what, why = group_path(root, text), f"{CGROUP_OPTION} {text}", "command line"
    if not whole or not path.is_relative_to(root):
        return Target(what, why, f"is not below {root}, or that is not the root of all control groups; mount that one")
    above = path.parent
    while not above.is_dir():
        above = above.parent
    directories.add(above)
    return _group(path, root, what, why)


def _option_netns(text: str) -> Target:
    what, why = f"{NETNS_OPTION} {text}", "command line"
    if text.isdecimal():
        return Target(what, why, f"network namespace {text}", _KEY.pack(int(text), _NETNS, 0))
    path = text if text.startswith("/") else str(NETNS_DIR / text)
    try:
        with netns(path):
            cookie = netns_cookie()
    except OSError as error:
        return Target(what, why, f"{path} cannot be entered: {error.strerror}")
    return Target(what, why, f"network namespace {cookie}", _KEY.pack(cookie, _NETNS, 0))


def _by_address(pods: list[OffPod], whole: bool) -> Iterable[Target]:
    """Resolve Pods without a known control group by the network namespace that has their address."""
    wanted = {address for pod in pods if not pod.host_network for address in pod.addresses}
    cookies = cookies_by_address(wanted) if wanted else {}
    for pod in pods:
        cookie = next((cookies[address] for address in pod.addresses if address in cookies), None)
        if cookie is not None and not pod.host_network:
            where = f"network namespace {cookie}"
            yield Target(_name(pod), pod.why, where, _KEY.pack(cookie, _NETNS, 0))
            continue
        seen = "" if whole else " (the root of all control groups is not mounted here)"
        where = f"no control group of cgroup v2 for uid {pod.uid or '(none)'}{seen}"
        if not pod.host_network:
            where += ", nor a network namespace with its address"
        yield Target(_name(pod), pod.why, where)
