"""Removes instances of the plane whose network namespace was deleted without a clean-up: pinned maps, and programs on a
control group, which would balance its processes by a plan that no daemon updates.

All pins are in one bpffs of the machine. A process in a container may not see all network namespaces; it then treats
no instance as stale. With `age`, only instances named after their namespace are considered, and recent ones stay.
"""

import errno
import os
import re
import time
from collections.abc import Collection

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError
from dataplane.kernel.namespaces.netns_alive import living_cookies
from dataplane.planes.ebpf.attach.programs import CONNECT_PROGRAMS, remove_links
from dataplane.planes.ebpf.attach.tc import link_device
from dataplane.planes.ebpf.maps.pins import PinDirectory, instance_names
from dataplane.planes.ebpf.views.records import open_instance

_OF_NAMESPACE = re.compile(r"netns-([0-9a-f]+)")


def stale_instances(prefix: str = "", *, of: Collection[int] | None = None, age: float = 0.0) -> list[str]:
    """Return the names, starting with `prefix`, of instances whose network namespace was deleted. of: only for
    namespaces with these cookies. age: only those named after their namespace to which nothing was added for so many
    seconds; 0: all.

    An instance of another layout that is not named after its namespace counts as stale if it had devices and all were
    deleted. Raises HotplaneError if the namespaces cannot be listed.
    """
    names = [
        name for name in instance_names() if name.startswith(prefix)
    ]  # before the namespaces are listed: later instances are in use
    if age:
        names = [name for name in names if _OF_NAMESPACE.fullmatch(name) and _age(PinDirectory(name)) > age]
    if of is not None:
        names = [name for name in names if _cookie(name) in of]
    if not names:
        return []
    living = living_cookies()
    return [name for name in names if _is_stale(PinDirectory(name), living)]


def remove_stale(prefix: str = "", *, of: Collection[int] | None = None, age: float = 0.0) -> list[str]:
    """Detach and unpin all `stale_instances` (see there); returns their names. Raises HotplaneError."""
    names = stale_instances(prefix, of=of, age=age)
    for name in names:
        pins = PinDirectory(name)
        remove_links(pins)
        pins.remove()
    return names


def _age(pins: PinDirectory) -> float:
    """Return the seconds since something was added to an instance; 0 if unknown."""
    try:
        return time.time() - pins.path.stat().st_mtime if pins.path else 0.0
    except OSError:
        return 0.0


def _is_stale(pins: PinDirectory, living: frozenset[int]) -> bool:
    devices = _devices(pins)
    if any(devices):
        return False  # a device with programs exists, so the instance is in use
    cookie = _cookie(pins.instance)
    return bool(devices) if cookie is None else cookie not in living


def _devices(pins: PinDirectory) -> list[int]:
    """Return the ifindex of each packet program's device; 0 for a deleted device."""
    found = []
    for name, path in pins.links().items():
        if name not in CONNECT_PROGRAMS:
            try:
                link = bpf.obj_get(str(path))
            except BpfError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue  # its owner, or somebody else who clears up, has removed it meanwhile
            try:
                found.append(link_device(link))
            finally:
                os.close(link)
    return found


def _cookie(instance: str) -> int | None:
    """Return the cookie of an instance's network namespace, or None if unknown."""
    match = _OF_NAMESPACE.fullmatch(instance)
    if match:
        return int(match[1], 16)
    maps = open_instance(instance)
    if maps is None:
        return None
    with maps:
        cookie = maps.node()["netns_cookie"]
    return cookie if isinstance(cookie, int) and cookie else None
