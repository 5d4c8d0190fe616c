"""Annotations about forwarding with the client's address kept: what a Service asks for, what a Node speaks."""

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
"""VXLAN network identifier of forwarded packets ("hot" in ASCII), which overlays that number from 1 on do not reach."""

DISPATCH = "vxlan"
MOST_PORT, MOST_VNI = 65535, (1 << 24) - 1


class TunnelOffer(NamedTuple):
    """What two nodes must have in common so that one forwards to the other: the UDP port (1 to 65535) and the VXLAN
    network identifier (24 bits), both as numbers."""

    port: int
    vni: int

    def __str__(self) -> str:
        """Return the annotation's value."""
        return f"{DISPATCH},port={self.port},vni={self.vni}"


def parse_offer(text: str) -> TunnelOffer | None:
    """Read the value of a Node's annotation; None if it speaks something else than VXLAN. Fields that are not known
    are of a later version, and are passed over. Raises ValueError, with a sentence."""
    dispatch, *fields = (part.strip() for part in text.split(","))
    if not dispatch.isalnum() or not dispatch.isascii():
        raise ValueError(_wrong(text))
    if dispatch != DISPATCH:
        return None
    values: dict[str, str] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals or name in values:
            raise ValueError(_wrong(text))
        values[name] = value
    return TunnelOffer(_number(text, values.get("port", ""), MOST_PORT), _number(text, values.get("vni", ""), MOST_VNI))


def _number(text: str, digits: str, most: int) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 8 and 1 <= int(digits) <= most):
        raise ValueError(_wrong(text))
    return int(digits)


def _wrong(text: str) -> str:
    return f"is {text[:80]!r}, not {DISPATCH},port=1..{MOST_PORT},vni=1..{MOST_VNI} (nobody forwards to this node)"
