"""A network namespace's nftables tables as the kernel tells them, without what differs from one making to the next."""

from collections.abc import Iterator

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink.netlink import attributes, text_of
from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.kernel.nft import uapi as nf_tables
from dataplane.kernel.nft.uapi import NAME, TABLE, Chain, Operation, Rule

_OBJECTS = 19  # NFT_MSG_GETOBJ
_RULE_HANDLES = (3, 6)  # NFTA_RULE_HANDLE, NFTA_RULE_POSITION
_SET_HANDLES = (16, 19)  # NFTA_SET_HANDLE, NFTA_SET_TYPE

Dump = dict[tuple[str, ...], object]


def dump(namespace: str, *families: str) -> Dump:
    """Everything in the tables of these families: (family, what it is, table, name, ...) to its attributes as bytes."""
    netlink = in_netns(namespace, Nfnetlink)
    return {key: value for family in families for key, value in _family(netlink, family)}


def _family(netlink: Nfnetlink, family: str) -> Iterator[tuple[tuple[str, ...], object]]:
    number = nf_tables.FAMILIES[family]

    def all_of(kind: int, request: bytes = b"") -> list[dict[int, memoryview]]:
        return [dict(attributes(message)) for message in netlink.dump(kind, number, request)]

    for parts in all_of(Operation.GET_CHAIN.kind):
        place = [bytes(parts.get(kind, b"")) for kind in (Chain.HOOK, Chain.POLICY, Chain.TYPE)]
        yield (family, "chain", text_of(parts[TABLE]), text_of(parts[Chain.NAME])), place
    rules: Dump = {}
    for parts in all_of(Operation.GET_RULE.kind):
        key = (family, "rules", text_of(parts[TABLE]), text_of(parts[Rule.CHAIN]))
        held = {k: bytes(v) for k, v in parts.items() if k not in _RULE_HANDLES}
        found = rules.setdefault(key, [])
        assert isinstance(found, list)
        found.append(held)
    yield from rules.items()
    for parts in all_of(Operation.GET_SET.kind):
        table, name = text_of(parts[TABLE]), text_of(parts[NAME])
        yield (family, "set", table, name), {k: bytes(v) for k, v in parts.items() if k not in _SET_HANDLES}
        request = nf_tables.text(TABLE, table) + nf_tables.text(NAME, name)
        lists = all_of(Operation.GET_ELEMENTS.kind, request)
        elements = [bytes(e) for p in lists for _, e in attributes(p.get(nf_tables.ELEMENT_LIST, b""))]
        yield (family, "elements", table, name), sorted(elements)
    for parts in all_of(nf_tables.SUBSYSTEM << 8 | _OBJECTS):
        yield (family, "object", text_of(parts[TABLE]), text_of(parts[NAME])), bytes(parts[3])
