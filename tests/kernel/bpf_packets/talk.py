"""A client's flow through tc, segment by segment, and what makes it older or leaves it a single port."""

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from scapy.layers.inet import TCP, UDP

from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.ports import snat_fields
from dataplane.planes.ebpf.maps.layout import fields_of
from dataplane.planes.ebpf.maps.mapset import NODE_KEY
from dataplane.planes.ebpf.maps.node_settings import NODE
from tests.kernel.bpf_packets.bench import Bench, ip, ip_of
from tests.kernel.bpf_packets.segments import Numbers
from tests.kernel.test_tc_packets import ADDRESSES, SENT

SNAT_AT = slice(3, 8)
"""The fields of struct node that name the ports for SNAT."""


def age(node: Bench, seconds: float, *tables: str, just_used: bool = False) -> None:
    """Everything in these tables was last used so much earlier. just_used: than now, however long a busy machine took
    since its last packet."""
    layouts = {"fragments": "fragment", "affinity": "affinity"}
    for table in tables:
        at = fields_of(layouts.get(table, "translation"))["last_ns"]
        for key, value in list(node.maps.items(table)):
            raw = bytearray(value)
            last = time.monotonic_ns() if just_used else struct.unpack_from("=Q", raw, at)[0]
            struct.pack_into("=Q", raw, at, (last - int(seconds * 10**9)) % 2**64)  # the machine may be younger
            node.maps.put(table, key, bytes(raw))


@contextmanager
def one_port(node: Bench, port: int = 61000) -> Iterator[None]:
    """This node has a single source port to give."""
    raw = node.maps.get("node", NODE_KEY)
    assert raw is not None
    fields = list(NODE.unpack(raw))
    fields[SNAT_AT] = snat_fields([(port, port)])
    node.maps.put("node", NODE_KEY, NODE.pack(*fields))
    try:
        yield
    finally:
        node.maps.put("node", NODE_KEY, raw)


class Talk:
    """A client's flow to the remote backend by the node port, through tc. Segments are numbered as real ends would."""

    def __init__(self, node: Bench, family: Family, transport: Any, port: int = 4000) -> None:
        self._node, self._family, self._transport, self._port = node, family, transport, port
        self.client, self.own, self.remote, *_ = ADDRESSES[family]
        self.source_port = 0
        self.numbers = Numbers()

    def ask(self, flags: str = "A", data: bytes = b"", **fields: Any) -> str:
        """The client sends; out: the reason that was counted."""
        ports = (self._port, 30080)
        if self._transport is TCP:
            body = self.numbers.segment(ports, flags, data, client=True, **fields)
        else:
            body = UDP(sport=ports[0], dport=ports[1]) / data
        with self._node.counted() as counted:
            out = self._node.tc(self._node.frame(ip(self._family, self.client, self.own) / body))
        if out.result in SENT:
            self.source_port = ip_of(out.data).sport
        [(reason, count)] = counted.items()
        assert count == 1
        return reason.removeprefix("tc_ingress:")

    def answer(self, flags: str = "A", data: bytes = b"", **fields: Any) -> Any:
        """The backend sends; out: the packet as it goes on."""
        ports = (8080, self.source_port)
        if self._transport is TCP:
            body = self.numbers.segment(ports, flags, data, client=False, **fields)
        else:
            body = UDP(sport=ports[0], dport=ports[1]) / data
        return ip_of(self._node.tc(self._node.frame(ip(self._family, self.remote, self.own) / body)).data)

    def play(self, script: str) -> str:
        """Segments in turn ("ask S, answer SA, ask A"); out: the reason of the client's last one."""
        reason = ""
        for step in script.split(", "):
            who, flags = step.split()
            if who == "ask":
                reason = self.ask(flags)
            else:
                assert self.answer(flags).dst == self.client
        return reason

    def entries(self) -> list[dict[str, Any] | None]:
        """The flow's two entries."""
        protocol = 6 if self._transport is TCP else 17
        return [
            self._node.flow(self.client, self._port, self.own, 30080, protocol),
            self._node.flow(self.remote, 8080, self.own, self.source_port, protocol),
        ]


OPEN = "ask S, answer SA, ask A"
