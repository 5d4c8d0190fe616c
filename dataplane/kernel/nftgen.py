"""The generation of a network namespace's nftables rules: a number that every commit, whoever's, raises by one.

Equal numbers prove that nobody has changed a table in between; asking takes some microseconds, listing takes seconds.
Messages: linux/netfilter/nf_tables.h (NFT_MSG_GETGEN), linux/netfilter/nfnetlink.h.
"""

import socket
import struct

from dataplane.errors import HotplaneError

_NETLINK_NETFILTER = 12
_GETGEN = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
_NEWGEN = 10 << 8 | 15
_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr, host byte order
_GENERIC = struct.Struct("=BBH")  # struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_GEN_ID = 1  # NFTA_GEN_ID, 32 bits in network byte order


class GenerationError(HotplaneError):
    """The kernel did not say its generation."""


class Generation:
    """Asks for the generation in the network namespace in which the object was made."""

    def __init__(self) -> None:
        self._door = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._door.settimeout(1.0)

    def read(self) -> int:
        """The generation now. Raises GenerationError."""
        length = _HEADER.size + _GENERIC.size
        message = _HEADER.pack(length, _GETGEN, _REQUEST, 0, 0) + _GENERIC.pack(socket.AF_UNSPEC, 0, 0)
        try:
            self._door.send(message)
            answer = self._door.recv(4096)
        except OSError as error:
            raise GenerationError(f"the kernel does not tell the generation of nftables rules: {error}") from error
        size, kind, _, _, _ = _HEADER.unpack_from(answer)
        offset = length
        while kind == _NEWGEN and offset + _ATTRIBUTE.size <= size:
            width, name = _ATTRIBUTE.unpack_from(answer, offset)
            if name == _GEN_ID:
                return int.from_bytes(answer[offset + 4 : offset + 8], "big")
            offset += max(4, (width + 3) & ~3)
        raise GenerationError(f"the kernel answered with message {kind} where a generation was asked for")

    def close(self) -> None:
        """Close the socket."""
        self._door.close()
