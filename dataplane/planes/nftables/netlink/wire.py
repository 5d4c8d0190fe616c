"""Set elements as netlink attributes, both ways (linux/netfilter/nf_tables.h, NFTA_SET_ELEM_*).

Attribute headers are in host byte order, numbers inside in network byte order.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence

from dataplane.kernel.netlink.netlink import attribute, attributes
from dataplane.planes.nftables.netlink.fields import Layout

NESTED = 0x8000
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT = 1 | NESTED
_KEY, _DATA, _FLAGS, _EXPIRATION, _USERDATA = 1, 2, 3, 5, 6
_VALUE, _VERDICT = 1, 2
_VERDICT_CHAIN = 2
_COMMENT = 0  # libnftnl's type of user data that holds a comment
_HEADER = struct.Struct("=HH")
_REGISTER = 4

LIST_LIMIT = 60_000
"""Bytes of elements in one message: a nested attribute's length has 16 bits."""


class Encoder:
    """Writes elements of one layout. Everything around key and data is constant and made once."""

    def __init__(self, layout: Layout) -> None:
        self._key, self._data = layout.key_bytes, layout.data_bytes
        self._key_head = self._nest(_KEY, self._key)
        self._data_head = self._nest(_DATA, self._data) if self._data else b""
        self._plain = 8 + self._key + len(self._data_head) + self._data
        self._head = self._element_head(self._plain)
        self._key_only = _HEADER.pack(4 + 8 + self._key, _ELEMENT) + self._key_head
        self._commented = _Commented(self)

    @staticmethod
    def _nest(kind: int, size: int) -> bytes:
        return _HEADER.pack(size + 8, kind | NESTED) + _HEADER.pack(size + 4, _VALUE)

    def _element_head(self, size: int) -> bytes:
        return _HEADER.pack(size + 4, _ELEMENT) + self._key_head

    def element(self, key: bytes, value: bytes) -> bytes:
        """An element to add: key, data and comment (see fields.Layout)."""
        size = self._data
        if len(value) == size:
            return self._head + key + self._data_head + value
        head, user, end = self._commented[len(value) - size]
        return head + key + self._data_head + value[:size] + user + value[size:] + end

    def around_comment(self, size: int) -> tuple[bytes, bytes, bytes]:
        """What stands before, between and behind the parts of an element whose comment has so many bytes."""
        whole = attribute(_USERDATA, bytes((_COMMENT, size + 1)) + bytes(size + 1))
        before = _HEADER.size + 2
        return self._element_head(self._plain + len(whole)), whole[:before], whole[before + size :]

    def elements(self, keys: Sequence[bytes], values: Sequence[bytes]) -> Sequence[bytes]:
        """Return elements to add, laid end to end in pieces of `LIST_LIMIT`."""
        size = self._data
        if size and min(map(len, values), default=0) > size:  # all have comments
            middle, around = self._data_head, [self._commented[len(value) - size] for value in values]
            single = [
                head + key + middle + value[:size] + user + value[size:] + end
                for (head, user, end), key, value in zip(around, keys, values, strict=True)
            ]
        else:
            single = list(map(self.element, keys, values))
        count = max(1, LIST_LIMIT // max(map(len, single), default=1))
        return [b"".join(single[at : at + count]) for at in range(0, len(single), count)]

    def laid(self, count: int, keys: Sequence[bytes], values: Sequence[bytes]) -> Sequence[bytes]:
        """The same of so many elements without comments. keys, values: in parts of whole registers, as an address and a
        port, each part of all elements laid end to end."""
        if not count:
            return []
        one = self._head + bytes(self._key) + self._data_head + bytes(self._data)
        data = bytearray(one * count)
        registers, step, at = memoryview(data).cast("I"), len(one) // _REGISTER, len(self._head) // _REGISTER
        for parts in (keys, values):
            for part in parts:
                source, width = memoryview(part).cast("I"), len(part) // count // _REGISTER
                for word in range(width):
                    registers[at + word :: step] = source[word::width]
                at += width
            at += len(self._data_head) // _REGISTER
        size = LIST_LIMIT // len(one) * len(one)
        return [bytes(data[first : first + size]) for first in range(0, len(data), size)]

    def key(self, key: bytes) -> bytes:
        """An element to delete: the key alone."""
        return self._key_only + key


class _Commented(dict[int, tuple[bytes, bytes, bytes]]):
    """What stands around the parts of an element, by the length of its comment."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder

    def __missing__(self, size: int) -> tuple[bytes, bytes, bytes]:
        found = self[size] = self._encoder.around_comment(size)
        return found


def _names(target: str) -> bytes:
    _, table, name = target.split(" ")
    return attribute(_LIST_TABLE, table.encode() + b"\0") + attribute(_LIST_SET, name.encode() + b"\0")


def dump_request(target: str) -> bytes:
    """Return the attributes of a request for all elements of `family table set`."""
    return _names(target)


def lists(target: str, elements: Iterable[bytes]) -> Iterator[bytes]:
    """Return the attributes of each message that the elements of one set need."""
    return whole_lists(target, _pieces(elements))


def whole_lists(target: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the attributes of each message for elements of one set that are laid end to end (see Encoder.elements)."""
    names = _names(target)
    return (names + attribute(_LIST_ELEMENTS | NESTED, piece) for piece in pieces)


def _pieces(elements: Iterable[bytes]) -> Iterator[bytes]:
    """Lay elements end to end, in pieces of `LIST_LIMIT`."""
    held: list[bytes] = []
    size = 0
    for element in elements:
        if size + len(element) > LIST_LIMIT:
            yield b"".join(held)
            held, size = [], 0
        held.append(element)
        size += len(element)
    if held:
        yield b"".join(held)


def _element_list(message: bytes | memoryview) -> memoryview | None:
    for kind, payload in attributes(message):
        if kind == _LIST_ELEMENTS:
            return payload
    return None


def decode(message: bytes | memoryview, layout: Layout) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each element in the attributes of one message."""
    payload = _element_list(message)
    if not payload:
        return
    size = layout.key_bytes + layout.data_bytes + (20 if layout.data_bytes else 12)
    if not layout.verdict and len(payload) % size == 0:
        plain = _plain_elements(payload, layout)
        if plain is not None:
            yield from plain
            return
    commented = _commented_elements(bytes(payload), layout) if layout.data_bytes else None
    if commented is not None:
        yield from commented
        return
    for _, element in attributes(payload):
        found = one(element, layout)
        if found is not None:
            yield found


def _commented_elements(payload: bytes, layout: Layout) -> list[tuple[bytes, bytes]] | None:
    """Parse a list whose elements are keys and data, and comments behind some; None if one has anything else."""
    key, data = _HEADER.size + 8, _HEADER.size + 8 + layout.key_bytes + 8
    behind = data + layout.data_bytes
    heads = payload[_HEADER.size : key] + payload[data - 8 : data]
    first = next(attributes(payload))[1]
    if [kind for kind, _ in attributes(first)][:2] != [_KEY, _DATA]:
        return None
    found, at, unpack = list[tuple[bytes, bytes]](), 0, _HEADER.unpack_from
    while at + behind <= len(payload):
        end = at + unpack(payload, at)[0]
        rest = end - at - behind
        if end > len(payload) or rest < 0 or 0 < rest < _HEADER.size + 2:
            return None
        if payload[at + _HEADER.size : at + key] + payload[at + data - 8 : at + data] != heads:
            return None
        value = payload[at + data : at + behind]
        if rest:
            size, kind = unpack(payload, at + behind)
            user = at + behind + _HEADER.size
            if kind != _USERDATA or at + behind + ((size + 3) & ~3) != ((end + 3) & ~3) or payload[user] != _COMMENT:
                return None
            value += payload[user + 2 : at + behind + size][: payload[user + 1]].rstrip(b"\0")
        found.append((payload[at + key : at + data - 8], value))
        at = (end + 3) & ~3
    return found if at >= len(payload) else None


def _plain_elements(payload: memoryview, layout: Layout) -> Iterator[tuple[bytes, bytes]] | None:
    """Parse a list whose elements are only keys and data; None if one has more. Nearly all are like this, and parsing
    them takes most of the time."""
    heads = f"12s{layout.key_bytes}s" + (f"8s{layout.data_bytes}s" if layout.data_bytes else "0s0s")
    found = list(struct.iter_unpack(f"={heads}", payload))
    if len({head for head, _, _, _ in found}) > 1 or len({head for _, _, head, _ in found}) > 1:
        return None
    first = next(attributes(payload))[1]
    if [kind for kind, _ in attributes(first)] != ([_KEY, _DATA] if layout.data_bytes else [_KEY]):
        return None
    return ((key, data) for _, key, _, data in found)


def one(element: memoryview, layout: Layout) -> tuple[bytes, bytes] | None:
    """(key, value) of one element from its attributes; None for one that has no key of its own (an interval's end and
    the like) or that has run out and is only waiting to be freed."""
    key = data = comment = b""
    for kind, payload in attributes(element):
        if kind == _KEY:
            key = _content(payload, _VALUE)
        elif kind == _DATA:
            data = _chain(payload) if layout.verdict else _content(payload, _VALUE)
        elif (kind == _FLAGS and any(payload)) or (kind == _EXPIRATION and not any(payload)):
            return None
        elif kind == _USERDATA:
            comment = _comment(payload)
    return (key, data + comment) if key else None


def remembered(message: memoryview) -> Iterator[tuple[bytes, bytes, int]]:
    """(key, data, milliseconds left) of each element that runs out, in the attributes of one message."""
    for _, element in attributes(_element_list(message) or b""):
        parts = {kind: bytes(payload) for kind, payload in attributes(element)}
        left = int.from_bytes(parts.get(_EXPIRATION, b""), "big")
        if left and _KEY in parts:
            yield _content(parts[_KEY], _VALUE), _content(parts.get(_DATA, b""), _VALUE), left


def _content(payload: bytes | memoryview, kind: int) -> bytes:
    return next((bytes(inner) for found, inner in attributes(payload) if found == kind), b"")


def _chain(payload: memoryview) -> bytes:
    return _content(_content(payload, _VERDICT), _VERDICT_CHAIN).rstrip(b"\0")


def _comment(payload: memoryview) -> bytes:
    """Return the comment in an element's user data: type and length in a byte each, then the value."""
    offset = 0
    while offset + 2 <= len(payload):
        kind, length = payload[offset], payload[offset + 1]
        if kind == _COMMENT:
            return bytes(payload[offset + 2 : offset + 2 + length]).rstrip(b"\0")
        offset += 2 + length
    return b""


def element_at(message: bytes, layout: Layout, offset: int) -> bytes | None:
    """Return the key of the element that contains a byte of a message's attributes."""
    payload = _element_list(message)
    if payload is None:
        return None
    end = len(message) - (-len(payload) % 4)
    start = end - len(payload)
    for _, element in attributes(payload):
        size = (len(element) + 3) & ~3
        if start <= offset < start + 4 + size:
            found = one(element, layout)
            return found[0] if found is not None else None
        start += 4 + size
    return None
