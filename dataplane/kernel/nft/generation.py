"""Generation of a network namespace's nftables rules: a number that every commit, by any process, increases by one.

Equal numbers prove that no table was changed in between. Reading it takes microseconds, listing tables takes seconds.
Messages: linux/netfilter/nf_tables.h (NFT_MSG_GETGEN), linux/netfilter/nfnetlink.h.
"""

import socket

from dataplane.errors import HotplaneError
from dataplane.kernel.netlink.netlink import Refused, attributes
from dataplane.kernel.netlink.nfnetlink import Message, Nfnetlink
from dataplane.resource import Resource

_GETGEN = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
_GEN_ID = 1  # NFTA_GEN_ID, 32 bits in network byte order


class GenerationError(HotplaneError):
    """The kernel did not say its generation."""


class Generation(Resource):
    """Asks for the generation in the network namespace in which the object was made."""

    def __init__(self) -> None:
        self._netlink = Nfnetlink()

    def read(self) -> int:
        """The generation now. Raises GenerationError."""
        try:
            answer = self._netlink.request(Message(_GETGEN, 0, socket.AF_UNSPEC, b""))
        except (Refused, OSError) as error:
            raise GenerationError(f"the kernel does not tell the generation of nftables rules: {error}") from error
        for kind, payload in attributes(answer):
            if kind == _GEN_ID:
                return int.from_bytes(payload, "big")
        raise GenerationError("the kernel's answer lacks the generation of nftables rules")

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()
