"""Attaches the packet programs, tc and XDP, to all devices that need them, as one hook of the eBPF plane."""

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pyroute2.netlink.exceptions import NetlinkError

from dataplane.errors import HotplaneError
from dataplane.faults import Faults, ignore
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bcc_loader import CompileError
from dataplane.kernel.ebpf.bpf import AttachType, BpfError, ProgramType
from dataplane.kernel.netlink import clsact
from dataplane.kernel.netlink.clsact import ClsactError
from dataplane.kernel.netlink.netlink import LOST, Notifications
from dataplane.kernel.wait import readable
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach.devices import (
    RAW_IP,
    XDP_TARGET,
    Device,
    DeviceSelection,
    Network,
    choose_devices,
    read_network,
    roles,
    source_addresses,
)
from dataplane.planes.ebpf.attach.kernel_features import redirects_to_peers
from dataplane.planes.ebpf.attach.loaded import Loaded
from dataplane.planes.ebpf.attach.programs import Program, load_programs
from dataplane.planes.ebpf.attach.status import DeviceStatus as DeviceStatus
from dataplane.planes.ebpf.attach.status import lost_programs
from dataplane.planes.ebpf.attach.tc import DIRECTIONS, attach_tc, detach_tc
from dataplane.planes.ebpf.attach.xdp import PROGRAM, attach_xdp, detach_xdp, veth_problem
from dataplane.planes.ebpf.flows.port_split import PortSplit, join_ports
from dataplane.planes.ebpf.flows.reserve import reserve_once
from dataplane.planes.ebpf.host_routing.surroundings import neighbour_news
from dataplane.planes.ebpf.host_routing.table import RENEW_SECONDS, HostRouting
from dataplane.planes.ebpf.maps.encode import address_bytes, address_text
from dataplane.planes.ebpf.maps.layout import constant, record
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.node_settings import write_ready
from dataplane.planes.ebpf.maps.pins import PinDirectory
from dataplane.resource import Resource

TC_SOURCE, HOST_SOURCE, XDP_SOURCE = "tc.c", "host.c", "xdp.c"
FORWARD_SOURCE, XDP_FORWARD_SOURCE = "forward.c", "xdp_forward.c"
HOST_PROGRAM = "tc_host"
HOST_ROUTING = constant("DEVICE_HOST_ROUTING")
PROGRAM_SERVICES, PROGRAM_HOST = constant("PROGRAM_SERVICES"), constant("PROGRAM_HOST")
FORWARD_PROGRAMS = {
    "tc_forward": constant("PROGRAM_FORWARD"),
    "tc_unwrap": constant("PROGRAM_UNWRAP"),
    "tc_answer": constant("PROGRAM_ANSWER"),
}
"""Programs for packets between nodes, with their index in the map `tail_calls`."""
XDP_FORWARD_PROGRAMS = {"xdp_unwrap": constant("XDP_PROGRAM_UNWRAP")}
"""The same in XDP, in the map `xdp_calls`."""
DEVICE = record("device", "flags", "ifindex", "mac", "mtu", "source_ipv4", "source_ipv6")
_PIN = re.compile(r"(tc_ingress|tc_egress|xdp_native|xdp_generic)-(\d+)")
_RTMGRP_LINK, _RTMGRP_ADDRESSES, _RTMGRP_ROUTES = 0x1, 0x110, 0x440  # of both families
_RTMGRP_TC, _RTMGRP_NEIGH = 0x8, 0x4
_RTM_DELLINK = 17
_CHANGES = _RTMGRP_LINK | _RTMGRP_ADDRESSES | _RTMGRP_ROUTES
_DEBOUNCE_SECONDS = 0.05
_LOOK_SECONDS = 30.0
"""Interval of full refreshes: settings of devices (rp_filter) change without a notification."""
_KEEP_SECONDS = 10.0
"""How long a device that is up keeps its programs without an address or route that asks for them."""

_LARGEST_PACKET = 0xFFFF
"""Bytes; a device with a larger MTU, or with MTU 0 as lo may have, limits no packet."""


class PacketHook:
    """Attaches tc to every device where clients' packets arrive, and XDP to the uplinks. See programs.Hook.

    selection: see devices.DeviceSelection. xdp: attach XDP too. XDP needs tc, which handles the packets that XDP passes
    (listed at the top of bpf/xdp.c), so there is no hook of XDP alone. tcx: False forces clsact. xdp_modes: modes to
    try, in this order. host: who goes past the node's stack; None = nobody, and no program looks for it.

    New devices are picked up by `refresh`, which `watch` calls whenever links, addresses or routes change.
    """

    def __init__(
        self,
        selection: DeviceSelection | None = None,
        *,
        xdp: bool = True,
        tcx: bool = True,
        xdp_modes: tuple[str, ...] = ("native", "generic"),
        host: HostRouting | None = None,
    ) -> None:
        self.name = "xdp" if xdp else "tc"
        self._selection, self._xdp, self._tcx, self._modes = selection or DeviceSelection(), xdp, tcx, xdp_modes
        self.host = host
        self._usable: frozenset[int] = frozenset()
        self._maps: MapSet | None = None
        self._pins: PinDirectory | None = None
        self._ports: PortSplit | None = None
        self._programs: dict[str, Program] = {}
        self._status: dict[int, DeviceStatus] = {}
        self._devices: dict[int, Device] = {}
        self._idle: dict[int, float] = {}
        self._sources: dict[int, tuple[str, str]] = {}
        self._mtus: dict[int, int] = {}
        self._described: dict[int, tuple[int, int, bytes]] = {}
        self._written: dict[int, bytes] = {}
        self._begun = self._forwarding = False
        self._xdp_calls: str | None = None
        self._lock = threading.Lock()
        self.instructions: dict[str, int] = {}

    def attach(self, maps: MapSet, pins: PinDirectory) -> None:
        """See Hook.attach. Attaches to the devices of the current network namespace, now and in `refresh`. The programs
        begin to work when all devices have theirs: a flow's answers may come in by another device than its requests."""
        with self._lock:
            old = self._programs
            self._maps, self._pins, self._programs = maps, pins, {}
            try:
                self._forget()
                self._ports = PortSplit(maps)
                self._ports.load()
                reserve_once(maps, pins)
                if self.host is not None and not redirects_to_peers():
                    self._without_host("this kernel cannot redirect packets into pods")
                if maps.node()["tunnel_port"]:
                    self._bring_forwarding()
                self._refresh(begins=True)
            finally:
                _close(old)

    def prepare(self, maps: MapSet, addresses: Collection[str]) -> None:
        """See Hook.prepare."""
        loaded = Loaded(maps)
        devices = choose_devices(read_network(), addresses, self._selection)
        wanted = {(TC_SOURCE, "RAW_IP" if device.raw_ip else "") for device in devices}
        if self.host is not None and any(not device.raw_ip for device in devices):
            wanted.add((HOST_SOURCE, ""))
        if self._xdp:
            wanted |= {(XDP_SOURCE, "NO_XDP_TX" if device.veth else "") for device in devices if device.xdp}
        with ThreadPoolExecutor(max(1, len(wanted))) as threads:
            found = [threads.submit(_loaded, source, define, maps, loaded) for source, define in wanted]
        for each in found:
            for program in each.result().values() if each.exception() is None else ():
                loaded.ahead(program.known, program.fd)
        refused = [error for each in found if (error := each.exception()) is not None]
        if refused:
            raise refused[0]

    def _load(self, source: str, define: str) -> None:
        if self._maps is None or self._pins is None:
            raise PlaneError("packet programs: attach comes first")
        try:
            found = _loaded(source, define, self._maps, Loaded(self._maps, self._pins))
        except BpfError as error:
            raise PlaneError(f"packet programs of {source}: {error.strerror}") from error
        suffix = f"/{define.lower()}" if define else ""
        self._programs |= {name + suffix: program for name, program in found.items()}
        self.instructions |= {name + suffix: program.instructions for name, program in found.items()}

    def _variant(self, source: str, name: str, define: str) -> Program:
        """Return a program compiled with a macro defined ("" = none), loaded at its first use."""
        suffix = f"/{define.lower()}" if define else ""
        if name + suffix not in self._programs:
            self._load(source, define)
        return self._programs[name + suffix]

    def forward(self) -> None:
        """See Hook.forward."""
        with self._lock:
            if self._maps is not None:
                self._bring_forwarding()

    def _bring_forwarding(self) -> None:
        """Let the program of Services find those for packets between nodes, and the other way round."""
        programs = {number: self._variant(FORWARD_SOURCE, name, "") for name, number in FORWARD_PROGRAMS.items()}
        programs[PROGRAM_SERVICES] = self._variant(TC_SOURCE, "tc_ingress", "")
        for number, program in programs.items():
            self._call(number, program.fd)
        self._forwarding = True
        for device in self._devices.values():
            if self._status[device.ifindex].xdp:
                self._bring_xdp_forwarding("NO_XDP_TX" if device.veth else "")

    def _bring_xdp_forwarding(self, define: str) -> None:
        """Let XDP find its programs for packets between nodes, if there are any. Those that work on every device stay
        (NO_XDP_TX)."""
        if not self._forwarding or self._maps is None or self._xdp_calls in (define, "NO_XDP_TX"):
            return
        for name, number in XDP_FORWARD_PROGRAMS.items():
            program = self._variant(XDP_FORWARD_SOURCE, name, define).fd
            self._maps.put("xdp_calls", number.to_bytes(4, "little"), program.to_bytes(4, "little"))
        self._xdp_calls = define

    def _call(self, number: int, program: int) -> None:
        """Put a program (descriptor) where others call it."""
        if self._maps is not None:
            self._maps.put("tail_calls", number.to_bytes(4, "little"), program.to_bytes(4, "little"))

    def refresh(self) -> list[DeviceStatus]:
        """Attach to new devices and drop deleted ones. Returns `status`. Raises PlaneError."""
        with self._lock:
            self._refresh()
            return list(self._status.values())

    def _refresh(self, *, begins: bool = False) -> None:
        """begins: have the programs work once they are attached, before host routing asks what the stack had so far."""
        if self._maps is None or self._pins is None:
            raise PlaneError("packet programs: attach comes first")
        network, primary = read_network(), self._primary_addresses()
        self._sources = source_addresses(network, primary)
        self._mtus = {link.ifindex: link.mtu if link.mtu <= _LARGEST_PACKET else 0 for link in network.links}
        found = {d.ifindex: d for d in choose_devices(network, primary, self._selection)}
        back = self._idle.keys() & found.keys()
        for index in self._left(network, found.keys()):
            self._remove(index)
        new = [device for index, device in found.items() if self._devices.get(index) != device or index in back]
        came = any(device.ifindex not in self._devices for device in new)
        with_clsact = clsact.devices() if new else frozenset()
        for device in new:
            self._bring(device, clsact_there=device.ifindex in with_clsact)
        if begins:
            write_ready(self._maps, True)
        try:
            self._look(network, came=came)
        except PlaneError:
            if not begins:
                raise
            self._usable = frozenset()  # by the stack, then; the next look tells why, if it fails as well
        known = self._devices.keys() | self._sources.keys()
        for index in known:
            self._write(index)
        stale = {int.from_bytes(key, "little") for key, _ in self._maps.items("devices")} - known
        self._maps.remove("devices", [index.to_bytes(4, "little") for index in stale])
        for index in stale:
            self._written.pop(index, None)

    def _left(self, network: Network, chosen: Collection[int]) -> list[int]:
        """Devices with programs that need none any more: those that are gone, and those that have been up without a
        role for a while. Who sets up an uplink anew takes it down or its addresses away for a moment, and without the
        programs its connections would meet the stack, which resets what it does not know."""
        up = {link.ifindex: link.up for link in network.links}
        now = time.monotonic()
        idle = [index for index in self._devices if index not in chosen]
        self._idle = {index: self._idle.get(index, now) if up.get(index) else now for index in idle}
        return [i for i, since in self._idle.items() if i not in up or now - since > _KEEP_SECONDS]

    def _look(self, network: Network, *, came: bool) -> None:
        """Have host routing look at the devices. came: there are new ones among them."""
        if self.host is None or self._maps is None:
            return
        if not self._begun:
            self.host.begin(self._maps, self._program_ids, self.refresh)
            self._begun = True
        self._usable = self.host.look(network, list(self._devices.values()), new=came)

    def _program_ids(self) -> frozenset[int]:
        return frozenset(bpf.program_info(program.fd).id for program in self._programs.values())

    def _primary_addresses(self) -> set[str]:
        if self._maps is None:
            return set()
        node = self._maps.node()
        raw = (node["masquerade_ipv4"], node["masquerade_ipv6"])
        return {address_text(value) for value in raw if isinstance(value, bytes) and any(value)}

    def _bring(self, device: Device, *, clsact_there: bool) -> bool:
        """Have a device carry its programs. Returns False for one that was deleted since it was looked at."""
        try:
            self._put(device, clsact_there=clsact_there)
        except PlaneError:
            if _is_there(device.ifindex):
                raise
            self._remove(device.ifindex)
            return False
        self._devices[device.ifindex] = device
        return True

    def _put(self, device: Device, *, clsact_there: bool) -> None:
        """Describe one device in the map and attach its programs; XDP last, since it relies on tc. clsact_there: see
        attach_tc."""
        maps, pins = self._maps, self._pins
        if maps is None or pins is None:
            raise PlaneError("packet programs: attach comes first")
        self._describe(device, 0)
        define = "RAW_IP" if device.raw_ip else ""
        programs = {name: self._variant(TC_SOURCE, name, define).fd for name in DIRECTIONS}
        if not device.raw_ip:
            programs["tc_ingress"] = self._first_program(programs["tc_ingress"])
        xdp, problem = "", veth_problem() if self._xdp and device.xdp and device.veth else ""
        try:
            tc = attach_tc(device.ifindex, programs, pins, tcx=self._tcx, clsact_there=clsact_there)
        except (BpfError, ClsactError) as error:
            raise PlaneError(f"packet programs on {device.name}: {error}") from error
        if problem:
            problem = f"XDP on {device.name}: {problem}; tc does its work there"
        elif self._xdp and device.xdp:
            program = self._variant(XDP_SOURCE, PROGRAM, "NO_XDP_TX" if device.veth else "")
            self._bring_xdp_forwarding("NO_XDP_TX" if device.veth else "")
            try:
                xdp, refusal = attach_xdp(device.ifindex, program.fd, pins, self._modes)
                problem = f"XDP on {device.name} is {xdp}, which is slower; {refusal}" if refusal else ""
                self._describe(device, XDP_TARGET)
            except BpfError as error:
                problem = f"XDP on {device.name}: {error.strerror}; tc does its work there"
        self._status[device.ifindex] = DeviceStatus(device.name, device.ifindex, roles(device.flags), tc, xdp, problem)

    def _first_program(self, services: int) -> int:
        """Return the program for packets that come in: that of Services (descriptor); with host routing the one that
        looks for packets past the stack, and calls that of Services for others, which calls it in turn. If it cannot
        be loaded all packets go by the stack, as without it."""
        if self.host is not None and HOST_PROGRAM not in self._programs:
            try:
                self._load(HOST_SOURCE, "")
            except (PlaneError, CompileError) as error:
                self._without_host(str(error).partition("\n")[0])  # without the verifier's log
            else:
                self._call(PROGRAM_HOST, self._programs[HOST_PROGRAM].fd)
                self._call(PROGRAM_SERVICES, services)
        return services if self.host is None else self._programs[HOST_PROGRAM].fd

    def _without_host(self, why: str) -> None:
        """Do without host routing from here on."""
        if self.host is not None:
            self.host.refuse(why)
            self.host = None

    def _describe(self, device: Device, more: int) -> None:
        if self._maps is not None:
            flags = device.flags | more | (RAW_IP if device.raw_ip else 0)
            self._described[device.ifindex] = (flags, device.routed, device.mac)
            self._write(device.ifindex)

    def _write(self, index: int) -> None:
        """Write a device's entry of the map if it changed. A device without programs only has its addresses and MTU."""
        flags, routed, mac = self._described.get(index, (0, index, bytes(6)))
        flags |= HOST_ROUTING if index in self._usable else 0
        sources = (address_bytes(text) if text else bytes(16) for text in self._sources.get(index, ("", "")))
        value = DEVICE.pack(flags, routed, *mac, self._mtus.get(index, 0), *sources)
        if self._maps is not None and self._written.get(index) != value:
            self._maps.put("devices", index.to_bytes(4, "little"), value)
            self._written[index] = value

    def _remove(self, index: int) -> None:
        """Detach from a device that was deleted or is no longer selected."""
        self._status.pop(index, None)
        self._devices.pop(index, None)
        self._idle.pop(index, None)
        self._described.pop(index, None)
        if self._pins is None:
            return
        detach_xdp(index, self._pins)
        detach_tc(index, self._pins)
        for name in (*DIRECTIONS, "xdp_native", "xdp_generic"):
            self._pins.wanted_links.discard(f"{name}-{index}")
        if any(link.ifindex == index for link in read_network().links):
            clsact.detach(index)

    def mend(self) -> list[str]:
        """See Hook.mend."""
        with self._lock:
            if self._pins is None:
                return []
            present = {index for index, _ in socket.if_nameindex()}
            lost = lost_programs([each for each in self._status.values() if each.ifindex in present], self._pins)
            found = []
            for index, names in lost.items():
                device = self._devices[index]
                if self._bring(device, clsact_there=True):
                    found += [f"program {name} on {device.name}" for name in names]
            return [*found, *(self._ports.mend() if self._ports is not None else ())]

    def status(self) -> list[DeviceStatus]:
        """Return the programs of each device, ordered by ifindex."""
        with self._lock:
            return [self._status[index] for index in sorted(self._status)]

    def detach(self, pins: PinDirectory) -> None:
        """See Hook.detach. Detaches XDP before tc, on which it relies."""
        with self._lock:
            indices = {int(match[2]) for name in pins.links() if (match := _PIN.fullmatch(name))}
            for index in indices:
                detach_xdp(index, pins)
            for index in indices:
                detach_tc(index, pins)
            for link in read_network().links:
                clsact.detach(link.ifindex)
            join_ports()
            self._close()

    def close(self) -> None:
        """See Hook.close."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        _close(self._programs)
        self._programs, self._maps, self._pins = {}, None, None
        self._status.clear()
        self._forget()

    def _forget(self) -> None:
        """Clear what is known of devices, before new maps are used."""
        if self._ports is not None:
            self._ports.close()
            self._ports = None
        self._begun, self._usable = False, frozenset()
        self._forwarding, self._xdp_calls = False, None
        if self.host is not None:
            self.host.close()
        self._devices.clear()
        self._described.clear()
        self._written.clear()

    def watch(self, faults: Faults | None = None) -> "DeviceWatch":
        """Attach to new devices in a thread, until `close` of the returned object (a context manager). faults: told of
        what fails there."""
        return DeviceWatch(self, faults)


def _loaded(source: str, define: str, maps: MapSet, loaded: Loaded) -> dict[str, Program]:
    """Load the programs of a file, compiled with a macro defined ("" = none)."""
    flags = [f"-D{define}=1"] if define else []
    if source in (XDP_SOURCE, XDP_FORWARD_SOURCE):
        attach = dict.fromkeys((PROGRAM,) if source == XDP_SOURCE else tuple(XDP_FORWARD_PROGRAMS), AttachType.XDP)
        return load_programs(source, ProgramType.XDP, attach, maps.fds, maps.specs, flags, loaded=loaded)
    found = {HOST_SOURCE: (HOST_PROGRAM,), FORWARD_SOURCE: tuple(FORWARD_PROGRAMS)}.get(source, DIRECTIONS)
    names = dict.fromkeys(found, AttachType.NONE)
    return load_programs(source, ProgramType.SCHED_CLS, names, maps.fds, maps.specs, flags, loaded=loaded)


def _is_there(index: int) -> bool:
    """True if the current network namespace has a device with this ifindex."""
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True


def _close(programs: dict[str, Program]) -> None:
    for program in programs.values():
        os.close(program.fd)


_FOLLOW = "follow this node's devices"


class DeviceWatch(Resource):
    """A thread that calls `refresh` of a hook when links, addresses or routes change in the network namespace in which
    this object was made; where there is host routing, also when queueing disciplines, filters and neighbours do, and
    renews its lease. problems: errors so far, newest last; faults: told of them."""

    def __init__(self, hook: PacketHook, faults: Faults | None = None) -> None:
        self._hook, self._faults = hook, faults or Faults(ignore)
        self.problems: list[str] = []
        self._changes = Notifications(_CHANGES | (_RTMGRP_TC if hook.host is not None else 0))
        self._neighbours = Notifications(_RTMGRP_NEIGH if hook.host is not None else 0)
        self._end, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._work, daemon=True, name="devices")
        self._thread.start()

    def close(self) -> None:
        """End the thread; may be called twice."""
        if self._thread.is_alive():
            os.write(self._wake, b"x")
            self._thread.join()
            self._changes.close()
            self._neighbours.close()
            os.close(self._wake)
            os.close(self._end)

    def _work(self) -> None:
        sources = [self._changes.fileno(), self._neighbours.fileno(), self._end]
        pause = _LOOK_SECONDS if self._hook.host is None else RENEW_SECONDS
        looked = time.monotonic()
        while self._end not in (heard := readable(sources, pause)):
            if not self._concerns(heard) and time.monotonic() - looked < _LOOK_SECONDS:
                self._try(self._renew, "keep its lease of host routing")
                continue
            if readable([self._end], _DEBOUNCE_SECONDS):  # notifications come in bursts
                return
            self._changes.drain()
            looked = time.monotonic()
            self._try(self._hook.refresh, _FOLLOW)

    def _concerns(self, heard: Collection[int]) -> bool:
        """True if what was heard may change something."""
        if self._neighbours.fileno() in heard and self._hook.host is not None:
            for kind, body in self._neighbours.messages():
                news = neighbour_news(kind, body)
                if kind == LOST or (news is not None and self._hook.host.is_news(news)):
                    return True
        if self._changes.fileno() not in heard:
            return False
        for kind, body in self._changes.messages():
            if kind == _RTM_DELLINK and self._hook.host is not None:
                (ifindex,) = struct.unpack_from("=i", body, 4)  # struct ifinfomsg
                self._try(partial(self._hook.host.gone, ifindex), "forget a device that is gone")
        return True

    def _renew(self) -> None:
        if self._hook.host is not None:
            self._hook.host.renew()

    def _try(self, work: Callable[[], object], what: str) -> None:
        """what: the work, in words."""
        try:
            work()
        except (HotplaneError, OSError, NetlinkError, CompileError) as error:  # whatever it is, devices are followed
            self.problems.append(str(error))
            self._faults.failed(what, f"the {self._hook.name} hook cannot {what}: {error}")
        else:
            self._faults.worked(what, f"the {self._hook.name} hook can {what} again")
