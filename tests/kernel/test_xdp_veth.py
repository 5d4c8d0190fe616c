"""XDP on a veth: packets of this very machine come without a finished checksum, and must not be sent on so."""

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from dataplane.model.net import Family, Protocol
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import bench, entry, ip_of


def _pseudo_sum(packet: IP | IPv6) -> int:
    """What the kernel leaves in the checksum field for the device: the pseudo header's sum, not complemented."""
    raw = bytes(packet)
    size = 20 if raw[0] >> 4 == 4 else 40
    addresses = raw[12:20] if size == 20 else raw[8:40]
    words = addresses + (len(raw) - size).to_bytes(2, "big") + raw[9 if size == 20 else 6].to_bytes(2, "big")
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6])
@pytest.mark.parametrize("transport", [TCP, UDP])
def test_unfinished_checksums_are_left_to_tc(
    make_namespace: Callable[[str], str], family: Family, transport: type[TCP] | type[UDP]
) -> None:
    four = family is Family.IPV4
    header = IP(src=b.CLIENT, dst=b.NODE) if four else IPv6(src=b.CLIENT_6, dst=b.NODE_6)
    protocol = Protocol.TCP if transport is TCP else Protocol.UDP
    packet = header / transport(sport=4000, dport=30080) / b"data"
    if transport is TCP:
        packet[TCP].flags = "S"
    with bench("-DNO_XDP_TX=1") as node:
        node.install(
            entry("any", [b.REMOTE if four else b.REMOTE_6], protocol=protocol, node_port=30080, family=family)
        )
        packet[transport].chksum = _pseudo_sum(packet)
        frame = node.frame(packet)
        with node.counted() as counted:
            out = node.xdp(frame)
        assert (out.result, out.data) == (b.XDP_PASS, frame)
        assert counted == {"xdp:left_to_tc": 1}
        del packet[transport].chksum
        out = node.xdp(node.frame(packet))
        assert out.result == b.XDP_REDIRECT
        assert ip_of(out.data).dst == (b.REMOTE if four else b.REMOTE_6)
