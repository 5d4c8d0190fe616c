"""Attaches tc programs to devices: by a pinned tcx link (Linux 6.6), else by a clsact filter."""

import errno
import os
from pathlib import Path

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, BpfError
from dataplane.kernel.netlink import clsact
from dataplane.planes.ebpf.attach.programs import remove_link
from dataplane.planes.ebpf.maps.pins import PinDirectory

DIRECTIONS = {"tc_egress": AttachType.TCX_EGRESS, "tc_ingress": AttachType.TCX_INGRESS}
"""In the order in which they are attached, the reverse of that in which they are detached: what ingress translates must
find its way back at egress, and between the two the kernel waits for an RCU grace period."""
_NOT_THERE = (errno.EINVAL, errno.EOPNOTSUPP)


DEVICE_MASK = 0xFFFFFFFF
"""Bits of LinkInfo.target in which a tcx or XDP link has its ifindex."""


def link_device(link: int) -> int:
    """Return the ifindex that a tcx or XDP link is attached to; 0 if the device was deleted."""
    return bpf.link_info(link).target & DEVICE_MASK


def update_pinned(path: Path, program: int, index: int) -> bool:
    """Replace the program of a pinned link atomically. Returns False, and removes the pin, if the link is not on this
    device (any more). Raises BpfError."""
    if not path.exists():
        return False
    link = bpf.obj_get(str(path))
    try:
        if link_device(link) == index:
            bpf.link_update(link, program)
            return True
    finally:
        os.close(link)
    remove_link(path)
    return False


def attach_tc(
    index: int, programs: dict[str, int], pins: PinDirectory, *, tcx: bool = True, clsact_there: bool = True
) -> str:
    """Attach tc_ingress and tc_egress to a device, or replace them there atomically.

    in: ifindex; descriptors of both programs; whether to try tcx; whether the device may have a clsact qdisc. out:
    "tcx" or "clsact". Raises BpfError, ClsactError.
    """
    for name, kind in DIRECTIONS.items():
        if not tcx or not _attach_tcx(index, programs[name], kind, pins, f"{name}-{index}"):
            tcx = False
            clsact.attach(index, programs[name], name, egress=kind is AttachType.TCX_EGRESS)
    if tcx and clsact_there:
        clsact.detach(index)  # filters of an earlier kernel or run: never both
    return "tcx" if tcx else "clsact"


def _attach_tcx(index: int, program: int, kind: AttachType, pins: PinDirectory, name: str) -> bool:
    path = pins.link(name)
    if update_pinned(path, program, index):
        return True
    try:
        link = bpf.link_create(program, index, kind)
    except BpfError as error:
        if error.errno in _NOT_THERE:
            pins.wanted_links.discard(name)
            return False
        raise
    try:
        bpf.obj_pin(link, str(path))
    finally:
        os.close(link)
    return True


def detach_tc(index: int, pins: PinDirectory) -> None:
    """Detach both programs from a device; no error if there are none, or no device."""
    links = pins.links()
    for name in reversed(DIRECTIONS):
        if f"{name}-{index}" in links:
            remove_link(links[f"{name}-{index}"])
