"""Creates the ebpf plane from command-line options, and finds the control group that they name."""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from dataplane.kernel.namespaces import cgroup as groups
from dataplane.kernel.namespaces import netns
from dataplane.kernel.namespaces.cgroup import CgroupError
from dataplane.kernel.namespaces.outside import outer_process, visible
from dataplane.kernel.namespaces.pod_groups import hierarchy_of
from dataplane.plan.types import OffPod
from dataplane.planes.answers import OffTarget
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach.devices import DeviceSelection
from dataplane.planes.ebpf.attach.optional import OptionalHook
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.programs import ConnectHook, Hook
from dataplane.planes.ebpf.connect_time.off import ConnectOff
from dataplane.planes.ebpf.connect_time.off_targets import OffSelection, find_targets
from dataplane.planes.ebpf.flows.sockets import SocketCleaner
from dataplane.planes.ebpf.host_routing.table import HostRouting
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.maps.need import MORE_MEMORY, memory_problem
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
from dataplane.planes.ebpf.mode import SLOW
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.views.records import open_instance
from dataplane.planes.exclusions import Exclusions
from dataplane.planes.host_routes import OFF
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from dataplane.policy.node import LocalDetector


def connect_group(cgroup: str) -> Path:
    """Return the control group for connect-time balancing. Raises CgroupError if the hierarchy is not mounted, or if no
    group is named and this network namespace is not the machine's own: the root group holds all processes of the
    machine, which such a node must not balance.

    Tools that enter network namespaces hide /sys by a mount namespace of their own; the hierarchy is then found through
    the process that started them.
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
    """Return the mount point of the cgroup v2 hierarchy. Raises CgroupError."""
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
    """Return the plane for this thread's network namespace, with the requested hooks that work on this kernel. sizes:
    of the maps."""
    options, warn, watch, mended = making.options, making.warn, making.watch, making.mended
    hooks: list[Hook] = []
    cleaner = off = None
    if options.at_connect:
        try:
            group = connect_group(options.cgroup)
        except CgroupError as error:
            warn(f"the connect hook is off: {error}")
        else:
            hooks.append(OptionalHook(ConnectHook(group), warn=warn))
            cleaner = SocketCleaner(group)
            asked = OffSelection(options.off_cgroups, options.off_netns)
            off = ConnectOff(hierarchy_of(group), asked, warn=warn, watch=watch, mended=mended)
    selection = DeviceSelection(options.uplinks, options.pods, making.detector or LocalDetector())
    host = _host_routing(options) if watch else None
    if "xdp" in options.hooks:  # needs tc, which handles the packets that XDP passes
        choices = (PacketHook(selection, host=host), PacketHook(selection, xdp=False, host=host))
        hooks.append(OptionalHook(*choices, warn=warn, watch=watch, mended=mended))
    elif "tc" in options.hooks:
        hook = PacketHook(selection, xdp=False, host=host)
        hooks.append(OptionalHook(hook, warn=warn, watch=watch, mended=mended))
    if watch:
        _warn_of_memory(options, sizes or Sizes(), warn)
    return EbpfPlane(
        mode_of(SLOW).make(Making(warn=warn, watch=watch, mended=mended)),
        hooks,
        sizes,
        options.instance,
        options.kube_proxy_masquerade,
        cleaner,
        warn if watch else None,
        off,
        loopback_at_connect=options.at_connect,
        host_routing=host,
        mended=mended,
    )


def _warn_of_memory(options: PlaneOptions, sizes: Sizes, warn: Callable[[str], None]) -> None:
    """Say before new maps are made that there may be too little memory: the kernel ends a process that takes more than
    it may without a word."""
    short = memory_problem(sizes)
    with suppress(PlaneError):  # the pins cannot be looked at, which a load says
        if short and not PinDirectory(options.instance or default_instance()).map_versions():
            warn(f"{short}; with what else the daemon needs that may be too little: {MORE_MEMORY}")


def _host_routing(options: PlaneOptions) -> HostRouting | None:
    """Return who keeps host routing, None where nobody asks for it, so that no packet pays for it. Only a process that
    lives on may: somebody must look at what changes. It says itself who need not stay on the stack."""
    if options.host_routing == OFF or not {"tc", "xdp"} & set(options.hooks):
        return None
    routing = HostRouting(attended=True)
    routing.exclude(Exclusions("nobody has said yet who must stay"))
    return routing


def look_for_off(options: PlaneOptions, pods: Mapping[tuple[str, str], OffPod]) -> Collection[OffTarget]:
    """Return the targets for which connect time is to be off, and those in the maps of this network namespace. Raises
    CgroupError, PlaneError."""
    root = hierarchy_of(connect_group(options.cgroup))
    found = find_targets(root, OffSelection(options.off_cgroups, options.off_netns), pods)
    held: set[bytes] = set()
    maps = open_instance(options.instance or default_instance())
    if maps is not None:
        with maps:
            held = {key for key, _ in maps.items("connect_off")}
    return [OffTarget(each.what, each.why, each.where, each.key in held) for each in found.targets]
