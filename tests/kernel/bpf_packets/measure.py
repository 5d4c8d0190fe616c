"""What one packet costs in each program: `python -m tests.kernel.bpf_packets.measure` (as root).

A test run hands the same buffer to the program again and again, so the flow that is measured translates a packet into
itself: every step is taken, and the next round finds the packet as it was. Prints the least and the median of many
means of 250 packets, in ns; the harness's own 30 to 40 ns are in it.
"""

import socket
import statistics
import time
from collections.abc import Callable

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from dataplane.kernel.bpf import ProgramRun
from dataplane.model.net import Family
from dataplane.planes.ebpf.encode import address_bytes
from dataplane.planes.ebpf.layout import constant, record
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry

TRANSLATION = record(
    "translation",
    *("source", "destination", "source_port", "destination_port", "flags", "backend", "backend_generation"),
    *("service", "ifindex", "last_ns", "packets", "bytes", "hop_until_ns", "hop_ifindex", "hop_mtu"),
    *("hop_source", "hop_destination", "pad"),
)
ROUNDS, REPEAT = 400, 250


def _flow(node: Bench, source: str, destination: str, kind: str) -> None:
    """A flow that changes nothing, in one direction, and its other entry."""
    ends = (address_bytes(source), address_bytes(destination), socket.htons(1000), socket.htons(80))
    back = (ends[1], ends[0], ends[3], ends[2])
    flags = constant("FLOW_ESTABLISHED") | (constant("FLOW_SNAT") if kind != "local" else 0)
    for tuple_, more in ((ends, constant("FLOW_REPLY") if kind == "reply" else 0), (back, constant("FLOW_REPLY"))):
        value = TRANSLATION.pack(*tuple_, flags | more, 0, 1, 0, node.up, time.monotonic_ns(), *(0,) * (5 + 6 + 6 + 6))
        node.maps.put("connections", b.TUPLE.pack(*tuple_, 6, 0, 0, 0), value)


def _mean(run: Callable[..., ProgramRun], frame: bytes) -> str:
    means = [run(frame, repeat=REPEAT).duration_ns for _ in range(ROUNDS)]
    return f"least {min(means):4} median {statistics.median(means):6.1f}"


def measure(node: Bench) -> None:
    """Print one line for each program, family and kind of flow."""
    node.install(entry("any", [b.REMOTE], node_port=30080))
    for address in (b.NODE2, b.NODE2_6):
        node.links.neighbour("up0", address, node.up_mac)  # so that a packet sent on still looks like one to this node
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
            _flow(node, source, destination, kind)
            if kind != "local":
                print(f"IPv{family} xdp {kind:8}", _mean(node.xdp, frame))
            print(f"IPv{family} tc  {kind:8}", _mean(node.tc, frame))
        other = node.frame(header / TCP(sport=1001, dport=80, flags="A"))
        print(f"IPv{family} xdp no flow ", _mean(node.xdp, other))
        print(f"IPv{family} tc  no flow ", _mean(node.tc, other))
        print(f"IPv{family} tc  egress  ", _mean(lambda data, repeat: node.tc(data, egress=True, repeat=repeat), other))


def main() -> None:
    """Build the bench, measure, take it down."""
    with bench() as node:
        for program in node.programs.values():
            print(f"{program.name}: {program.instructions} instructions, {program.jited_bytes} bytes")
        measure(node)


if __name__ == "__main__":
    main()
