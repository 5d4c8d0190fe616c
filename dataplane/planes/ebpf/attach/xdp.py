"""Attaches XDP to uplinks by a pinned link: in native mode if the driver supports it, else in generic mode."""

import errno
import os

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, BpfError
from dataplane.kernel.release import is_since
from dataplane.planes.ebpf.attach.programs import remove_link
from dataplane.planes.ebpf.attach.tc import update_pinned
from dataplane.planes.ebpf.maps.pins import PinDirectory

PROGRAM = "xdp_uplink"
_MODES = {"native": 4, "generic": 2}
"""XDP_FLAGS_DRV_MODE and XDP_FLAGS_SKB_MODE."""
_CANNOT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE, errno.ENOSPC, errno.ENOMEM)


_VETH_SINCE = (5, 13)


def veth_problem() -> str:
    """Return why XDP cannot redirect to veth devices on this kernel, "" if it can.

    Before Linux 5.13 a veth accepts redirected frames only if its peer has an XDP program, and silently drops them
    otherwise; since then GRO on that end is enough (drivers/net/veth.c, veth_xdp_xmit).
    """
    if is_since(_VETH_SINCE, unknown=True):
        return ""
    return "veth devices take no redirected frames before Linux 5.13"


def pin_name(index: int, mode: str) -> str:
    """Return the name of the pin of a device's XDP link."""
    return f"xdp_{mode}-{index}"


def attach_xdp(
    index: int, program: int, pins: PinDirectory, modes: tuple[str, ...] = ("native", "generic")
) -> tuple[str, str]:
    """Attach the program to a device, or replace it there atomically.

    in: ifindex; the program's descriptor; modes to try in this order. out: the mode that it runs in, and the kernel's
    error for the mode before it, "" if none was refused. A driver refuses, for instance, an MTU whose frames do not fit
    into a page. Raises BpfError if no mode works (EBUSY: another XDP program is there).
    """
    links = pins.links()
    for mode in _MODES:
        if pin_name(index, mode) in links and update_pinned(links[pin_name(index, mode)], program, index):
            pins.link(pin_name(index, mode))
            return mode, ""
    refusal = ""
    for mode in modes:
        try:
            link = bpf.link_create(program, index, AttachType.XDP, _MODES[mode])
        except BpfError as error:
            if error.errno in _CANNOT and mode != modes[-1]:
                refusal = f"{mode} was refused: {error.strerror}"
                continue
            raise
        try:
            bpf.obj_pin(link, str(pins.link(pin_name(index, mode))))
        finally:
            os.close(link)
        return mode, refusal
    raise BpfError(errno.EINVAL, "no XDP mode was given to try")


def detach_xdp(index: int, pins: PinDirectory) -> None:
    """Detach the program from a device; no error if there is none, or no device."""
    links = pins.links()
    for mode in _MODES:
        if pin_name(index, mode) in links:
            remove_link(links[pin_name(index, mode)])
