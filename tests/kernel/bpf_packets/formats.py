"""How packets to other nodes are wrapped, as scapy writes and reads it: the formats of docs/forwarding.md."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from dataplane.model.net import Family
from dataplane.policy.forwarding import DEFAULT_PORT, DEFAULT_VNI, Dispatch
from tests.kernel.bpf_packets.bench import ip, ip_of, rebuilt

HEADER = {Family.IPV4: 20, Family.IPV6: 40}
TYPES = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
OPTION_CLASS = 0xFF68
SHORT_NAME = 0x1FFF


class Unwrapped(NamedTuple):
    """What a packet between nodes is: the outer IP packet, the name of the endpoint, the kind, what is inside."""

    outer: Any
    endpoint: int
    kind: int
    inner: Any


class Format(ABC):
    """One of them. headers: bytes between the outer IP header and the packet inside."""

    dispatch: Dispatch
    headers: int

    def overhead(self, family: Family) -> int:
        """Bytes that it adds to a packet."""
        return HEADER[family] + self.headers

    def name(self, digest: int) -> int:
        """What of an endpoint's digest is told."""
        return digest

    @abstractmethod
    def wrapped(self, inner: Any, family: Family, ends: tuple[str, str], endpoint: int, kind: int) -> Any:
        """What a node at the first of these ends makes of a packet for the second."""

    @abstractmethod
    def opened(self, outer: Any, family: Family) -> tuple[int, int, Any]:
        """Endpoint, kind and inner packet of an outer one; every field in between is as it has to be."""

    def unwrapped(self, data: bytes, *, whole: bool = True) -> Unwrapped:
        """Read a frame, all of which is as it has to be. whole: no fragment is inside."""
        outer = ip_of(data)
        family = Family.IPV4 if IP in outer else Family.IPV6
        endpoint, kind, inner = self.opened(outer, family)
        if whole:
            assert bytes(inner) == rebuilt(inner)
        length = outer.len if family is Family.IPV4 else outer.plen + 40
        assert length == len(bytes(outer)) == len(bytes(inner)) + self.overhead(family)
        if family is Family.IPV4:
            header = IP(bytes(outer)[:20])
            del header.chksum
            assert bytes(header) == bytes(outer)[:20]
            assert (outer.flags, outer.tos, outer.ttl, outer.frag) == ("DF", 0, 64, 0)
        else:
            assert (outer.tc, outer.hlim) == (0, 64)
        return Unwrapped(outer, endpoint, kind, inner)


def _outer(family: Family, ends: tuple[str, str], **fields: Any) -> Any:
    kept: dict[str, Any] = {"flags": "DF", "id": 0} if family is Family.IPV4 else {}
    return ip(family, *ends, **(kept | fields))


def _udp(outer: Any) -> bytes:
    udp = outer[UDP]
    assert (udp.dport, udp.chksum, udp.len) == (DEFAULT_PORT, 0, len(bytes(udp)))
    assert udp.sport >= 0xC000
    if IP in outer:
        assert outer.id == 0
    return bytes(udp.payload)


def _ip(raw: bytes, family: Family) -> Any:
    return IP(raw) if family is Family.IPV4 else IPv6(raw)


class Vxlan(Format):
    """Named by the Ethernet header inside."""

    dispatch, headers = Dispatch.VXLAN, 30

    def wrapped(self, inner: Any, family: Family, ends: tuple[str, str], endpoint: int, kind: int) -> Any:
        raw = endpoint.to_bytes(4, "big")
        to = "02:00:" + ":".join(f"{byte:02x}" for byte in raw)
        ether = Ether(dst=to, src=f"02:00:00:00:00:{kind:02x}", type=TYPES[family])
        udp = UDP(sport=50000, dport=DEFAULT_PORT, chksum=0)
        return _outer(family, ends) / udp / VXLAN(vni=DEFAULT_VNI, flags=8) / ether / inner

    def opened(self, outer: Any, family: Family) -> tuple[int, int, Any]:
        vxlan = VXLAN(_udp(outer))
        assert (int(vxlan.flags), vxlan.vni, vxlan[Ether].type) == (8, DEFAULT_VNI, TYPES[family])
        raw = bytes(vxlan[Ether])
        assert (raw[:2], raw[6:11]) == (b"\2\0", b"\2\0\0\0\0")
        return int.from_bytes(raw[2:6], "big"), raw[11], _ip(raw[14:], family)


class Geneve(Format):
    """Named by an option."""

    dispatch, headers = Dispatch.GENEVE, 24

    def wrapped(
        self,
        inner: Any,
        family: Family,
        ends: tuple[str, str],
        endpoint: int,
        kind: int,
        *,
        before: tuple[Any, ...] = (),
        behind: tuple[Any, ...] = (),
        ours: int = 1,
        **change: Any,
    ) -> Any:
        """See Format. before, behind: options around ours; ours: how often it is there; change: other fields of the
        header."""
        option = GeneveOptions(classid=OPTION_CLASS, type=kind, length=1, data=endpoint.to_bytes(4, "big"))
        fields = {"vni": DEFAULT_VNI, "proto": TYPES[family], "options": [*before, *[option] * ours, *behind]}
        header = Raw(bytes(GENEVE(**(fields | change))))  # as it is: scapy would overwrite the protocol
        udp = UDP(sport=50000, dport=DEFAULT_PORT, chksum=0)
        return _outer(family, ends) / udp / header / inner

    def opened(self, outer: Any, family: Family) -> tuple[int, int, Any]:
        raw = _udp(outer)
        geneve = GENEVE(raw)
        assert (geneve.version, geneve.optionlen, geneve.oam, geneve.critical, geneve.reserved) == (0, 2, 0, 0, 0)
        assert (geneve.proto, geneve.vni, geneve.reserved2) == (TYPES[family], DEFAULT_VNI, 0)
        [option] = geneve.options
        assert (option.classid, option.reserved, option.length) == (OPTION_CLASS, 0, 1)
        return int.from_bytes(option.data, "big"), option.type, _ip(raw[16:], family)


class Ipip(Format):
    """Named by the identification, or the flow label, of the outer header: the kind, a guard, 13 bits of the digest."""

    dispatch, headers = Dispatch.IPIP, 0

    def wrapped(
        self, inner: Any, family: Family, ends: tuple[str, str], endpoint: int, kind: int, *, guard: int = 0
    ) -> Any:
        """See Format. guard: what cutting an aggregate may have made of the bit between kind and name."""
        mark = kind << 14 | guard << 13 | endpoint & SHORT_NAME
        fields = {"id": mark, "proto": 4} if family is Family.IPV4 else {"fl": mark, "nh": 41}
        return _outer(family, ends, **fields) / Raw(bytes(inner))

    def opened(self, outer: Any, family: Family) -> tuple[int, int, Any]:
        assert (outer.proto if family is Family.IPV4 else outer.nh) == (4 if family is Family.IPV4 else 41)
        mark = outer.id if family is Family.IPV4 else outer.fl
        return mark & SHORT_NAME, mark >> 14, _ip(bytes(outer)[HEADER[family] :], family)

    def name(self, digest: int) -> int:
        return digest & SHORT_NAME


FORMATS: tuple[Format, ...] = (Vxlan(), Geneve(), Ipip())
