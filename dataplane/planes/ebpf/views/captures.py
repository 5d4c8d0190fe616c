"""Captures the packets that the programs drop, and those that they leave to the slow path to refuse."""

import time
from collections.abc import Sequence
from types import MappingProxyType

from dataplane.kernel.devices import device_name
from dataplane.kernel.ebpf.bpf import BpfError
from dataplane.kernel.ebpf.perf import PerfReader
from dataplane.planes.base import PlaneError
from dataplane.planes.captures import Captured, CaptureStream, Link
from dataplane.planes.ebpf.maps.layout import hook_names, reason_meanings, reason_names, record
from dataplane.planes.ebpf.maps.mapset import NODE_KEY, MapSet
from dataplane.planes.ebpf.views.events import ALL_HOOKS

_HEAD = record("captured", "ns", "hook", "reason", "service", "ifindex", "length", "pad")
_WANTED = record("capture", "until_ns", "snaplen", "pad")
_RENEWED_NS = 2_000_000_000
"""A capture that is not renewed for so long is over: a killed one costs nothing."""

_MOST_WAIT = 0.5


class ProgramCapture(CaptureStream):
    """A capture of the programs' own drops, and of what the slow path refuses. maps: taken over. slow: taken over;
    None if it cannot be captured. snap: bytes of a packet that are kept. raw: indexes of devices without a link-layer
    header. Raises PlaneError."""

    hooks = MappingProxyType({name: names for name, names in ALL_HOOKS.items() if name != "connect"})  # has no packets

    def __init__(self, maps: MapSet, slow: CaptureStream | None, snap: int, raw: Sequence[int] = ()) -> None:
        self._maps, self._slow, self._snap, self._raw = maps, slow, snap, frozenset(raw)
        self.left_out = slow.left_out if slow is not None else ("what the slow path refuses",)
        try:
            self._perf = PerfReader(maps.fds["captured"])
        except (BpfError, OSError) as error:
            raise PlaneError(f"packets that programs drop cannot be captured: {error.strerror}; run as root") from error
        self._renew()

    def _renew(self) -> None:
        self._maps.put("capture", NODE_KEY, _WANTED.pack(time.monotonic_ns() + _RENEWED_NS, self._snap, 0))

    @property
    def lost(self) -> int:
        """See CaptureStream.lost."""
        return self._perf.lost + (self._slow.lost if self._slow is not None else 0)

    def poll(self, seconds: float) -> Sequence[Captured]:
        """See CaptureStream.poll."""
        self._renew()
        slow = list(self._slow.poll(0)) if self._slow is not None else []
        mine = [self._captured(raw) for raw in self._perf.take(0 if slow else min(seconds, _MOST_WAIT))]
        if not slow and not mine and self._slow is not None:
            slow = list(self._slow.poll(0))
        return sorted([*mine, *slow], key=lambda packet: packet.ns)

    def _captured(self, raw: bytes) -> Captured:
        ns, hook, reason, _, ifindex, length, _ = _HEAD.unpack_from(raw)
        name = reason_names()[reason]
        wall = ns + time.time_ns() - time.monotonic_ns()
        link = Link.RAW if ifindex in self._raw else Link.ETHERNET
        data = raw[_HEAD.size :][: min(length, self._snap)]
        fate = f"dropped: {reason_meanings().get(name, name)}"
        return Captured(wall, device_name(ifindex), ifindex, link, data, length, hook_names()[hook], name, fate)

    def close(self) -> None:
        """End the capture."""
        self._maps.put("capture", NODE_KEY, bytes(_WANTED.size))
        self._perf.close()
        self._maps.close()
        if self._slow is not None:
            self._slow.close()
