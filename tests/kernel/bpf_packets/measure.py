"""What one packet costs in each program: `python -m tests.kernel.bpf_packets.measure` (as root).

A test run hands the same buffer to the program again and again, so the flow that is measured translates a packet into
itself: every step is taken, and the next round finds the packet as it was. Prints the least and the median of many
means of 250 packets, in ns; the harness's own 30 to 40 ns are in it.
"""

import os
import socket
import statistics
import struct
import time
from collections.abc import Callable

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from dataplane.bench.load.instructions import leave
from dataplane.bench.program import steady
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, ProgramRun, ProgramType
from dataplane.kernel.namespaces import netns
from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.entries import NO_HOP, TRANSLATION, flow_key
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import constant
from dataplane.planes.ebpf.views.events import TUPLE
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry

ROUNDS, REPEAT = 200, 250
LONG_ROUNDS, LONG_REPEAT = 20, 20000


def flow(node: Bench, source: str, destination: str, kind: str) -> None:
    """A flow that changes nothing, in one direction, and its other entry."""
    ends = (address_bytes(source), address_bytes(destination), socket.htons(1000), socket.htons(80))
    back = (ends[1], ends[0], ends[3], ends[2])
    flags = constant("FLOW_ESTABLISHED") | (constant("FLOW_SNAT") if kind != "local" else 0)
    for tuple_, more in ((ends, constant("FLOW_REPLY") if kind == "reply" else 0), (back, constant("FLOW_REPLY"))):
        own = TUPLE.pack(*tuple_, 6, 0, 0, 0)
        rest = (node.up, time.monotonic_ns(), *(0,) * 6, *NO_HOP, own)
        value = TRANSLATION.pack(*tuple_, flags | more, 0, 0, 1, 0, *rest)
        node.maps.put("tcp_flows", flow_key(own), value)


def _means(run: Callable[..., ProgramRun], frame: bytes, rounds: int, repeat: int) -> list[int]:
    return [run(frame, repeat=repeat).duration_ns for _ in range(rounds)]


def tc_mean(node: Bench, frame: bytes, *, egress: bool = False) -> list[int]:
    """Mean times of a packet in tc, in ns."""
    return _means(lambda data, repeat: node.tc(data, egress=egress, repeat=repeat), frame, ROUNDS, REPEAT)


def xdp_mean(node: Bench, frame: bytes, program: int) -> list[int]:
    """Mean times of a packet in an XDP program, in ns."""
    context = struct.pack("=IIIIII", 0, len(frame), 0, node.up, 0, 0)
    with steady(program, frame) as again, netns.netns(node.namespace):

        def run(data: bytes, repeat: int) -> ProgramRun:
            return bpf.run_program(again, data, repeat, context)

        return _means(run, frame, LONG_ROUNDS, LONG_REPEAT)


def _show(title: str, means: list[int]) -> None:
    print(f"{title:16} least {min(means):4} median {statistics.median(means):6.1f}")


def measure(node: Bench) -> None:
    """Print one line for each program, family and kind of flow."""
    node.install(entry("any", [b.REMOTE], node_port=30080))
    for address in (b.NODE2, b.NODE2_6):
        node.links.neighbour("up0", address, node.up_mac)  # so that a packet sent on still looks like one to this node
    xdp = node.programs["xdp_uplink"].fd
    nothing = bpf.program_load(leave(b.XDP_PASS), ProgramType.XDP, AttachType.XDP, "nothing")
    _show("nothing", xdp_mean(node, node.frame(IP() / TCP()), nothing))
    os.close(nothing)
    for family, source, destination in (
        (Family.IPV4, b.CLIENT, b.REMOTE),
        (Family.IPV6, b.CLIENT_6, b.REMOTE_6),
    ):
        header = (
            IP(src=source, dst=destination, ttl=255)
            if family is Family.IPV4
            else IPv6(src=source, dst=destination, hlim=255)
        )
        frame = node.frame(header / TCP(sport=1000, dport=80, flags="A"))
        for kind in ("remote", "reply", "local"):
            flow(node, source, destination, kind)
            if kind != "local":
                _show(f"IPv{family} xdp {kind:8}", xdp_mean(node, frame, xdp))
            _show(f"IPv{family} tc  {kind:8}", tc_mean(node, frame))
        other = node.frame(header / TCP(sport=1001, dport=80, flags="A"))
        _show(f"IPv{family} xdp no flow", xdp_mean(node, other, xdp))
        _show(f"IPv{family} tc  no flow", tc_mean(node, other))
        _show(f"IPv{family} tc  egress", tc_mean(node, other, egress=True))


def main() -> None:
    """Build the bench, measure, take it down."""
    with bench() as node:
        for program in node.programs.values():
            print(f"{program.name}: {program.instructions} instructions, {program.jited_bytes} bytes")
        measure(node)


if __name__ == "__main__":
    main()
