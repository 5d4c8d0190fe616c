"""A TCP connection through the node: two ends (ends.py), and the packets before and behind the programs.

A packet is lost, sent twice or overtaken by others where the driver says so, on either side of the node. Of an
aggregate the programs are given its last part: where it begins makes no difference to them."""

import socket
import struct
from typing import NamedTuple

from dataplane.kernel.ebpf import bpf
from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.entries import flow_key
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import constant, fields_of
from dataplane.planes.ebpf.views.events import TUPLE
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench
from tests.kernel.bpf_packets.ends import ACK, RST, SYN, End, Segment, State, after

SNAT_PORT, CLIENT_PORT, REMOTE_PORT, LOCAL_PORT, TARGET = 61000, 4000, 30080, 30081, 8080
_SHOWN = 100
_CONTEXT, _IFINDEX_AT = 192, 40
_FLAGS_AT, _NOTED_AT = fields_of("translation")["flags"], fields_of("translation")["noted"]
_NAMES = ("SEEN_REPLY", "ESTABLISHED", "FIN_FORWARD", "FIN_REPLY", "RST_FORWARD", "RST_REPLY", "RESTING")
_BITS = {name: constant(f"FLOW_{name}") for name in _NAMES}


class Ends(NamedTuple):
    """Addresses and ports as one side of the node sees them: the client's side, or the backend's."""

    near: tuple[str, int]
    node: tuple[str, int]


class Between:
    """The connection. remote: its backend is on another node, else a pod of this one.

    before[who], behind[who]: segments that an end (True: the client) has sent, before and behind the node.
    came_to[who], acknowledged[who]: highest numbers that the programs have seen of its segments, injected ones apart.
    """

    def __init__(self, node: Bench, family: Family, remote: bool, client: int, backend: int) -> None:
        own, client_address, target, pod = (
            (b.NODE, b.CLIENT, b.REMOTE, b.POD)
            if family is Family.IPV4
            else (b.NODE_6, b.CLIENT_6, b.REMOTE_6, b.POD_6)
        )
        self._node, self._family, self.remote = node, family, remote
        self._outside = Ends((client_address, CLIENT_PORT), (own, REMOTE_PORT if remote else LOCAL_PORT))
        self._inside = (
            Ends((target, TARGET), (own, SNAT_PORT)) if remote else Ends((pod, TARGET), (client_address, CLIENT_PORT))
        )
        self._keys = [_key(ends) for ends in (self._outside, self._inside)]
        self.ends = {True: End(client, State.CLOSED), False: End(backend, State.LISTEN)}
        self.before: dict[bool, list[Segment]] = {True: [], False: []}
        self.behind: dict[bool, list[Segment]] = {True: [], False: []}
        self.came_to: dict[bool, int | None] = {True: None, False: None}
        self.acknowledged: dict[bool, int | None] = {True: None, False: None}
        self.opened = False

    def collect(self) -> None:
        """Put what the ends send on the way to the node."""
        for who, end in self.ends.items():
            self.before[who] += end.out
            end.out = []

    def pass_node(self, who: bool, index: int, copy: bool = False) -> Segment:
        """One of an end's segments comes to the node; out: it. A SYN is never overtaken, so that none is left to come
        after the connection."""
        queue = self.before[who]
        index = next((i for i, segment in enumerate(queue) if segment.flags & (SYN | RST)), index % len(queue))
        segment = queue[index]
        if not copy:
            del queue[index]
        if self.translated(who, segment):
            self.opened = True
            self._learn(who, segment)
            self.behind[who].append(segment)
        elif segment.flags & ACK and not segment.flags & RST:
            self.behind[not who].append(Segment(segment.ack, 0, RST))  # from the node's own stack
        return segment

    def deliver(self, who: bool, index: int, copy: bool = False) -> None:
        """A segment of an end behind the node comes to the other end."""
        queue = self.behind[who]
        index %= len(queue)
        segment = queue[index]
        if not copy:
            del queue[index]
        self.ends[not who].receive(segment)
        self.collect()

    def translated(self, who: bool, segment: Segment) -> bool:
        """Give a segment to the programs; out: whether they sent it on to the other end."""
        here, there = (self._outside, self._inside) if who else (self._inside, self._outside)
        up, way = self._node.up, "tc_ingress" if who or self.remote else "tc_egress"
        context = bytearray(_CONTEXT)
        struct.pack_into("=I", context, _IFINDEX_AT, up)
        frame = self._frame(here, segment)
        out = bpf.run_program(self._node.programs[way].fd, frame, 1, bytes(context)).data
        return out != frame and self._addresses(out) == self._wire(there.node, there.near)

    def facts(self) -> list[set[str]]:
        """What the two entries say, the client's first; of one that is not there, nothing is returned."""
        found = []
        for key in self._keys:
            value = self._node.maps.get("tcp_flows", key)
            if value is not None:
                flags = struct.unpack_from("=I", value, _FLAGS_AT)[0] | struct.unpack_from("=I", value, _NOTED_AT)[0]
                found.append({name for name, bit in _BITS.items() if flags & bit})
        return found

    def _learn(self, who: bool, segment: Segment) -> None:
        seen = self.came_to[who]
        if not segment.flags & RST and (seen is None or after(segment.end, seen) > 0):
            self.came_to[who] = segment.end
        seen = self.acknowledged[who]
        if segment.flags & ACK and not segment.flags & RST and (seen is None or after(segment.ack, seen) > 0):
            self.acknowledged[who] = segment.ack

    def _frame(self, here: Ends, segment: Segment) -> bytes:
        shown = min(segment.size, _SHOWN)
        sequence = (segment.seq + segment.size - shown) % 2**32
        tcp = struct.pack(
            "!HHIIBBHHH", here.near[1], here.node[1], sequence, segment.ack, 5 << 4, segment.flags, 65535, 0, 0
        ) + bytes(shown)
        addresses = b"".join(socket.inet_pton(self._family.socket_family, a) for a, _ in here)
        if self._family is Family.IPV4:
            header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, socket.IPPROTO_TCP, 0)
            kind = b"\x08\x00"
        else:
            header = struct.pack("!IHBB", 6 << 28, len(tcp), socket.IPPROTO_TCP, 64)
            kind = b"\x86\xdd"
        macs = bytes.fromhex((self._node.up_mac + b.ROUTER_MAC).replace(":", ""))
        return macs + kind + header + addresses + tcp

    def _addresses(self, frame: bytes) -> bytes:
        """Addresses and ports of a frame."""
        begin, end = (26, 34) if self._family is Family.IPV4 else (22, 54)
        return frame[begin : end + 4]

    def _wire(self, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
        """The same of a packet from one to the other."""
        addresses = (socket.inet_pton(self._family.socket_family, a) for a, _ in (source, destination))
        return b"".join(addresses) + struct.pack("!HH", source[1], destination[1])


def _key(ends: Ends) -> bytes:
    addresses, ports = (address_bytes(address) for address, _ in ends), (socket.htons(port) for _, port in ends)
    return flow_key(TUPLE.pack(*addresses, *ports, socket.IPPROTO_TCP, 0, 0, 0))
