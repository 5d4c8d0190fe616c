"""Random and malformed packets through tc and XDP: whatever comes, what goes on is untouched or right.

Right is: to a backend that the oracle allows for the packet as it was, or back to a client that has a flow; with
checksums that are as right as they came; and with nothing else changed in length.
"""

import errno
import random
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from dataplane.model.net import Family, Protocol
from dataplane.oracle.decide import Oracle
from dataplane.oracle.types import Packet, Verdict
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry

_TCP, _UDP, _FRAGMENT = 6, 17, 44
CLIENTS = {b.CLIENT, b.CLIENT_6}


@pytest.fixture
def node() -> Iterator[Bench]:
    with bench() as ready:
        for family, remote, pod, cluster_ip in (
            (Family.IPV4, b.REMOTE, b.POD, "10.96.0.1"),
            (Family.IPV6, b.REMOTE_6, b.POD_6, "fd00:10:96::1"),
        ):
            for protocol in (Protocol.TCP, Protocol.UDP):
                options = {"protocol": protocol, "family": family}
                name = f"{family.name}-{protocol.name}".lower()
                ready.install(
                    entry(f"both-{name}", [remote, pod], node_port=30080, ip=cluster_ip, **options),  # type: ignore[arg-type]
                    entry(f"sticky-{name}", [remote], node_port=30081, affinity=60, **options),  # type: ignore[arg-type]
                    entry(f"policy-{name}", [pod], node_port=30082, local_policy=True, **options),  # type: ignore[arg-type]
                    entry(f"empty-{name}", [], node_port=30083, **options),  # type: ignore[arg-type]
                )
        yield ready


def seeds(node: Bench) -> list[bytes]:
    """Good packets of every kind that the programs tell apart."""
    made = []
    for port in (30080, 30081, 30082, 30083, 80):
        for four in (True, False):
            own = ("10.96.0.1" if four else "fd00:10:96::1") if port == 80 else (b.NODE if four else b.NODE_6)
            client = b.CLIENT if four else b.CLIENT_6
            kind = IP if four else IPv6
            tcp, udp = TCP(sport=4000, dport=port, flags="S"), UDP(sport=4000, dport=port)
            header = kind(src=client, dst=own)
            packets = [
                header / tcp / b"data", header / udp / b"data", header / TCP(sport=4000, dport=port, flags="FA"),
                header / TCP(sport=4000, dport=port, flags="A") / (b"x" * 900), header / SCTP(sport=1, dport=port),
                header / udp, header / TCP(sport=4000, dport=port, flags="R"),
            ]  # fmt: skip
            if four:
                inner = IP(src=own, dst=client) / UDP(sport=port, dport=4000) / b"x"
                packets += [
                    IP(src=client, dst=own, options=[IPOption_NOP()] * 4) / tcp,
                    IP(src=client, dst=own, flags=1, id=7, proto=17) / Raw(bytes(udp) + b"x" * 56),
                    IP(src=client, dst=own, frag=8, id=7, proto=17) / Raw(b"y" * 100),
                    IP(src="203.0.113.9", dst=own) / ICMP(type=3, code=4) / Raw(bytes(inner)),
                ]
            else:
                inner6 = IPv6(src=own, dst=client) / UDP(sport=port, dport=4000) / b"x"
                packets += [
                    header / IPv6ExtHdrDestOpt() / tcp,
                    header / IPv6ExtHdrFragment(id=7, m=1, nh=17) / Raw(bytes(udp) + b"x" * 56),
                    header / IPv6ExtHdrFragment(id=7, offset=8, nh=17) / Raw(b"y" * 100),
                    IPv6(src="2001:db8::9", dst=own) / ICMPv6PacketTooBig(mtu=1300) / Raw(bytes(inner6)),
                ]
            made += [node.frame(packet) for packet in packets]
            made.append(bytes(Ether(dst=node.up_mac, src=b.ROUTER_MAC) / Dot1Q(vlan=7) / packets[0]))
    return made


def mutated(chance: random.Random, frame: bytes) -> bytes:
    """A frame with some of its bytes changed, cut or added; often in the headers, often not at all."""
    data = bytearray(frame)
    for _ in range(chance.choice((0, 0, 1, 1, 1, 2, 4, 16))):
        data[chance.randrange(12, min(len(data), chance.choice((34, 64, 128))))] = chance.choice(
            (0, 1, 0x45, 0x60, 0x40, 6, 17, 44, 58, 255, chance.randrange(256))
        )
    how = chance.random()
    if how < 0.1:
        return bytes(data[: chance.randrange(14, len(data) + 1)])
    if how < 0.15:
        return bytes(data) + chance.randbytes(chance.randrange(64))
    if how < 0.17:
        return bytes(data[:14]) + chance.randbytes(chance.randrange(120))
    return bytes(data)


def folded(data: bytes) -> int:
    """One's complement sum; 0xffff for data whose checksum is right."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(total)


class Seen:
    """A frame as this test reads it: only whole, plain TCP and UDP have ports and a checksum to look at."""

    def __init__(self, frame: bytes) -> None:
        at = 14
        while frame[at - 2 : at] in (b"\x81\x00", b"\x88\xa8"):
            at += 4
        self.four = frame[at - 2 : at] == b"\x08\x00"
        ip = frame[at:]
        family = socket.AF_INET if self.four else socket.AF_INET6
        size = 20 if self.four else 40
        raw = (ip[12:16], ip[16:20]) if self.four else (ip[8:24], ip[24:40])
        self.source, self.destination = (socket.inet_ntop(family, text) for text in raw)
        self.protocol = ip[9] if self.four else ip[6]
        length = struct.unpack("!H", ip[2:4] if self.four else ip[4:6])[0] + (0 if self.four else 40)
        self.header_right = not self.four or folded(ip[:20]) == 0xFFFF
        whole = not self.four or not struct.unpack("!H", ip[6:8])[0] & 0x3FFF
        # Kept until the first of its datagram comes, where others came before theirs (bpf/hold.h).
        self.later = bool(struct.unpack("!H", ip[6:8])[0] & 0x1FFF) if self.four else ip[6] == _FRAGMENT
        self.plain = whole and self.protocol in (_TCP, _UDP)
        self.port = struct.unpack("!H", ip[size + 2 : size + 4])[0] if self.plain else 0
        body = ip[size:length]
        pseudo = raw[0] + raw[1] + struct.pack("!II", len(body), self.protocol)
        unchecked = self.protocol == _UDP and body[6:8] == b"\0\0"
        self.right = self.plain and not unchecked and folded(pseudo + body) == 0xFFFF


def check(oracle: Oracle, before: bytes, after: bytes) -> None:
    """Whether a translated packet is right. Raises AssertionError."""
    old, new = Seen(before), Seen(after)
    assert len(before) == len(after)
    assert (old.four, old.protocol) == (new.four, new.protocol)
    assert new.header_right or not old.header_right
    assert new.right or not old.right
    if new.destination in CLIENTS or not old.plain:
        assert new.destination in CLIENTS | {b.REMOTE, b.REMOTE_6, b.POD, b.POD_6}
        return
    decision = oracle.decide(Packet(old.source, old.destination, old.port, Protocol(old.protocol)))
    assert decision.verdict is Verdict.DNAT, (old.source, old.destination, old.port)
    assert (new.destination, new.port) in {(backend.address, backend.port) for backend in decision.backends}


@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_random_packets(node: Bench, hook: str, soak: bool) -> None:
    chance = random.Random(hook)
    good = seeds(node)
    oracle = Oracle(node.plan)
    run, passed = (node.tc, b.TC_NEXT) if hook == "tc" else (node.xdp, b.XDP_PASS)
    translated = 0
    for number in range(1_000_000 if soak else 20_000):
        frame = mutated(chance, chance.choice(good))
        if len(frame) < 15:
            continue
        try:
            out = run(frame)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a frame that the kernel itself does not take
                raise
            continue
        if out.data == frame:
            held = hook == "tc" and out.result == b.TC_STOLEN and Seen(frame).later
            assert out.result == passed or held, (number, frame.hex())
            continue
        translated += 1
        try:
            check(oracle, frame, out.data)
        except AssertionError as error:
            raise AssertionError(f"packet {number}: {frame.hex()} became {out.data.hex()}: {error}") from error
    assert translated > 1_000
