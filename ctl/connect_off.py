"""For whom connect time is off in this network namespace, as a running node has it: what was asked for, and what the
kernel knows of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ctl import state
from ctl.ebpf import connect_group
from ctl.output import Record

COLUMNS = ("what", "why", "where", "inEffect")


class Off(NamedTuple):
    """See planes.ebpf.off_targets.Target. in_effect: the programs leave it alone."""

    what: str
    why: str
    where: str
    in_effect: bool


def switched_off(state_dir: Path) -> list[Off]:
    """Everyone for whom connect time is to be off by what was last loaded here; nobody in other modes, nor without the
    connect hook. Raises StateError, CgroupError."""
    saved = state.load(state_dir)
    options = saved.ebpf if saved else None
    if saved is None or options is None or not options.at_connect:
        return []
    asked = saved.plan().connect_off
    if not (asked or options.off_cgroups or options.off_netns):
        return []
    from dataplane.kernel.pod_groups import hierarchy_of
    from dataplane.planes.ebpf.off_targets import Wishes, find_targets
    from dataplane.planes.ebpf.pins import default_instance
    from dataplane.planes.ebpf.views import open_instance

    root = hierarchy_of(connect_group(options.cgroup))
    found = find_targets(root, Wishes(options.off_cgroups, options.off_netns), asked)
    held: set[bytes] = set()
    maps = open_instance(options.instance or default_instance())
    if maps is not None:
        with maps:
            held = {key for key, _ in maps.items("connect_off")}
    return [Off(each.what, each.why, each.where, each.key in held) for each in found.targets]


def records(state_dir: Path) -> Iterator[Record]:
    """One record each."""
    for off in switched_off(state_dir):
        yield {"what": off.what, "why": off.why, "where": off.where, "inEffect": off.in_effect}
