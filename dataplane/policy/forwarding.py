"""How external traffic gets to an endpoint of another node: behind this node's address, or with the client's kept.

Source of the rules: Cilium's `loadBalancer.mode` (snat, dsr, hybrid) and `service.cilium.io/forwarding-mode`; Calico's
default, whose answers go back through the node that took the packet (tunnel).
"""

import enum
from collections.abc import Iterable
from typing import NamedTuple

from dataplane.model.forwarding import DEFAULT_PORT as DEFAULT_PORT
from dataplane.model.forwarding import DEFAULT_VNI as DEFAULT_VNI
from dataplane.model.forwarding import DISPATCHES
from dataplane.model.forwarding import MORE as MORE
from dataplane.model.forwarding import Dispatch as Dispatch
from dataplane.model.net import Protocol, canonical_address
from dataplane.model.report import special_reason, valid_name


class Forwarding(enum.Enum):
    """The way of a packet that came from outside to a node port, load-balancer IP or externalIP, to an endpoint of
    another node.

    SNAT: with this node's address as its source; the answers come back to it. TUNNEL: in a tunnel (Dispatch) to the
    endpoint's node, with the client's address kept; the answers come back the same way. DSR: likewise, but the
    endpoint's node answers the client itself, as the frontend (direct server return).
    """

    SNAT = "snat"
    TUNNEL = "tunnel"
    DSR = "dsr"
    __hash__ = object.__hash__  # members are singletons, and Enum's own hash is slow Python code


class LbMode(enum.Enum):
    """The node's setting (`--lb-mode`). HYBRID: TCP goes by DSR, everything else by SNAT, as in Cilium."""

    SNAT = "snat"
    TUNNEL = "tunnel"
    DSR = "dsr"
    HYBRID = "hybrid"
    __hash__ = object.__hash__

    def of(self, protocol: Protocol) -> Forwarding:
        """Return the way of a protocol's packets under this setting."""
        if self is LbMode.HYBRID:
            return Forwarding.DSR if protocol is Protocol.TCP else Forwarding.SNAT
        return Forwarding(self.value)


class TunnelPeer(NamedTuple):
    """Another node that speaks it, and its address, in canonical form, of the family in question. also: in which
    formats besides VXLAN it takes packets."""

    node: str
    address: str
    also: tuple[Dispatch, ...] = ()


def parse_peers(texts: Iterable[str]) -> tuple[TunnelPeer, ...]:
    """Read `NODE=ADDRESS[,ADDRESS][,FORMAT...]`, of which there may be several. Raises ValueError with a sentence."""
    found: dict[TunnelPeer, None] = {}
    for text in texts:
        node, equals, addresses = (part.strip() for part in text.partition("="))
        if not equals or not node or not valid_name(node.lower()):
            raise ValueError(f"{text[:80]!r} is not NODE=ADDRESS[,ADDRESS][,FORMAT...], such as node2=192.0.2.2,geneve")
        parts = [part.strip() for part in addresses.split(",")]
        formats = {part.lower() for part in parts if part.lower() in DISPATCHES}
        also = tuple(dispatch for dispatch in MORE if dispatch.value in formats)
        named = [part for part in parts if part.lower() not in DISPATCHES]
        if not named:
            raise ValueError(f"{text[:80]!r} names no address, as in node2=192.0.2.2,geneve")
        for address in named:
            canonical = canonical_address(address)
            if special_reason(canonical, link_local=False):
                raise ValueError(f"{text[:80]!r}: {canonical} is no node's address that another node can reach")
            found[TunnelPeer(node.lower(), canonical, also)] = None
    return tuple(found)


def forwarding_of(asked: str, node_mode: LbMode, protocol: Protocol) -> Forwarding:
    """Return the way of a Service port's external traffic. asked: by the Service (Service.forwarding_mode), "" = as
    the node's mode has it. SCTP is beyond the packet programs, and gets SNAT."""
    if protocol is Protocol.SCTP:
        return Forwarding.SNAT
    return (LbMode(asked) if asked else node_mode).of(protocol)
