"""Annotations about forwarding with the client's address kept: what a Service asks for, what a Node speaks."""

import enum
import re
from typing import NamedTuple

SERVICE_ANNOTATION = "service.hotplane.io/forwarding-mode"
"""Annotation of a Service: how its external traffic gets to endpoints of other nodes, in place of the node's
`--lb-mode`."""

NODE_ANNOTATION = "node.hotplane.io/forwarding"
"""Annotation of a Node, which its own hotplane writes: what it speaks (see `TunnelOffer`)."""

MODES = ("snat", "tunnel", "dsr", "hybrid")
"""Values of the Service's annotation (policy.forwarding.LbMode)."""

DEFAULT_PORT = 8473
"""UDP port of forwarded packets. Not 4789 (IANA's VXLAN), 8472 (Linux', flannel's and Cilium's) or 6081 (Geneve)."""

DEFAULT_VNI = 0x686F74
"""Network identifier (VXLAN's and Geneve's) of forwarded packets ("hot" in ASCII), which overlays that number from 1 on
do not reach."""

MOST_PORT, MOST_VNI = 65535, (1 << 24) - 1


class Dispatch(enum.Enum):
    """How a packet to another node is wrapped (`--lb-dispatch`). Every node opens all of them. VXLAN: RFC 7348. GENEVE:
    RFC 8926. IPIP: IPv4 in IPv4 (RFC 2003), IPv6 in IPv6 (RFC 2473). Source of the name: Cilium's
    `loadBalancer.dsrDispatch`."""

    VXLAN = "vxlan"
    GENEVE = "geneve"
    IPIP = "ipip"
    __hash__ = object.__hash__

    @property
    def title(self) -> str:
        """The format's name in a sentence."""
        return {"vxlan": "VXLAN", "geneve": "Geneve", "ipip": "IPIP"}[self.value]


DISPATCHES = tuple(dispatch.value for dispatch in Dispatch)
MORE = tuple(dispatch for dispatch in Dispatch if dispatch is not Dispatch.VXLAN)
"""What a node opens besides VXLAN, which all do that announce anything."""
_FORMATS = re.compile(r"[a-z0-9]+(\+[a-z0-9]+)*")


class TunnelOffer(NamedTuple):
    """What a node says that it speaks. port, vni: UDP port (1 to 65535) and network identifier (24 bits), which two
    nodes must have in common so that one forwards to the other. also: in which formats besides VXLAN it takes packets,
    in the order of `Dispatch`."""

    port: int
    vni: int
    also: tuple[Dispatch, ...] = ()

    def __str__(self) -> str:
        """Return the annotation's value. It begins with what versions before `also` speak, and look for."""
        also = f",also={'+'.join(dispatch.value for dispatch in self.also)}" if self.also else ""
        return f"{Dispatch.VXLAN.value},port={self.port},vni={self.vni}{also}"

    def meets(self, other: "TunnelOffer | None") -> bool:
        """True if the node of one may forward to the node of the other, in VXLAN at least."""
        return other is not None and self[:2] == other[:2]


def parse_offer(text: str) -> TunnelOffer | None:
    """Read the value of a Node's annotation; None if it speaks something else than VXLAN. Fields that are not known
    are of a later version, and are passed over. Raises ValueError, with a sentence."""
    dispatch, *fields = (part.strip() for part in text.split(","))
    if not dispatch.isalnum() or not dispatch.isascii():
        raise ValueError(_wrong(text))
    if dispatch != Dispatch.VXLAN.value:
        return None
    values: dict[str, str] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals or name in values:
            raise ValueError(_wrong(text))
        values[name] = value
    port, vni = _number(text, values.get("port", ""), MOST_PORT), _number(text, values.get("vni", ""), MOST_VNI)
    return TunnelOffer(port, vni, _also(text, values.get("also")))


def _also(text: str, value: str | None) -> tuple[Dispatch, ...]:
    """Read the formats besides VXLAN; names that are not known are of a later version."""
    if value is None:
        return ()
    if not _FORMATS.fullmatch(value):
        raise ValueError(_wrong(text))
    named = value.split("+")
    return tuple(dispatch for dispatch in MORE if dispatch.value in named)


def _number(text: str, digits: str, most: int) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 8 and 1 <= int(digits) <= most):
        raise ValueError(_wrong(text))
    return int(digits)


def _wrong(text: str) -> str:
    return (
        f"is {text[:80]!r}, not {Dispatch.VXLAN.value},port=1..{MOST_PORT},vni=1..{MOST_VNI} with or without "
        f"also={'+'.join(dispatch.value for dispatch in MORE)} (nobody forwards to this node)"
    )
