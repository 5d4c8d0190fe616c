"""The ebpf mode's options, and the plane that they ask for."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dataplane.errors import UsageError
from dataplane.oracle.keeps import Keeps
from dataplane.policy.node import LocalDetector

if TYPE_CHECKING:
    from dataplane.plan.change import PlanChange
    from dataplane.planes.base import Plane
    from dataplane.planes.ebpf.layout import Sizes
    from dataplane.planes.ebpf.plane import EbpfPlane
    from dataplane.planes.ebpf.programs import Hook

HOOKS = ("connect", "tc", "xdp")
MASQUERADE = ("client", "kube-proxy")
NO_CGROUP = "none"
CLEANER_SECONDS = 30.0


class EbpfOptions(msgspec.Struct, frozen=True):
    """What people asked for. hooks: as named. cgroup: directory, "" = the hierarchy's root (see connect_group), "none".
    uplinks, pods: globs; none = found by themselves. kube_proxy_masquerade: exact parity, else clients keep their
    address where the backend is local. instance: pin directory, "" = this network namespace's own. off_cgroups,
    off_netns: for whom connect time is off (see planes.ebpf.off_targets.Wishes)."""

    hooks: tuple[str, ...] = HOOKS
    cgroup: str = ""
    uplinks: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    kube_proxy_masquerade: bool = False
    instance: str = ""
    off_cgroups: tuple[str, ...] = ()
    off_netns: tuple[str, ...] = ()

    @property
    def at_connect(self) -> bool:
        """Whether connect-time balancing is wanted."""
        return "connect" in self.hooks and self.cgroup != NO_CGROUP


def _hooks(args: argparse.Namespace) -> tuple[str, ...]:
    """The hooks that were asked for. Raises UsageError."""
    hooks = tuple(dict.fromkeys(word.strip() for word in args.hooks.split(","))) if args.hooks else HOOKS
    wrong = [hook for hook in hooks if hook not in HOOKS]
    if wrong:
        raise UsageError(f"--hooks {args.hooks}: there is no hook {wrong[0]!r}; choose of {','.join(HOOKS)}")
    return hooks


def keeps(args: argparse.Namespace) -> frozenset[Keeps]:
    """Whose address the mode leaves alone with these options, if every hook works. Raises UsageError."""
    hooks = _hooks(args)
    if args.masquerade == "kube-proxy":
        return frozenset()
    by_packet = Keeps.LOCAL if {"tc", "xdp"} & set(hooks) else None
    by_socket = Keeps.PODS if at_connect_time(args) else None
    return frozenset(kept for kept in (by_packet, by_socket) if kept)


def at_connect_time(args: argparse.Namespace) -> bool:
    """Whether the options ask for connect-time balancing. Raises UsageError."""
    return EbpfOptions(_hooks(args), args.cgroup or "").at_connect


def ebpf_options(args: argparse.Namespace) -> EbpfOptions:
    """From the global options. Raises UsageError."""
    hooks = _hooks(args)
    if args.cgroup and args.cgroup != NO_CGROUP and not _visible(args.cgroup).is_dir():
        raise UsageError(f"--cgroup {args.cgroup}: is no directory; name one of a cgroup v2 hierarchy, or none")
    return EbpfOptions(
        hooks,
        args.cgroup or "",
        tuple(args.uplink),
        tuple(args.pod_device),
        args.masquerade == "kube-proxy",
        off_cgroups=_off_cgroups(args.connect_time_off_cgroup),
        off_netns=_off_netns(args.connect_time_off_netns),
    )


def _off_cgroups(given: Sequence[str]) -> tuple[str, ...]:
    """Control groups that are named; they may come up later. Raises UsageError for what can be none."""
    for text in given:
        place = f"--connect-time-off-cgroup {text}"
        path = Path(text)
        if not text.startswith("/") or not text.strip("/") or ".." in path.parts:
            raise UsageError(f"{place}: write the path of a control group below the root, such as /kubepods/besteffort")
        if path.exists() and not (path / "cgroup.procs").exists():
            raise UsageError(f"{place}: is no control group; name one of a cgroup v2 hierarchy")
    return tuple(dict.fromkeys(given))


def _off_netns(given: Sequence[str]) -> tuple[str, ...]:
    """Network namespaces that are named. Raises UsageError for what can be none."""
    for text in given:
        number = text.isascii() and text.isdecimal()
        if (number and not 0 < int(text) < 1 << 64) or not text or ("/" in text and not text.startswith("/")):
            raise UsageError(
                f"--connect-time-off-netns {text}: write the cookie of a network namespace, its name in /run/netns, or "
                "the path of its file"
            )
    return tuple(dict.fromkeys(given))


def given(args: argparse.Namespace) -> bool:
    """Whether any of the mode's options stands on the command line."""
    off = args.connect_time_off_cgroup or args.connect_time_off_netns
    return bool(args.hooks or args.cgroup or args.uplink or args.pod_device or args.masquerade or off)


def say(text: str) -> None:
    """Tell people something that is no error."""
    print(f"hotplane: {text}", file=sys.stderr)


def _visible(directory: str) -> Path:
    """A directory as it was named, or the one that the process outside of this mount namespace has there."""
    from dataplane.planes.ebpf.pins import outer_process

    outer = None if Path(directory).is_dir() else outer_process()
    return Path(f"/proc/{outer}/root") / directory.lstrip("/") if outer else Path(directory)


def connect_group(cgroup: str) -> Path:
    """The control group that gets connect-time balancing. Raises CgroupError when the hierarchy is nowhere mounted, or
    when nobody named a group and the hierarchy's root would be the wrong one: it holds all the machine's processes, and
    a node in a network namespace of its own has no business with those of the machine.

    Tools that enter network namespaces hide /sys with a mount namespace of their own; it is then found through the
    process that they were started from.
    """
    from dataplane.kernel.cgroup import CgroupError, is_hierarchy_root
    from dataplane.kernel.netns import is_first

    if cgroup:
        return _visible(cgroup)
    root = _hierarchy()
    if is_hierarchy_root(root) and not is_first():
        raise CgroupError(
            "this network namespace is not the machine's own, and the root of the control groups holds all of its "
            "processes; name this node's control group with --cgroup"
        )
    return root


def _hierarchy() -> Path:
    """What is mounted of the cgroup v2 hierarchy. Raises CgroupError."""
    from dataplane.kernel.cgroup import CgroupError, mount_points
    from dataplane.planes.ebpf.pins import outer_process

    here = mount_points()
    if here:
        return here[0]
    outer = outer_process()
    if outer:
        for line in Path(f"/proc/{outer}/mounts").read_text().splitlines():
            fields = line.split(" ")
            if fields[2] == "cgroup2":
                return Path(f"/proc/{outer}/root") / fields[1].lstrip("/")
    raise CgroupError("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified, or --cgroup none")


def make_ebpf_plane(
    options: EbpfOptions,
    detector: LocalDetector | None = None,
    *,
    watch: bool = False,
    sizes: "Sizes | None" = None,
    tell: Callable[[str], None] = say,
) -> "EbpfPlane":
    """The plane for this thread's network namespace, with every hook that was asked for and that works here.

    detector: how pods are recognised, where that goes by device. watch: this process lives on, so it picks up new
    devices and collects closed flows. tell: hears of a hook that is off, and why, and of maps that are full.
    """
    from dataplane.kernel.cgroup import CgroupError
    from dataplane.kernel.pod_groups import hierarchy_of
    from dataplane.planes.ebpf.connect_off import ConnectOff
    from dataplane.planes.ebpf.devices import Wishes
    from dataplane.planes.ebpf.hooks import PacketHook
    from dataplane.planes.ebpf.off_targets import Wishes as OffWishes
    from dataplane.planes.ebpf.optional import OptionalHook
    from dataplane.planes.ebpf.plane import EbpfPlane
    from dataplane.planes.ebpf.programs import ConnectHook
    from dataplane.planes.ebpf.sockets import SocketCleaner
    from dataplane.planes.nftables.plane import NftablesPlane

    hooks: list[Hook] = []
    cleaner = off = None
    if options.at_connect:
        try:
            group = connect_group(options.cgroup)
        except CgroupError as error:
            tell(f"the connect hook is off: {error}")
        else:
            hooks.append(OptionalHook(ConnectHook(group), tell=tell))
            cleaner = SocketCleaner(group)
            asked = OffWishes(options.off_cgroups, options.off_netns)
            off = ConnectOff(hierarchy_of(group), asked, tell=tell, watch=watch)
    wishes = Wishes(options.uplinks, options.pods, detector or LocalDetector())
    if "xdp" in options.hooks:  # counts on tc, which it leaves what it does not do itself
        choices = (PacketHook(wishes), PacketHook(wishes, xdp=False))
        hooks.append(OptionalHook(*choices, tell=tell, watch=watch))
    elif "tc" in options.hooks:
        hooks.append(OptionalHook(PacketHook(wishes, xdp=False), tell=tell, watch=watch))
    return EbpfPlane(
        NftablesPlane(),
        hooks,
        sizes,
        options.instance,
        options.kube_proxy_masquerade,
        cleaner,
        tell if watch else None,
        off,
        loopback_at_connect=options.at_connect,
    )


def settle(plane: "Plane", change: "PlanChange") -> tuple[str, ...]:
    """After a load by a process that ends now: wait for what the plane does in the background, say which maps are
    full, and let a plane of an earlier mode drain on. Returns the Services that did not fit into the maps."""
    from dataplane.planes.ebpf.drain import after_change
    from dataplane.planes.ebpf.plane import EbpfPlane

    if not isinstance(plane, EbpfPlane):
        after_change(change)
        return ()
    if plane.cleaner is not None:
        plane.cleaner.flush(CLEANER_SECONDS)
    for name, count in plane.overflow.items():
        say(f"map {name} is full: {count} Services ports are left to the slow path, which serves them")
    return tuple(sorted({key.service for key in plane.left_out}))
