"""IPv6 datagrams with extension headers, made by hand, between a client and a pod, and what became of each."""

import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import NamedTuple

from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.packet import Packet, Raw

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.model.net import Family
from tests.kernel.packet_lab import in_order

ELSEWHERE = "fd00:198:51:100::99"
"""In routing headers; there is no such host."""
PATIENCE, QUIET = 60.0, 0.05
"""Seconds for the last packet of many to come, and for what it may have overtaken."""
SIZE = 8
"""Of what says in every fragment which question or answer it is of."""
Header = Callable[[str], Packet]
"""Makes an extension header of a packet to this address."""
Maker = Callable[[Packet], list[Packet]]
"""Makes of a plain datagram the packets that are sent."""


def _option(_to: str) -> Packet:
    return IPv6ExtHdrDestOpt()


def _hop_by_hop(_to: str) -> Packet:
    return IPv6ExtHdrHopByHop()


def _whole(_to: str) -> Packet:
    return IPv6ExtHdrFragment(id=7)


def _routing(kind: int, left: int) -> Header:
    return lambda _to: IPv6ExtHdrRouting(type=kind, addresses=[ELSEWHERE], segleft=left)


def _segments(left: int) -> Header:
    """Segment routing (RFC 8754), whose list is in reverse order."""
    return lambda to: IPv6ExtHdrSegmentRouting(addresses=[ELSEWHERE, to][1 - left :], segleft=left, lastentry=left)


def _behind(*headers: Header) -> Maker:
    def make(plain: Packet) -> list[Packet]:
        made = IPv6(src=plain.src, dst=plain.dst)
        for header in headers:
            made /= header(plain.dst)
        return [made / plain[UDP]]

    return make


def _authenticated(plain: Packet) -> list[Packet]:
    """Behind an authentication header (RFC 4302), which nobody checks."""
    header = struct.pack("!BBHII", socket.IPPROTO_UDP, 2, 0, 77, 1) + bytes(4)
    return [IPv6(src=plain.src, dst=plain.dst, nh=socket.IPPROTO_AH) / Raw(header + bytes(plain[UDP]))]


def _cut(*, before: bool = False, inside: bool = False, turned: bool = False) -> Maker:
    """Two fragments, with an option before the fragment header or in what is cut; turned: the second comes first."""

    def make(plain: Packet) -> list[Packet]:
        head = IPv6(src=plain.src, dst=plain.dst)
        if before:
            head /= IPv6ExtHdrDestOpt()
        data, protocol = bytes(plain[UDP]), socket.IPPROTO_UDP
        if inside:
            data, protocol = bytes(IPv6ExtHdrDestOpt(nh=protocol)) + data, socket.IPPROTO_DSTOPTS
        number = plain[UDP].sport << 16 | plain[UDP].dport
        middle = len(data) // 16 * 8
        pieces = [
            head / IPv6ExtHdrFragment(nh=protocol, id=number, offset=at // 8, m=more) / Raw(data[at : at + middle + 8])
            for at, more in ((0, 1), (middle, 0))
        ]
        pieces[0] = head / IPv6ExtHdrFragment(nh=protocol, id=number, m=1) / Raw(data[:middle])
        return pieces[::-1] if turned else pieces

    return make


def _plain(plain: Packet) -> list[Packet]:
    return [plain]


PLAIN: Mapping[str, Maker] = {}
"""Of every kind, a plain datagram."""
KINDS: Mapping[str, Maker] = {
    "hop-by-hop": _behind(_hop_by_hop),
    "destination": _behind(_option),
    "many": _behind(_hop_by_hop, _option, _routing(0, 0), _whole, _option),
    "routing 0, at its end": _behind(_routing(0, 0)),
    "routing 0, on its way": _behind(_routing(0, 1)),
    "routing 2, on its way": _behind(_routing(2, 1)),
    "segments, at their end": _behind(_segments(0)),
    "segments, on their way": _behind(_segments(1)),
    "authenticated": _authenticated,
    "fragments": _cut(),
    "fragments behind options": _cut(before=True),
    "fragments of options": _cut(inside=True),
    "fragments of options, turned": _cut(inside=True, turned=True),
    "plain": _plain,
}
"""The last one shows that those before it have passed."""
TOO_MANY: Mapping[str, Maker] = {"too many": _behind(*[_option] * 9), "plain": _plain}
"""More headers than the programs read."""


class Seen(NamedTuple):
    """What became of a question of one kind and the answer to it, of the same kind. asked: whether it came to the pod,
    and to its socket. answered: from whom the answer came, and whether to the client's socket. refused: from whom ICMP
    errors came. Addresses are names."""

    asked: tuple[bool, bool]
    answered: tuple[frozenset[str], bool]
    refused: frozenset[str]


class Heard(NamedTuple):
    """An IPv6 packet that came in."""

    source: str
    next_header: int
    data: bytes


class Ends:
    """A client and a pod that a frontend leads it to.

    client, pod: places. frontend, port: the frontend's address and port, and the pod's port.
    """

    def __init__(self, lab: Lab, client: str, frontend: tuple[str, int], pod: str, port: int) -> None:
        self.lab, self.client, self.frontend, self.pod, self.port = lab, client, frontend, pod, port
        self.addresses = {place: lab.place(place).addresses[Family.IPV6] for place in (client, pod)}
        self.names = {node.addresses[Family.IPV6]: node.name for node in lab.nodes}
        self.names |= {self.addresses[client]: "client", self.addresses[pod]: "pod", frontend[0]: "frontend"}

    def exchange(self, first: int, ask: Mapping[str, Maker], answer: Mapping[str, Maker]) -> dict[str, Seen]:
        """Send a question of each kind in `answer`, as `ask` has it or plain, from the port `first` and those behind
        it, and an answer of that kind to whom it came from."""
        ports = {name: first + number for number, name in enumerate(answer)}
        with ExitStack() as stack:
            ears = {place: stack.enter_context(self._ear(place)) for place in (self.client, self.pod)}
            server = stack.enter_context(self._socket(self.pod, self.port))
            clients = {name: stack.enter_context(self._socket(self.client, at)) for name, at in ports.items()}
            for sock in clients.values():
                sock.connect(self.frontend)
            for name, at in ports.items():
                question = _datagram(self.addresses[self.client], at, *self.frontend, "Q", at)
                self._send(self.client, ask.get(name, _plain)(question))
            heard = _heard(ears[self.pod], _mark("Q", ports["plain"]))
            came = {name: self._asker(heard, at) for name, at in ports.items()}
            taken = {data[:SIZE] for data in _received(server)}
            for name, at in ports.items():
                if asker := came[name]:
                    datagram = _datagram(self.addresses[self.pod], self.port, *asker, "A", at)
                    self._send(self.pod, answer[name](datagram))
            back = _heard(ears[self.client], _mark("A", ports["plain"]))
            return {
                name: Seen(
                    (came[name] is not None, _mark("Q", at) in taken),
                    (self._senders(back, at, icmp=False), bool(_received(clients[name]))),
                    self._senders(back, at, icmp=True),
                )
                for name, at in ports.items()
            }

    def _ear(self, place: str) -> socket.socket:
        with netns(self.lab.place(place).netns):
            made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD))
        made.bind(("eth0", 0x86DD))
        return made

    def _socket(self, place: str, port: int) -> socket.socket:
        with netns(self.lab.place(place).netns):
            made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        made.bind(("::", port))
        made.setblocking(False)
        return made

    def _send(self, place: str, packets: list[Packet]) -> None:
        with netns(self.lab.place(place).netns):
            raw = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw, in_order():
            for packet in packets:
                raw.sendto(bytes(packet), (packet.dst, 0))

    def _asker(self, heard: list[Heard], number: int) -> tuple[str, int] | None:
        """Address and port that a question came from; its mark follows the UDP header."""
        for packet in heard:
            at = packet.data.find(_mark("Q", number))
            if at >= 48 and packet.data[at - 6 : at - 4] == struct.pack("!H", self.port):
                return packet.source, int.from_bytes(packet.data[at - 8 : at - 6], "big")
        return None

    def _senders(self, heard: list[Heard], number: int, *, icmp: bool) -> frozenset[str]:
        mark = _mark("Q" if icmp else "A", number)
        found = (p.source for p in heard if (p.next_header == socket.IPPROTO_ICMPV6) == icmp and mark in p.data)
        return frozenset(self.names.get(source, source) for source in found)


def _mark(kind: str, number: int) -> bytes:
    return f"{kind}{number}".encode().ljust(SIZE, b".")


def _datagram(source: str, source_port: int, to: str, port: int, kind: str, number: int) -> Packet:
    body = UDP(sport=source_port, dport=port) / Raw(_mark(kind, number) * 25)
    return IPv6(bytes(IPv6(src=source, dst=to) / body))


def _heard(ear: socket.socket, last: bytes) -> list[Heard]:
    """What came in since the last call, until a packet with this in it has come."""
    found: list[Heard] = []
    ear.settimeout(PATIENCE)
    while True:
        try:
            data, (_, _, kind, *_) = ear.recvfrom(1 << 16)
        except TimeoutError:
            return found
        if last in data:
            ear.settimeout(QUIET)
        if kind == socket.PACKET_HOST:
            found.append(Heard(socket.inet_ntop(socket.AF_INET6, data[8:24]), data[6], data))


def _received(sock: socket.socket) -> list[bytes]:
    """What a socket has; ICMP errors about what it sent are passed over."""
    found = []
    while True:
        try:
            found.append(sock.recv(4096))
        except BlockingIOError:
            return found
        except OSError:
            continue
