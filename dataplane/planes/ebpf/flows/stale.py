"""What instances of the plane leave behind when their network namespace goes without a clean-up: pinned maps, and
programs on a control group, whose processes would go on being balanced by a plan that nobody keeps any more.

The pins are the machine's, and whoever starts in another namespace may live in a container that does not see who else
is there: then nothing is stale. On the way, only what the name of an instance tells is used, and what is young stays.
"""

import os
import re
import time
from collections.abc import Collection

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.namespaces.netns_alive import living_cookies
from dataplane.planes.ebpf.attach.programs import CONNECT_PROGRAMS, remove_links
from dataplane.planes.ebpf.attach.tc import link_device
from dataplane.planes.ebpf.maps.pins import PinDirectory, instance_names
from dataplane.planes.ebpf.views.records import open_instance

_OF_NAMESPACE = re.compile(r"netns-([0-9a-f]+)")


def stale_instances(prefix: str = "", *, of: Collection[int] | None = None, age: float = 0.0) -> list[str]:
    """Names of the instances, of those whose names begin so, whose network namespace is gone. of: only of the network
    namespaces with these cookies. age: only those named after their namespace to which nothing was added in so many
    seconds; 0: all.

    An instance of another layout whose name does not tell its namespace counts as gone when all its devices are, if it
    had any. Raises HotplaneError where nobody can know.
    """
    names = [name for name in instance_names() if name.startswith(prefix)]  # first: later ones belong to somebody
    if age:
        names = [name for name in names if _OF_NAMESPACE.fullmatch(name) and _age(PinDirectory(name)) > age]
    if of is not None:
        names = [name for name in names if _cookie(name) in of]
    if not names:
        return []
    living = living_cookies()
    return [name for name in names if _is_stale(PinDirectory(name), living)]


def remove_stale(prefix: str = "", *, of: Collection[int] | None = None, age: float = 0.0) -> list[str]:
    """Take everything of `stale_instances` off and away; returns their names. Raises HotplaneError."""
    names = stale_instances(prefix, of=of, age=age)
    for name in names:
        pins = PinDirectory(name)
        remove_links(pins)
        pins.remove()
    return names


def _age(pins: PinDirectory) -> float:
    """Seconds since something was added to an instance; 0 where that is not known."""
    try:
        return time.time() - pins.path.stat().st_mtime if pins.path else 0.0
    except OSError:
        return 0.0


def _is_stale(pins: PinDirectory, living: frozenset[int]) -> bool:
    devices = _devices(pins)
    if any(devices):
        return False  # whatever else is known: packets come by there
    cookie = _cookie(pins.instance)
    return bool(devices) if cookie is None else cookie not in living


def _devices(pins: PinDirectory) -> list[int]:
    """Ifindex of the device of each packet program; 0 for a device that is gone."""
    found = []
    for name, path in pins.links().items():
        if name not in CONNECT_PROGRAMS:
            link = bpf.obj_get(str(path))
            try:
                found.append(link_device(link))
            finally:
                os.close(link)
    return found


def _cookie(instance: str) -> int | None:
    """The network namespace of an instance, as far as it is known."""
    match = _OF_NAMESPACE.fullmatch(instance)
    if match:
        return int(match[1], 16)
    maps = open_instance(instance)
    if maps is None:
        return None
    with maps:
        cookie = maps.node()["netns_cookie"]
    return cookie if isinstance(cookie, int) and cookie else None
