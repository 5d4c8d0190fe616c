"""pcapng files: what is written is what others read; and what a captured packet is told to be."""

import io
from decimal import Decimal
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap

from ctl.capture import decision_of
from ctl.pcapng import PcapngWriter
from dataplane.model.net import Family, Protocol
from dataplane.plan.types import FrontendKey
from dataplane.planes.captures import Captured, Link

SERVICES = {
    FrontendKey(Family.IPV4, "10.96.0.10", Protocol.TCP, 80): "default/web:http",
    FrontendKey(Family.IPV6, "", Protocol.UDP, 30053): "kube-system/dns:dns",
}


def test_packets_devices_times_and_comments_come_back(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = PcapngWriter(out, 100)
    raw = bytes(IP(src="192.0.2.1", dst="10.96.0.10") / TCP(dport=80))
    framed = bytes(Ether() / IP(dst="10.96.0.11") / UDP(dport=53) / Raw(b"x" * 200))
    writer.packet(1_700_000_000_123_456_789, "eth0", Link.RAW, raw, len(raw), "nftables: no_endpoint: a comment")
    writer.packet(1_700_000_001_000_000_001, "eth1", Link.ETHERNET, framed[:61], len(framed), "xdp: drop_range: ü")
    writer.packet(1_700_000_002_000_000_000, "eth0", Link.RAW, raw, len(raw), "again")
    file = tmp_path / "x.pcapng"
    file.write_bytes(out.getvalue())
    one, two, three = rdpcap(str(file))
    assert (one[TCP].dport, two[UDP].dport, three[IP].src) == (80, 53, "192.0.2.1")
    assert [packet.sniffed_on for packet in (one, two, three)] == ["eth0", "eth1", "eth0"]
    assert [packet.comment.decode() for packet in (one, two, three)] == [
        "nftables: no_endpoint: a comment", "xdp: drop_range: ü", "again",
    ]  # fmt: skip
    assert two.wirelen == len(framed)
    assert Decimal(one.time) == Decimal("1700000000.123456789")


@pytest.mark.parametrize(
    ("packet", "link", "told"),
    [
        (IP(src="192.0.2.1", dst="10.96.0.10") / TCP(sport=9, dport=80), Link.RAW,
         ("tcp", "192.0.2.1:9", "10.96.0.10:80", "default/web:http")),
        (IPv6(src="2001:db8::1", dst="fd00::2") / UDP(sport=9, dport=30053), Link.RAW,
         ("udp", "[2001:db8::1]:9", "[fd00::2]:30053", "kube-system/dns:dns")),
        (Ether() / Dot1Q(vlan=7) / IP(src="192.0.2.1", dst="10.96.0.9", options=b"\1\1\1\0") / TCP(sport=9, dport=1),
         Link.ETHERNET, ("tcp", "192.0.2.1:9", "10.96.0.9:1", "")),
        (IP(src="192.0.2.1", dst="10.96.0.9") / ICMP(), Link.RAW, ("1", "192.0.2.1:0", "10.96.0.9:0", "")),
        (Ether() / ARP(), Link.ETHERNET, ("", "", "", "")),
        (Raw(b"\x45"), Link.RAW, ("", "", "", "")),
        (Raw(b""), Link.ETHERNET, ("", "", "", "")),
    ],
)  # fmt: skip
def test_what_a_packet_is_told_to_be(packet: Packet, link: Link, told: tuple[str, ...]) -> None:
    data = bytes(packet)
    found = decision_of(Captured(1, "eth0", 3, link, data, len(data), "nftables", "stray", "reset"), SERVICES)
    assert (found.protocol, found.source, found.destination, found.service) == told
    assert (found.ifindex, found.length, found.reason, found.meaning) == (3, len(data), "stray", "reset")
