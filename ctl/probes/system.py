"""Checks of the system: rights, conntrack, forwarding, devices, protocols."""

import os
import platform
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from dataplane.kernel.netlink.conntrack_usage import table_usage
from dataplane.planes.finding import Finding, Status, try_command

OLDEST_KERNEL = (5, 10)  # reject in prerouting came with 5.9; 5.10 is the oldest one that Debian supported with it


def _sysctl(name: str) -> str | None:
    """A sysctl's value, or None where this kernel or namespace does not have it."""
    path = Path("/proc/sys") / name.replace(".", "/")
    return path.read_text().strip() if path.exists() else None


def probe_system() -> Iterator[Finding]:
    """Root, kernel version, conntrack over netlink, forwarding, bridge filtering, SCTP sockets, devices for the lab."""
    yield _root()
    yield _kernel()
    yield _conntrack()
    yield from _forwarding()
    yield _bridge_filter()
    yield _sctp_sockets()
    if os.geteuid() == 0:
        yield from _devices()


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("system", "root", Status.OK)
    return Finding(
        "system", "root", Status.MISSING, "nothing can be programmed, and most things were not tried", "run as root"
    )


def _kernel() -> Finding:
    release = platform.release()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and (int(numbers[1]), int(numbers[2])) >= OLDEST_KERNEL:
        return Finding("system", "kernel", Status.OK, release)
    return Finding(
        "system", "kernel", Status.LIMITED, f"{release} is older than 5.10: not tested", "use kernel 5.10 or later"
    )


def _conntrack() -> Finding:
    check = "conntrack over netlink"
    from pyroute2 import NFCTSocket
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with NFCTSocket() as conntrack:
            stats = dict(next(iter(conntrack.count()))["attrs"])
    except (OSError, NetlinkError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.args[-1]
        detail = f"{reason}: stale UDP flows cannot be removed when an endpoint goes"
        return Finding("system", check, Status.MISSING, detail, "run as root; modprobe nf_conntrack_netlink")
    entries, most = stats.get("CTA_STATS_GLOBAL_ENTRIES"), stats.get("CTA_STATS_GLOBAL_MAX_ENTRIES")
    detail, usage = f"{entries} of {most} entries in use", table_usage()
    if usage is not None and usage.dropped:
        detail += f"; {usage.dropped} packets of new connections were dropped so far, as there was no room"
    if usage is not None and usage.is_nearly_full:
        detail += "; when none is left, new connections are dropped, whoever's they are"
        advice = "raise conntrack.maxPerCore or net.netfilter.nf_conntrack_max; conntrack -L names what is in the table"
        return Finding("system", check, Status.LIMITED, detail, advice)
    return Finding("system", check, Status.OK, detail)


def _forwarding() -> Iterator[Finding]:
    for version, name in (("IPv4", "net.ipv4.ip_forward"), ("IPv6", "net.ipv6.conf.all.forwarding")):
        value = _sysctl(name)
        check = f"{version} forwarding"
        if value is None:
            detail = f"this kernel has no {version}: no {version} Services"
            yield Finding("system", check, Status.MISSING, detail, f"use a kernel with {version}")
        elif value == "0":
            detail = "off in this network namespace: pods here reach Services only on this node"
            yield Finding("system", check, Status.LIMITED, detail, f"sysctl -w {name}=1")
        else:
            yield Finding("system", check, Status.OK)


def _bridge_filter() -> Finding:
    name = "net.bridge.bridge-nf-call-iptables"
    value = _sysctl(name)
    if value == "1":
        return Finding("system", "bridge traffic through netfilter", Status.OK)
    detail = (
        "off: a pod that reaches a pod of its own bridge through a Service gets replies that are not translated back"
    )
    advice = f"sysctl -w {name}=1" if value == "0" else f"modprobe br_netfilter && sysctl -w {name}=1"
    return Finding("system", "bridge traffic through netfilter", Status.LIMITED, detail, advice)


def _sctp_sockets() -> Finding:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        detail = (
            f"{error.strerror}: SCTP Services are programmed all the same, but no program on this machine can use one"
        )
        return Finding("system", "SCTP sockets", Status.LIMITED, detail, "modprobe sctp")
    return Finding("system", "SCTP sockets", Status.OK)


def _devices() -> Iterator[Finding]:
    devices = {
        "veth": (("type", "veth", "peer", "name", "trial1"), "no lab"),
        "bridge": (("type", "bridge"), "no lab with --pod-link bridge"),
        "vxlan": (("type", "vxlan", "id", "1", "dstport", "4789"), "no lab with --routing vxlan"),
    }
    for name, (arguments, consequence) in devices.items():
        trial = try_command(["ip", "link", "add", "trial0", *arguments])
        if trial.worked:
            yield Finding("lab", f"{name} devices", Status.OK)
        else:
            advice = "apt-get install iproute2" if "not installed" in trial.reason else f"modprobe {name}"
            yield Finding("lab", f"{name} devices", Status.MISSING, f"{trial.reason}; {consequence}", advice)
