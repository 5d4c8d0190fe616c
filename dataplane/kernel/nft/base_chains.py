"""The base chains of all nftables tables of a network namespace, read by one netlink dump a family.

Messages: linux/netfilter/nf_tables.h. Rules are not read: nothing can jump to a base chain, so the kernel's use counter
of one (NFTA_CHAIN_USE) is the number of its rules.
"""

from collections.abc import Iterator
from typing import NamedTuple

from dataplane.kernel.netlink.netlink import attributes, text_of
from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.kernel.nft.uapi import FAMILIES, TABLE, Chain, Operation

_HOOK_NUMBER, _HOOK_DEVICE, _HOOK_DEVICES = 1, 3, 4  # NFTA_HOOK_*
_INET = ("prerouting", "input", "forward", "output", "postrouting", "ingress")  # enum nf_inet_hooks
_NETDEV = ("ingress", "egress")  # enum nf_dev_hooks
_DROP = 0  # NF_DROP


class BaseChain(NamedTuple):
    """A chain that is attached to a hook. family: nftables' keyword. devices: of the hooks ingress and egress. rules:
    how many. drops: its policy is drop."""

    family: str
    table: str
    name: str
    hook: str
    devices: tuple[str, ...]
    rules: int
    drops: bool


def base_chains(netlink: Nfnetlink) -> Iterator[BaseChain]:
    """Yield every base chain of the namespace in which the socket was made. Raises Refused, OSError."""
    for family, number in FAMILIES.items():
        for answer in netlink.dump(Operation.GET_CHAIN.kind, number, b""):
            found = {kind: bytes(payload) for kind, payload in attributes(answer)}
            if Chain.HOOK in found:
                yield _base_chain(family, found)


def _base_chain(family: str, found: dict[int, bytes]) -> BaseChain:
    hook = {kind: bytes(payload) for kind, payload in attributes(found[Chain.HOOK])}
    number = int.from_bytes(hook.get(_HOOK_NUMBER, b""), "big")
    names = _NETDEV if family == "netdev" else _INET
    devices = [hook[_HOOK_DEVICE]] if _HOOK_DEVICE in hook else []
    if _HOOK_DEVICES in hook:
        devices = [bytes(payload) for _, payload in attributes(hook[_HOOK_DEVICES])]
    return BaseChain(
        family,
        text_of(memoryview(found.get(TABLE, b""))),
        text_of(memoryview(found.get(Chain.NAME, b""))),
        names[number] if number < len(names) else f"hook {number}",
        tuple(text_of(memoryview(device)) for device in devices),
        int.from_bytes(found.get(Chain.USE, b""), "big"),
        Chain.POLICY in found and int.from_bytes(found[Chain.POLICY], "big") == _DROP,
    )
