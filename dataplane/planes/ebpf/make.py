"""The ebpf plane that people's options ask for, and the control group that they mean."""

from collections.abc import Collection, Mapping
from pathlib import Path

from dataplane.kernel.namespaces import cgroup as groups
from dataplane.kernel.namespaces import netns
from dataplane.kernel.namespaces.cgroup import CgroupError
from dataplane.kernel.namespaces.outside import outer_process, visible
from dataplane.kernel.namespaces.pod_groups import hierarchy_of
from dataplane.plan.types import OffPod
from dataplane.planes.answers import OffTarget
from dataplane.planes.ebpf.attach.devices import DeviceSelection
from dataplane.planes.ebpf.attach.optional import OptionalHook
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.programs import ConnectHook, Hook
from dataplane.planes.ebpf.connect_time.off import ConnectOff
from dataplane.planes.ebpf.connect_time.off_targets import OffSelection, find_targets
from dataplane.planes.ebpf.flows.sockets import SocketCleaner
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.maps.pins import default_instance
from dataplane.planes.ebpf.mode import SLOW
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.views.records import open_instance
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from dataplane.policy.node import LocalDetector


def connect_group(cgroup: str) -> Path:
    """The control group that gets connect-time balancing. Raises CgroupError when the hierarchy is nowhere mounted, or
    when nobody named a group and the hierarchy's root would be the wrong one: it holds all the machine's processes, and
    a node in a network namespace of its own has no business with those of the machine.

    Tools that enter network namespaces hide /sys with a mount namespace of their own; it is then found through the
    process that they were started from.
    """
    if cgroup:
        return visible(cgroup)
    root = _hierarchy()
    if groups.is_hierarchy_root(root) and not netns.is_first():
        raise CgroupError(
            "this network namespace is not the machine's own, and the root of the control groups holds all of its "
            "processes; name this node's control group with --cgroup"
        )
    return root


def _hierarchy() -> Path:
    """What is mounted of the cgroup v2 hierarchy. Raises CgroupError."""
    here = groups.mount_points()
    if here:
        return here[0]
    outer = outer_process()
    if outer:
        for line in Path(f"/proc/{outer}/mounts").read_text().splitlines():
            fields = line.split(" ")
            if fields[2] == "cgroup2":
                return Path(f"/proc/{outer}/root") / fields[1].lstrip("/")
    raise CgroupError("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified, or --cgroup none")


def make_ebpf_plane(making: Making, *, sizes: Sizes | None = None) -> EbpfPlane:
    """The plane for this thread's network namespace, with every hook that was asked for and that works here. sizes: of
    the maps."""
    options, tell, watch = making.options, making.warn, making.watch
    hooks: list[Hook] = []
    cleaner = off = None
    if options.at_connect:
        try:
            group = connect_group(options.cgroup)
        except CgroupError as error:
            tell(f"the connect hook is off: {error}")
        else:
            hooks.append(OptionalHook(ConnectHook(group), warn=tell))
            cleaner = SocketCleaner(group)
            asked = OffSelection(options.off_cgroups, options.off_netns)
            off = ConnectOff(hierarchy_of(group), asked, warn=tell, watch=watch)
    selection = DeviceSelection(options.uplinks, options.pods, making.detector or LocalDetector())
    if "xdp" in options.hooks:  # counts on tc, which it leaves what it does not do itself
        choices = (PacketHook(selection), PacketHook(selection, xdp=False))
        hooks.append(OptionalHook(*choices, warn=tell, watch=watch))
    elif "tc" in options.hooks:
        hooks.append(OptionalHook(PacketHook(selection, xdp=False), warn=tell, watch=watch))
    return EbpfPlane(
        mode_of(SLOW).make(Making(warn=tell)),
        hooks,
        sizes,
        options.instance,
        options.kube_proxy_masquerade,
        cleaner,
        tell if watch else None,
        off,
        loopback_at_connect=options.at_connect,
    )


def look_for_off(options: PlaneOptions, pods: Mapping[tuple[str, str], OffPod]) -> Collection[OffTarget]:
    """For whom connect time is to be off, and what the maps of this network namespace have of them. Raises CgroupError,
    PlaneError."""
    root = hierarchy_of(connect_group(options.cgroup))
    found = find_targets(root, OffSelection(options.off_cgroups, options.off_netns), pods)
    held: set[bytes] = set()
    maps = open_instance(options.instance or default_instance())
    if maps is not None:
        with maps:
            held = {key for key, _ in maps.items("connect_off")}
    return [OffTarget(each.what, each.why, each.where, each.key in held) for each in found.targets]
