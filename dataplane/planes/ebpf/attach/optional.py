"""Hooks that a kernel may not support: one that cannot be attached is skipped, with one warning."""

from collections.abc import Callable, Collection

from dataplane.faults import Faults, ignore
from dataplane.kernel.ebpf.bcc_loader import CompileError
from dataplane.kernel.ebpf.bpf import AttachType, BpfError, ProgramType
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach.packet_hooks import TC_SOURCE, XDP_SOURCE, DeviceWatch, PacketHook
from dataplane.planes.ebpf.attach.programs import PROBE_SIZES, Hook, load_programs
from dataplane.planes.ebpf.attach.tc import DIRECTIONS
from dataplane.planes.ebpf.attach.xdp import PROGRAM
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.pins import PinDirectory

Warn = Callable[[str], None]
"""Called with a sentence that says what is not used and why, once for each sentence."""


class OptionalHook:
    """Attaches the first of several hooks that works on this kernel, or none. See programs.Hook; `attach` does not fail
    for a missing kernel feature.

    choices: best first. warn: called with the reason when a hook, or XDP on a device, is skipped; mended: when devices
    that could not be followed are. watch: attach to new devices, too, in a thread, until `close`. used: the hook that
    is attached, or None.
    """

    def __init__(self, *choices: Hook, warn: Warn, watch: bool = False, mended: Warn = ignore) -> None:
        self.name = choices[0].name
        self.used: Hook | None = None
        self._choices, self._warn, self._wants_watch, self._mended = choices, warn, watch, mended
        self._warned: set[str] = set()
        self._watch: DeviceWatch | None = None

    def prepare(self, maps: MapSet, addresses: Collection[str]) -> None:
        """See programs.Hook.prepare: those of the best choice."""
        self._choices[0].prepare(maps, addresses)

    def attach(self, maps: MapSet, pins: PinDirectory) -> None:
        """See programs.Hook.attach."""
        self._end_watch()
        self.used = None
        for hook in self._choices:
            before = set(pins.wanted_links)
            try:
                hook.attach(maps, pins)
            except (PlaneError, CompileError) as error:
                pins.wanted_links &= before  # links of the failed attempt are removed with the unwanted ones
                self._warn_once(f"the {hook.name} hook is off: {error}")
                continue
            self.used = hook
            break
        if self.used is None:
            self._choices[0].detach(pins)
        if isinstance(self.used, PacketHook):
            for device in self.used.status():
                if device.problem:
                    self._warn_once(device.problem)
            if self._wants_watch:
                self._watch = self.used.watch(Faults(self._warn, self._mended))

    def forward(self) -> None:
        """See programs.Hook.forward."""
        if self.used is not None:
            self.used.forward()

    def mend(self) -> list[str]:
        """See programs.Hook.mend. A hook that cannot be attached is none."""
        return self.used.mend() if self.used is not None else []

    def detach(self, pins: PinDirectory) -> None:
        """See programs.Hook.detach."""
        self._end_watch()
        self._choices[0].detach(pins)

    def close(self) -> None:
        """See programs.Hook.close."""
        self._end_watch()
        for hook in self._choices:
            hook.close()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)


def packet_problem(hook: str) -> str:
    """Return why packet programs ("tc" or "xdp") cannot be loaded on this kernel, or "". Loads them with maps of their
    own and attaches nothing, so a device may still refuse them."""
    source, kind = (XDP_SOURCE, ProgramType.XDP) if hook == "xdp" else (TC_SOURCE, ProgramType.SCHED_CLS)
    attach = {PROGRAM: AttachType.XDP} if hook == "xdp" else dict.fromkeys(DIRECTIONS, AttachType.NONE)
    try:
        with create_maps(PROBE_SIZES) as maps:
            for program in load_programs(source, kind, attach, maps.fds, maps.specs).values():
                program.close()
    except (PlaneError, BpfError, CompileError) as error:
        return str(error)
    return ""
