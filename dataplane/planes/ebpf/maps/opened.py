"""The maps that a load works on: those of an earlier process, copies of its maps of other sizes, or new ones.

While copies are filled and the programs loaded, those that packets meet go on with the maps that were copied. What they
store there is brought over before the programs change, and once more after it, which the flows of that moment need.
"""

import struct
import time
from typing import NamedTuple

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import MapType
from dataplane.planes.ebpf.maps.layout import FLOW_MAPS, Sizes, constant, fields_of, layout_version, struct_version
from dataplane.planes.ebpf.maps.mapset import MapSet, copy_maps, create_maps, open_any_sizes, open_maps, pin_maps
from dataplane.planes.ebpf.maps.pins import PinDirectory

_LONG = struct.Struct("=q")
_CLOCK_NS = 1_000_000_000
"""Packet programs take the time of the last tick."""


class Opened(NamedTuple):
    """maps: pinned. adopted: they are filled. copied_ns: when they were copied from maps of other sizes, by the clock
    of time.monotonic_ns; 0 = they were not."""

    maps: MapSet
    adopted: bool
    copied_ns: int = 0


def open_or_make(pins: PinDirectory, sizes: Sizes, netns_cookie: int) -> Opened:
    """Return the maps of these sizes for a network namespace. Raises PlaneError."""
    version = layout_version(sizes)
    others = [v for v in pins.map_versions() if v != version and v.startswith(struct_version())]
    if version in pins.map_versions():
        held = held_maps(pins, sizes, netns_cookie)
        if held is not None:
            return Opened(held, adopted=True)
        pins.remove_maps(version)
    for other in others:
        old, now = open_any_sizes(pins.maps(other)), time.monotonic_ns()
        if old is not None:
            with old:
                copied = copy_maps(old, sizes) if _ours(old, netns_cookie) else None
            if copied is not None:
                pin_maps(copied, pins.maps(version))
                return Opened(copied, adopted=True, copied_ns=now)
    maps = create_maps(sizes)
    pin_maps(maps, pins.maps(version))
    return Opened(maps, adopted=False)


def held_maps(pins: PinDirectory, sizes: Sizes, netns_cookie: int) -> MapSet | None:
    """Return the pinned maps of these sizes if they are whole and were filled for this network namespace."""
    version = layout_version(sizes)
    if version not in pins.map_versions():
        return None
    maps = open_maps(pins.maps(version), sizes)
    if maps is None or _ours(maps, netns_cookie):
        return maps
    maps.close()
    return None


def _ours(maps: MapSet, netns_cookie: int) -> bool:
    """True if the maps were filled for this network namespace."""
    node = maps.node()
    flags = node["flags"]
    return isinstance(flags, int) and bool(flags & constant("NODE_READY")) and node["netns_cookie"] == netns_cookie


def bring_flows(pins: PinDirectory, maps: MapSet, since_ns: int) -> int:
    """Bring to copies what programs stored since then in the maps that were copied; returns the time from which on to
    bring it again. Both on the clock of time.monotonic_ns; 0: nothing was copied."""
    if not since_ns:
        return 0
    now, version = time.monotonic_ns(), layout_version(maps.sizes)
    for other in pins.map_versions():
        if other != version and other.startswith(struct_version()):
            old = open_any_sizes(pins.maps(other))
            if old is not None:
                with old:
                    _bring(old, maps, since_ns - _CLOCK_NS)
    return now


def _bring(old: MapSet, new: MapSet, since_ns: int) -> None:
    """What is in both maps is replaced where it was used later in the old one."""
    for name, spec in old.specs.items():
        if name not in FLOW_MAPS or spec.type is not MapType.HASH:
            continue
        if bpf.map_info(old.fds[name]).id == bpf.map_info(new.fds[name]).id:
            continue  # both have this one
        elements, last_at = new.elements(name), fields_of(spec.value)["last_ns"]
        for key, value in old.items(name):
            (last,) = _LONG.unpack_from(value, last_at)
            if last >= since_ns:
                held = elements.get(key)
                if held is None or _LONG.unpack_from(held, last_at)[0] < last:
                    elements.put(key, value)
