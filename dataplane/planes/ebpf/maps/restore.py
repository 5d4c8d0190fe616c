"""Pins of the maps in use that somebody removed, made again from the descriptors of the process that holds them."""

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.maps.layout import layout_version
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.pins import PinDirectory


def restore_pins(maps: MapSet, pins: PinDirectory) -> list[str]:
    """Pin those maps again whose names are missing in their directory. Returns a clause that names them, [] if all are
    there. Raises PlaneError."""
    version = layout_version(maps.sizes)
    missing = sorted(maps.fds.keys() - pins.pinned_maps(version))
    if not missing:
        return []
    folder = pins.maps(version)
    try:
        for name in missing:
            bpf.obj_pin(maps.fds[name], str(folder / name))
    except BpfError as error:
        raise PlaneError(f"maps whose pins were removed cannot be pinned again: {error}") from error
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [f"pins of maps {', '.join(missing[:3])}{more}"]
