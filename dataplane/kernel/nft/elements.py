"""Elements whose type follows from their text, as netlink attributes: addresses, networks, protocols by their names,
ports, packet priorities, verdicts. A number is a port."""

import ipaddress
import re
import sys

from dataplane.errors import PlaneError
from dataplane.kernel.netlink.netlink import attribute
from dataplane.kernel.nft import uapi as nf_tables
from dataplane.kernel.nft.uapi import Element, nested, number
from dataplane.model.net import Protocol, packed

# What libnftnl notes of an interval without an end, for listings: type, length, SET_ELEM_F_INTERVAL_OPEN.
_OPEN = attribute(Element.USERDATA, bytes((1, 4)) + (1).to_bytes(4, sys.byteorder))
_PROTOCOLS = {each.text: bytes([each.value, 0, 0, 0]) for each in Protocol}
_MOST_PORT = 65535
_CLASS_ID = re.compile(r"([0-9a-f]{1,4}):([0-9a-f]{1,4})")


def encoded(elements: str) -> bytes:
    """The content of an element list of `{ KEY[ : goto CHAIN], ... }` or `{ NETWORK, ... }`, the latter for a set of
    intervals. Raises PlaneError."""
    texts = [text.strip() for text in elements.strip().removeprefix("{").removesuffix("}").split(",")]
    if all("/" in text for text in texts):
        return _intervals(texts)
    return b"".join(_element(text) for text in texts)


def _element(text: str) -> bytes:
    key, _, verdict = text.partition(" : ")
    data = b"".join(_field(field) for field in key.split(" . "))
    parts = [_value(data)]
    if verdict:
        verb, _, chain = verdict.partition(" ")
        if verb != "goto":
            raise PlaneError(f"hotplane has no nftables element like this: {text}")
        code = number(nf_tables.VERDICT_CODE, nf_tables.GOTO)
        held = nested(nf_tables.DATA_VERDICT, code, nf_tables.text(nf_tables.VERDICT_CHAIN, chain))
        parts.append(nested(Element.DATA, held))
    return nested(nf_tables.LIST_ELEMENT, *parts)


def _field(text: str) -> bytes:
    """A field of a key, in whole registers: a packet priority in host byte order, the others in network byte order."""
    if text in _PROTOCOLS:
        return _PROTOCOLS[text]
    if text.isdecimal() and int(text) <= _MOST_PORT:
        return int(text).to_bytes(2, "big") + bytes(2)
    class_id = _CLASS_ID.fullmatch(text)
    if class_id is not None:
        return (int(class_id[1], 16) << 16 | int(class_id[2], 16)).to_bytes(4, sys.byteorder)
    try:
        return packed(text)
    except OSError as error:
        raise PlaneError(f"hotplane has no nftables element like this: {text}") from error


def _intervals(texts: list[str]) -> bytes:
    """Each network's first address and, marked as an end, the first one behind it, where there is one."""
    made = []
    for network in sorted((ipaddress.ip_network(text) for text in texts), key=lambda n: n.network_address.packed):
        behind = int(network.broadcast_address) + 1
        is_open = bool(behind >> network.max_prefixlen)
        first = _value(network.network_address.packed) + (_OPEN if is_open else b"")
        made.append(nested(nf_tables.LIST_ELEMENT, first))
        if not is_open:
            last = _value(behind.to_bytes(network.max_prefixlen // 8, "big"))
            made.append(nested(nf_tables.LIST_ELEMENT, last, number(Element.FLAGS, nf_tables.INTERVAL_END)))
    return b"".join(made)


def _value(key: bytes) -> bytes:
    return nested(Element.KEY, attribute(nf_tables.DATA_VALUE, key))
