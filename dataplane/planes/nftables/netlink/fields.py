"""Keys and data of set elements: as nftables holds them in registers, and as its text spells them.

A register is four bytes. A key of several fields is their concatenation, each padded to whole registers. Addresses and
ports are in network byte order; a packet priority (`classid`), in which numbers travel between rules, is in host order.
"""

import re
import socket
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from dataplane.model.net import packed
from dataplane.planes.nftables.rules.skeleton import declarations, ranges_declaration
from dataplane.planes.nftables.rules.syntax import Syntax, number_text

Element = tuple[str, bytes]
"""Identity of an element: its target (`family table set`) and its key."""


def number(value: int) -> bytes:
    """Encode a number below 65536 as a packet priority, in the range ffff:0 and above."""
    return (0xFFFF0000 | value).to_bytes(4, sys.byteorder)


def number_of(data: bytes) -> int:
    """Decode the number in a packet priority; negative for a priority that is not hotplane's."""
    return int.from_bytes(data, sys.byteorder) - 0xFFFF0000


@lru_cache(maxsize=4096)
def port(value: int) -> bytes:
    """A port in a register."""
    return value.to_bytes(2, "big") + b"\0\0"


def ports(values: Sequence[int]) -> bytes:
    """Ports in registers, laid end to end."""
    registers, numbers = array("H", bytes(4 * len(values))), array("H", values)
    if sys.byteorder == "little":
        numbers.byteswap()
    registers[::2] = numbers
    return registers.tobytes()


def cut(laid: bytes, count: int) -> list[bytes]:
    """Cut so many fields of one width apart that are laid end to end."""
    width = len(laid) // count if count else 1
    return [laid[at : at + width] for at in range(0, len(laid), width)]


def port_of(data: bytes) -> int:
    """Decode the port in a register."""
    return int.from_bytes(data[:2], "big")


def address_port(address: str, value: int) -> bytes:
    """Encode the data of a backend: address and port."""
    return packed(address) + port(value)


def address_of(data: bytes) -> str:
    """An address's text from its 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


def _priority(data: bytes) -> str:
    value = int.from_bytes(data, sys.byteorder)
    return number_text(value & 0xFFFF) if value >= 0xFFFF0000 else f"{value >> 16:x}:{value & 0xFFFF:x}"


class _Field(NamedTuple):
    width: int
    text: Callable[[bytes], str]


_FIELDS = {
    "ipv4_addr": _Field(4, address_of),
    "ipv6_addr": _Field(16, address_of),
    "inet_proto": _Field(4, lambda data: str(data[0])),
    "inet_service": _Field(4, lambda data: str(port_of(data))),
    "classid": _Field(4, _priority),
}
_TYPES = re.compile(r"type ([^:;]+?)(?: : ([^;]+))?;")


def _concatenated(fields: Iterable[_Field], data: bytes) -> str:
    texts, offset = [], 0
    for field in fields:
        texts.append(field.text(data[offset : offset + field.width]))
        offset += field.width
    return " . ".join(texts)


class Layout:
    """Layout of the elements of one set or map.

    An element's value is its data and then its comment. In the one map whose data is a verdict, the data is the name
    of the chain to go to, and there is no comment.
    """

    def __init__(self, declaration: str) -> None:
        match = _TYPES.search(declaration)
        assert match is not None, f"no types in {declaration!r}"
        key, data = match.groups()
        self._key = [_FIELDS[name] for name in key.split(" . ")]
        self.verdict = data == "verdict"
        self._data = [_FIELDS[name] for name in data.split(" . ")] if data and not self.verdict else []
        self.key_bytes = sum(field.width for field in self._key)
        self.data_bytes = sum(field.width for field in self._data)

    def key_text(self, key: bytes) -> str:
        """Return the key as text of commands and listings."""
        return _concatenated(self._key, key)

    def rest_text(self, value: bytes) -> str:
        """Return the text after the key: comment and data."""
        if self.verdict:
            return f" : goto {value.decode()}"
        comment = value[self.data_bytes :].decode()
        data = _concatenated(self._data, value)
        return (f' comment "{comment}"' if comment else "") + (f" : {data}" if data else "")


class Layouts:
    """Layouts of all sets and maps that hotplane writes elements to, by target."""

    def __init__(self, syntax: Iterable[Syntax]) -> None:
        self._syntax = {w.own: w for w in syntax}
        self._known = {w.target(n): Layout(d) for w in self._syntax.values() for n, d in declarations(w).items()}

    def of(self, target: str) -> Layout:
        """Return the layout of `family table set`, a constant set or one of source ranges."""
        layout = self._known.get(target)
        if layout is None:
            syntax = self._syntax[target.rpartition(" ")[0]]
            layout = self._known[target] = Layout(ranges_declaration(syntax))
        return layout
