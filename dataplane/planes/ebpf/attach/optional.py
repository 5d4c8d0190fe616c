"""Hooks that a kernel may lack: one that cannot work is left out alone, and its reason is told once."""

from collections.abc import Callable

from dataplane.kernel.ebpf.bcc_loader import CompileError
from dataplane.kernel.ebpf.bpf import AttachType, BpfError, ProgramType
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach.packet_hooks import TC_SOURCE, XDP_SOURCE, DeviceWatch, PacketHook
from dataplane.planes.ebpf.attach.programs import PROBE_SIZES, Hook, load_programs
from dataplane.planes.ebpf.attach.tc import DIRECTIONS
from dataplane.planes.ebpf.attach.xdp import PROGRAM
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.pins import PinDirectory

Tell = Callable[[str], None]
"""Told in a sentence what cannot be used and why; each sentence comes once."""


class OptionalHook:
    """The first of some hooks that works here, or none. See programs.Hook; `attach` never fails for a missing feature.

    choices: best first. tell: hears why a hook, or XDP on a device, is left out. watch: keep picking up new devices in
    a thread, for as long as this process lives. used: the hook that is attached, or None.
    """

    def __init__(self, *choices: Hook, tell: Tell, watch: bool = False) -> None:
        self.name = choices[0].name
        self.used: Hook | None = None
        self._choices, self._tell, self._wants_watch = choices, tell, watch
        self._told: set[str] = set()
        self._watch: DeviceWatch | None = None

    def attach(self, maps: MapSet, pins: PinDirectory) -> None:
        """See programs.Hook.attach."""
        self._end_watch()
        self.used = None
        for hook in self._choices:
            before = set(pins.wanted_links)
            try:
                hook.attach(maps, pins)
            except (PlaneError, CompileError) as error:
                pins.wanted_links &= before  # what it had begun goes with the links that nobody wants
                self._say(f"the {hook.name} hook is off: {error}")
                continue
            self.used = hook
            break
        if self.used is None:
            self._choices[0].detach(pins)
        if isinstance(self.used, PacketHook):
            for device in self.used.status():
                if device.problem:
                    self._say(device.problem)
            if self._wants_watch:
                self._watch = self.used.watch()

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

    def _say(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


def packet_problem(hook: str) -> str:
    """Why packet programs cannot work here ("tc" or "xdp"), or "". Loads them onto maps of their own, attaches nothing;
    whether a device takes them is only known when it gets them."""
    source, kind = (XDP_SOURCE, ProgramType.XDP) if hook == "xdp" else (TC_SOURCE, ProgramType.SCHED_CLS)
    attach = {PROGRAM: AttachType.XDP} if hook == "xdp" else dict.fromkeys(DIRECTIONS, AttachType.NONE)
    try:
        with create_maps(PROBE_SIZES) as maps:
            for program in load_programs(source, kind, attach, maps.fds, maps.specs).values():
                program.close()
    except (PlaneError, BpfError, CompileError) as error:
        return str(error)
    return ""
