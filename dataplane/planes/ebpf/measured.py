"""The ebpf plane with timers, for benchmarks."""

import logging
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from dataplane.kernel.ebpf.bpf import AttachType, ProgramType
from dataplane.plan.change import PlanChange
from dataplane.plan.types import Plan, Table
from dataplane.planes.base import Plane, PlaneError
from dataplane.planes.ebpf.attach.packet_hooks import DeviceWatch, PacketHook
from dataplane.planes.ebpf.attach.programs import ConnectHook, Hook, load_programs
from dataplane.planes.ebpf.flows.entries import NO_HOP, TRANSLATION, flow_key
from dataplane.planes.ebpf.flows.sockets import SocketCleaner
from dataplane.planes.ebpf.host_routing.table import HostRouting
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import constant, unpack
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.pins import PinDirectory
from dataplane.planes.ebpf.mode import SLOW
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.views.events import TUPLE
from dataplane.planes.measured import Measured, OpenFlow, PacketProgram, Wanted
from dataplane.planes.registry import mode_of

PROGRAM, SOURCE, TABLE = "xdp_uplink", "xdp.c", "tcp_flows"
_log = logging.getLogger(__name__)


class _TimedPlane(Plane):
    """A plane that records how long its load took (`load_seconds`)."""

    def __init__(self, plane: Plane) -> None:
        self._plane, self.name = plane, plane.name
        self.load_seconds = 0.0

    def load(self, plan: Plan) -> PlanChange:
        """See planes.base.Plane.load."""
        started = time.perf_counter()
        change = self._plane.load(plan)
        self.load_seconds = time.perf_counter() - started
        return change

    def apply(self, change: PlanChange) -> None:
        """See planes.base.Plane.apply."""
        self._plane.apply(change)

    def read_back(self) -> Table:
        """See planes.base.Plane.read_back."""
        return self._plane.read_back()

    def cleanup(self) -> None:
        """See planes.base.Plane.cleanup."""
        self._plane.cleanup()


class _TimedHook:
    """A hook that records how long its programs took to compile, verify and attach, and their maps."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self.name, self.detach, self.close, self.forward = hook.name, hook.detach, hook.close, hook.forward
        self.mend = hook.mend
        self.prepare_seconds = self.attach_seconds = 0.0
        self.maps: MapSet | None = None

    def prepare(self, maps: MapSet, addresses: Collection[str]) -> None:
        """See planes.ebpf.attach.programs.Hook.prepare."""
        started = time.perf_counter()
        self._hook.prepare(maps, addresses)
        self.prepare_seconds = time.perf_counter() - started

    def attach(self, maps: MapSet, pins: PinDirectory) -> None:
        """See planes.ebpf.attach.programs.Hook.attach."""
        started = time.perf_counter()
        self._hook.attach(maps, pins)
        self.attach_seconds = time.perf_counter() - started
        self.maps = maps


class _WatchedHook:
    """A packet hook that looks for new devices and neighbours."""

    def __init__(self, hook: PacketHook) -> None:
        self._hook = hook
        self.name, self.detach, self.prepare, self.forward = hook.name, hook.detach, hook.prepare, hook.forward
        self.mend = hook.mend
        self._watch: DeviceWatch | None = None

    def attach(self, maps: MapSet, pins: PinDirectory) -> None:
        """See planes.ebpf.attach.programs.Hook.attach."""
        self._end()
        self._hook.attach(maps, pins)
        self._watch = self._hook.watch()

    def close(self) -> None:
        """See planes.ebpf.attach.programs.Hook.close."""
        self._end()
        self._hook.close()

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None


class MeasuredEbpf(Measured):
    """The ebpf plane with the hooks that are named: connect time, packets. With "host", packets of pods go past the
    node's stack; devices are watched for it in a thread that ends with the process."""

    def __init__(self, wanted: Wanted) -> None:
        connect, host = "connect" in wanted.hooks, HostRouting() if "host" in wanted.hooks else None
        hooks: list[Hook] = [ConnectHook(wanted.cgroup)] if connect else []
        if {"tc", "xdp"} & set(wanted.hooks):
            packets = PacketHook(xdp="xdp" in wanted.hooks, host=host)
            hooks.append(_WatchedHook(packets) if host is not None else packets)
        cleaner = SocketCleaner(wanted.cgroup) if connect else None
        self._slow, self._hooks = _TimedPlane(mode_of(SLOW).make()), [_TimedHook(hook) for hook in hooks]
        self._plane = EbpfPlane(self._slow, self._hooks, cleaner=cleaner, report=_log.warning, host_routing=host)
        super().__init__(self._plane)

    def slow_seconds(self) -> float:
        """See Measured.slow_seconds."""
        return self._slow.load_seconds

    def program_seconds(self) -> float:
        """See Measured.program_seconds."""
        return sum(hook.prepare_seconds + hook.attach_seconds for hook in self._hooks)

    def maps_seconds(self) -> float:
        """See Measured.maps_seconds."""
        return self._plane.fill_seconds

    def packet_program(self) -> PacketProgram | None:
        """See Measured.packet_program."""
        maps = self._hooks[-1].maps
        return XdpProgram(maps) if maps is not None else None


class XdpProgram(PacketProgram):
    """The XDP program over open maps. See PacketProgram."""

    def __init__(self, maps: MapSet) -> None:
        self._maps = maps
        loaded = load_programs(SOURCE, ProgramType.XDP, {PROGRAM: AttachType.XDP}, maps.fds, maps.specs, ())
        self.fd = loaded[PROGRAM].fd

    @contextmanager
    def into_itself(self, flow: OpenFlow, backend: str, port: int) -> Iterator[None]:
        """See PacketProgram.into_itself."""
        own = _tuple(flow.client, flow.node, (flow.client_port, flow.node_port))
        opened = self._maps.get(TABLE, flow_key(own))
        if opened is None:
            raise PlaneError(f"the XDP program does not open a flow to {flow.node} port {flow.node_port}")
        real, same = unpack("translation", opened), (port, port)
        tuples = [_tuple(flow.client, backend, same), _tuple(backend, flow.client, same)]
        flags = constant("FLOW_ESTABLISHED") | constant("FLOW_SNAT") | constant("FLOW_BY_XDP")
        for own, more in zip(tuples, (0, constant("FLOW_REPLY")), strict=True):
            source, destination, source_port, destination_port, *_ = TUPLE.unpack(own)
            chosen = (real["backend"], real["backend_generation"], real["service"], flow.ifindex)
            rest = (time.monotonic_ns(), *(0,) * 6, *NO_HOP, own)
            addresses = (source, destination, source_port, destination_port)
            self._maps.put(TABLE, flow_key(own), TRANSLATION.pack(*addresses, flags | more, 0, *chosen, *rest))
        try:
            yield
        finally:
            self._maps.remove(TABLE, map(flow_key, tuples))


def _tuple(source: str, destination: str, ports: tuple[int, int]) -> bytes:
    return TUPLE.pack(
        address_bytes(source), address_bytes(destination), *map(socket.htons, ports), socket.IPPROTO_TCP, 0, 0, 0
    )
