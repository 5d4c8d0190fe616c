"""Programs that need not be verified again: loaded ahead by this process, or pinned by an earlier one.

The kernel verifies the largest program for the better part of a second, and what it said of the same code with the same
maps it would say again. A pin lies in the directory of its maps, under its name and a digest of its code, and goes with
them. The kernel is asked which maps a program refers to before it is used.
"""

import contextlib
import hashlib
import os

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, BpfError, ProgramType
from dataplane.planes.ebpf.maps.layout import layout_version
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.pins import PinDirectory

_DIGITS = 32


def program_name(name: str, code: bytes, kind: ProgramType, attach: AttachType) -> str:
    """Return a name that tells programs apart by all that they are loaded with. code: not yet relocated."""
    digest = hashlib.sha256(f"{kind.value} {attach.value} ".encode() + code).hexdigest()
    return f"{name}-{digest[:_DIGITS]}"


class Loaded:
    """Programs for one set of maps, by `program_name`. pins: where they are kept for later processes; None: nowhere."""

    def __init__(self, maps: MapSet, pins: PinDirectory | None = None) -> None:
        self._maps, self._pins = maps, pins

    def take(self, name: str) -> int | None:
        """Return a descriptor of a loaded program, which the caller closes, or None."""
        fd = self._maps.programs.pop(name, None)
        if fd is None:
            return self._pinned(self._pins, name) if self._pins is not None else None
        self.keep(name, fd)
        return fd

    def _pinned(self, pins: PinDirectory, name: str) -> int | None:
        """Open what is pinned under a name, if it refers to these maps."""
        try:
            fd = bpf.obj_get(str(pins.program(layout_version(self._maps.sizes), name)))
        except BpfError:  # there is none, as a rule; anything else is the kernel's to say when it is loaded
            return None
        if bpf.program_maps(fd) <= {bpf.map_info(each).id for each in self._maps.fds.values()}:
            return fd
        os.close(fd)
        return None

    def keep(self, name: str, fd: int) -> None:
        """Pin a program that was just loaded, if this object has pins. One that cannot be pinned works all the same."""
        if self._pins is not None:
            path = self._pins.program(layout_version(self._maps.sizes), name)
            with contextlib.suppress(BpfError):
                path.unlink(missing_ok=True)  # of other maps
                bpf.obj_pin(fd, str(path))

    def ahead(self, name: str, fd: int) -> None:
        """Hold a program for a later `take`, at most until the maps are closed."""
        before = self._maps.programs.pop(name, None)
        if before is not None:
            os.close(before)
        self._maps.programs[name] = fd
