"""Command-line options of a plane (planes.options)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ctl.config import KubeProxyConfiguration
from dataplane.errors import UsageError
from dataplane.kernel.namespaces.outside import visible
from dataplane.planes.host_routes import DEFAULT
from dataplane.planes.options import HOOKS, MASQUERADE, NO_CGROUP, PlaneOptions


def _hooks(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the requested hooks. Raises UsageError."""
    hooks = tuple(dict.fromkeys(word.strip() for word in args.hooks.split(","))) if args.hooks else HOOKS
    wrong = [hook for hook in hooks if hook not in HOOKS]
    if wrong:
        raise UsageError(f"--hooks {args.hooks}: there is no hook {wrong[0]!r}; choose of {','.join(HOOKS)}")
    return hooks


def unchecked_options(args: argparse.Namespace) -> PlaneOptions:
    """What the options ask for, of a node that may be another one than this. Raises UsageError."""
    return PlaneOptions(
        _hooks(args),
        args.cgroup or "",
        kube_proxy_masquerade=args.masquerade == MASQUERADE[1],
        host_routing=args.host_routing or DEFAULT,
    )


def plane_options(args: argparse.Namespace) -> PlaneOptions:
    """From the global options. Raises UsageError."""
    hooks = _hooks(args)
    if args.cgroup and args.cgroup != NO_CGROUP and not visible(args.cgroup).is_dir():
        raise UsageError(f"--cgroup {args.cgroup}: is no directory; name one of a cgroup v2 hierarchy, or none")
    return PlaneOptions(
        hooks,
        args.cgroup or "",
        tuple(args.uplink),
        tuple(args.pod_device),
        args.masquerade == MASQUERADE[1],
        off_cgroups=_off_cgroups(args.connect_time_off_cgroup),
        off_netns=_off_netns(args.connect_time_off_netns),
        host_routing=args.host_routing or DEFAULT,
    )


def host_routing(args: argparse.Namespace, config: KubeProxyConfiguration) -> str:
    """Return which packets may go past the node's stack, one of planes.host_routes.CHOICES."""
    return args.host_routing or config.host_routing or DEFAULT


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
    """True if any of the mode's options is given."""
    off = args.connect_time_off_cgroup or args.connect_time_off_netns
    return bool(
        args.hooks or args.cgroup or args.uplink or args.pod_device or args.masquerade or args.host_routing or off
    )
