"""`hotplane monitor --pcap`: write refused packets to a file, and tell of each."""

import argparse
import contextlib
import ipaddress
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from ctl.output import NotCounted, notify
from ctl.pcapng import PcapngWriter
from ctl.progress import waiting
from dataplane.errors import HotplaneError, UsageError
from dataplane.model.net import Family, Protocol, host_port
from dataplane.plan.types import FrontendKey
from dataplane.planes.captures import Captured, Link
from dataplane.planes.decisions import Decision, Kind

if TYPE_CHECKING:
    from dataplane.planes.base import Plane
    from dataplane.planes.captures import CaptureStream

_POLL_SECONDS = 0.25
_IPV4_TYPE, _IPV6_TYPE, _VLAN_TYPES = 0x0800, 0x86DD, (0x8100, 0x88A8)
_ETHERNET, _TYPES = 12, 2
_HEADERS = {4: (20, slice(12, 16), slice(16, 20), 9), 6: (40, slice(8, 24), slice(24, 40), 6)}
"""By the version of IP: bytes of the header at least, where the addresses are, and where the protocol."""

Print = Callable[[Decision], None]


def capture(args: argparse.Namespace, plane: "Plane", wanted: Callable[[Decision], bool], show: Print) -> int:
    """Write what is refused until interrupted, or as much or as long as asked. wanted: what to keep; show: called for
    each packet that was written, unless packets go to standard output. Raises HotplaneError."""
    with _ended_in_order(), _begun(plane, args.snaplen) as stream:
        hooks = _hooks_of(stream, args.hook, plane.name)
        services = {key: row.service for key, row in plane.read_back().items()}
        _write(args, stream, services, lambda each: (not hooks or each.hook in hooks) and wanted(each), show)
    return 0


def _begun(plane: "Plane", snap: int) -> "CaptureStream":
    """Begin a plane's capture. Raises HotplaneError."""
    stream = plane.capture(snap)
    if stream is None:
        raise NotCounted(
            f"monitor --pcap: nothing can be captured in {plane.name} mode: no rule or program of its own hands "
            "refused packets over; show drops counts them, tcpdump -i any host ADDRESS shows a client's"
        )
    return stream


def _hooks_of(stream: "CaptureStream", asked: Sequence[str], mode: str) -> set[str]:
    """The values of Captured.hook for the hooks asked for. Raises UsageError for one that nothing is captured at."""
    for hook in asked:
        if hook not in stream.hooks:
            can = f"choose of {', '.join(stream.hooks)}" if stream.hooks else "leave it out"
            raise UsageError(f"--pcap: {mode} mode has no packets to capture at --hook {hook}; {can}")
    return {name for hook in asked for name in stream.hooks[hook]}


def _write(
    args: argparse.Namespace,
    stream: "CaptureStream",
    services: "dict[FrontendKey, str]",
    wanted: Callable[[Decision], bool],
    show: Print,
) -> None:
    with _file(args.pcap) as out:
        for sentence in stream.left_out:
            notify(f"not captured: {sentence}")
        waiting("waiting for refused packets")
        writer = PcapngWriter(out, args.snaplen)
        written = 0
        for packet in _packets(stream, args.seconds):
            decision = decision_of(packet, services)
            if not wanted(decision):
                continue
            comment = f"{packet.hook}: {packet.reason}: {packet.fate}"
            comment += f" ({decision.service})" if decision.service else ""
            writer.packet(packet.ns, packet.device, packet.link, packet.data, packet.length, comment)
            if args.pcap != "-":
                show(decision)
            written += 1
            if args.count and written >= args.count:
                break
        if stream.lost:
            notify(f"packets were lost {stream.lost} times: they came faster than they could be written")


def _packets(stream: "CaptureStream", seconds: float) -> "Iterator[Captured]":
    deadline = time.monotonic() + seconds if seconds else None
    while deadline is None or time.monotonic() < deadline:
        yield from stream.poll(_POLL_SECONDS)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Meanwhile SIGTERM ends the command as Ctrl-C does, so that nothing of the capture is left in the kernel."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _file(name: str) -> Iterator[BinaryIO]:
    """The file to write, - for standard output. Packets are private: nobody else may read a new one."""
    if name == "-":
        yield sys.stdout.buffer
        return
    try:
        file = os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")
    except OSError as error:
        raise HotplaneError(f"--pcap {name}: cannot be written: {error.strerror}; choose another file") from error
    with file:
        yield file


def decision_of(packet: Captured, services: "dict[FrontendKey, str]") -> Decision:
    """A captured packet as monitor tells of decisions. services: of frontends, by their keys."""
    source, destination, protocol, service = "", "", "", ""
    ends = _ends(_network_header(packet))
    if ends is not None:
        (address, port), (to, to_port), number = ends
        source, destination = host_port(address, port), host_port(to, to_port)
        known = {each.value: each for each in Protocol}
        protocol = known[number].text if number in known else str(number)
        if number in known:
            family = Family.IPV6 if ":" in to else Family.IPV4
            keys = (FrontendKey(family, place, known[number], to_port) for place in (to, ""))
            service = next((services[key] for key in keys if key in services), "")
    seconds = packet.ns / 1e9 - (time.time() - time.monotonic())
    return Decision(
        round(seconds, 6), packet.hook, packet.reason, protocol, source, destination, service, "", packet.ifindex,
        packet.length, Kind.REFUSED, packet.fate,
    )  # fmt: skip


def _network_header(packet: Captured) -> bytes:
    """The packet from its IP header on; nothing if it is none of IP."""
    data = packet.data
    if packet.link is Link.RAW:
        return data
    at = _ETHERNET
    while int.from_bytes(data[at : at + _TYPES], "big") in _VLAN_TYPES:
        at += 4
    kind = int.from_bytes(data[at : at + _TYPES], "big")
    return data[at + _TYPES :] if kind in (_IPV4_TYPE, _IPV6_TYPE) else b""


def _ends(data: bytes) -> tuple[tuple[str, int], tuple[str, int], int] | None:
    """Source, destination (address and port) and protocol of an IP packet; ports are 0 where it has none. None for what
    is cut too short."""
    version = data[0] >> 4 if data else 0
    if version not in _HEADERS or len(data) < _HEADERS[version][0]:
        return None
    least, source, destination, at = _HEADERS[version]
    head, number = (data[0] & 15) * 4 if version == 4 else least, data[at]
    ports = (0, 0)
    if number in {each.value for each in Protocol} and len(data) >= head + 4:
        ports = int.from_bytes(data[head : head + 2], "big"), int.from_bytes(data[head + 2 : head + 4], "big")
    addresses = (str(ipaddress.ip_address(data[where])) for where in (source, destination))
    (one, other) = addresses
    return (one, ports[0]), (other, ports[1]), number
