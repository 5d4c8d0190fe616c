"""Flows as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.errors import UsageError
from dataplane.model.net import Protocol, canonical_address
from dataplane.oracle.flow import parse_flow
from dataplane.oracle.types import Packet


@pytest.mark.parametrize(
    ("text", "packet"),
    [
        ("10.0.0.1 -> 172.30.0.41:80/tcp", Packet("10.0.0.1", "172.30.0.41", 80, Protocol.TCP)),
        ("  10.0.0.1->172.30.0.41:53/UDP ", Packet("10.0.0.1", "172.30.0.41", 53, Protocol.UDP)),
        ("10.0.0.1:40000 -> 172.30.0.41:80/sctp", Packet("10.0.0.1", "172.30.0.41", 80, Protocol.SCTP, "", 40000)),
        ("fd00::1 -> [FD00:0::2]:65535/tcp", Packet("fd00::1", "fd00::2", 65535, Protocol.TCP)),
        ("[fd00::1]:999 -> [fd00::2]:1/tcp", Packet("fd00::1", "fd00::2", 1, Protocol.TCP, "", 999)),
        ("[fd00::1] -> [fd00::2]:1/tcp via cni0", Packet("fd00::1", "fd00::2", 1, Protocol.TCP, "cni0")),
        ("10.0.0.1 -> 10.0.0.2:1/tcp via veth via", Packet("10.0.0.1", "10.0.0.2", 1, Protocol.TCP, "veth via")),
    ],
)
def test_flows_that_parse(text: str, packet: Packet) -> None:
    assert parse_flow(text) == packet


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the arrow"),
        ("10.0.0.1 172.30.0.41:80/tcp", "the arrow"),
        ("10.0.0.1 -> 172.30.0.41:80", "protocol is missing"),
        ("10.0.0.1 -> 172.30.0.41/tcp", "port is missing"),
        ("10.0.0.1 -> fd00::2:80/tcp", "port is missing"),
        ("10.0.0.1 -> [fd00::2]/tcp", "port is missing"),
        ("10.0.0.1 -> [fd00::2:80/tcp", "brackets"),
        ("10.0.0.1 -> [fd00::2]80/tcp", "brackets"),
        ("10.0.0.1 -> 172.30.0.41:0/tcp", "'0' is not a port"),
        ("10.0.0.1 -> 172.30.0.41:65536/tcp", "'65536' is not a port"),
        ("10.0.0.1 -> 172.30.0.41:http/tcp", "'http' is not a port"),
        ("10.0.0.1 -> 172.30.0.41:²/tcp", "is not a port"),
        ("10.0.0.1 -> 172.30.0.41:80/icmp", "'icmp' is not a protocol"),
        ("10.0.0.1 -> web.default:80/tcp", "'web.default' is not an IP address"),
        ("10.0.0.256 -> 172.30.0.41:80/tcp", "'10.0.0.256' is not an IP address"),
        ("-> 172.30.0.41:80/tcp", "'' is not an IP address"),
        ("10.0.0.1 -> [fd00::2]:80/tcp", "different IP families"),
        ("::ffff:10.0.0.1 -> [fd00::2]:80/tcp", "IPv4-mapped"),
        ("10.0.0.1 -> 172.30.0.41:80/tcp via ", "no device stands after"),
        ("10.0.0.1 -> 172.30.0.41:80/tcp via  ", "no device stands after"),
    ],
)
def test_flows_that_do_not_parse(text: str, why: str) -> None:
    """The sentence quotes the flow, says what is wrong and how to write it."""
    with pytest.raises(UsageError) as caught:
        parse_flow(text)
    told = str(caught.value)
    assert why in told
    assert repr(text) in told
    assert "SRC -> DST:PORT/PROTO" in told


@given(st.booleans(), st.data(), st.integers(1, 65535), st.sampled_from(Protocol), st.sampled_from(("", "eth0")))
def test_text_of_a_packet_parses_to_the_packet(
    version6: bool, data: st.DataObject, port: int, protocol: Protocol, device: str
) -> None:
    addresses = st.ip_addresses(v=6 if version6 else 4).map(str)
    source, destination = (canonical_address(a) for a in data.draw(st.tuples(_real(addresses), _real(addresses))))
    packet = Packet(source, destination, port, protocol, device)
    assert parse_flow(str(packet)) == packet


def _real(addresses: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Without IPv4-mapped IPv6 addresses, which mean nothing here."""
    return addresses.filter(lambda address: not address.startswith("::ffff:"))


@given(st.text("0123456789.:->/[]tcpudp viaé\n", max_size=60) | st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_sentence(text: str) -> None:
    """Nothing but a packet or a UsageError that quotes the text comes out of it."""
    for flow in (text, f"10.0.0.1 -> {text}/tcp", f"10.0.0.1 -> 10.0.0.2:{text}", f"{text} -> 10.0.0.2:80/udp"):
        packet, told = _parsed(flow)
        assert (packet is None) == (repr(flow) in told)
        assert packet is None or 1 <= packet.port <= 65535


def _parsed(text: str) -> tuple[Packet | None, str]:
    try:
        return parse_flow(text), ""
    except UsageError as error:
        return None, str(error)
