"""Compiles one of several rules that differ only in numbers, and inserts the numbers of each into the result.

The numbers are of how many to choose (`numgen random mod N`, `jhash ... mod N` with `HASH_SEED`), how long to remember
(`timeout Ns`), the one that a set's name ends in, and a destination address. So a change with a new number does not
wait for the compiler.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from dataplane.errors import PlaneError
from dataplane.kernel.netlink.netlink import attribute, attributes, text_of
from dataplane.kernel.nft import uapi as nf_tables
from dataplane.model.net import packed

NUMBER = re.compile(r"\d+$")
"""The number that a set's name ends in; 1 in a pattern."""

HASH_SEED = "0x3c6ef372"
"""The seed of hashes that choose; those with any other seed keep their modulus."""

_HOLES = re.compile(
    rf"(?P<modulus>(?<=numgen random mod )\d+|(?<= mod )\d+(?= seed {HASH_SEED}))"
    r"|(?P<timeout>(?<=timeout )\d+(?=s))|(?P<set>(?<= )@[a-z-]+-\d+)"
    r"|(?P<address>(?<=daddr )(?:\d+\.\d+\.\d+\.\d+|[0-9a-f]*:[0-9a-f:.]+)(?= ))"
)
_SAMPLES = {4: "192.0.2.77", 16: "2001:db8:77::77"}
"""Addresses in patterns, by their bytes: for documentation only, so that no rule has them for another reason."""

_NAME, _DATA = 1, 2  # NFTA_EXPR_*
_MODULUS = 2  # NFTA_NG_MODULUS
_HASH_MODULUS, _SEED = 4, 5  # NFTA_HASH_MODULUS, NFTA_HASH_SEED
_TIMEOUT = 6  # NFTA_DYNSET_TIMEOUT
_SET = 1  # NFTA_LOOKUP_SET, NFTA_DYNSET_SET_NAME
_LOOKUP_SET_ID = 4
_COMPARED = 3  # NFTA_CMP_DATA


class Pattern(NamedTuple):
    """A rule without the numbers that are put in afterwards. moduli, timeouts (seconds), addresses (in network byte
    order): in the order of the text. names: of sets, from those in the text."""

    text: str
    moduli: tuple[int, ...]
    timeouts: tuple[int, ...]
    addresses: tuple[bytes, ...]
    names: tuple[tuple[str, str], ...]


@lru_cache(maxsize=4096)
def pattern(rule: str) -> Pattern:
    """A rule's pattern. Raises PlaneError for two sets whose names only differ in their number."""
    moduli, timeouts, addresses, names = list[int](), list[int](), list[bytes](), dict[str, str]()

    def take(match: re.Match[str]) -> str:
        found = match.group()
        if match.lastgroup == "set":
            sample = NUMBER.sub("1", found)
            if names.setdefault(sample[1:], found[1:]) != found[1:]:
                raise PlaneError(f"an nftables rule names two sets of one kind: {rule}")
            return sample
        if match.lastgroup == "address":
            addresses.append(packed(found))
            return _SAMPLES[len(addresses[-1])]
        (moduli if match.lastgroup == "modulus" else timeouts).append(int(found))
        return "1"

    text = _HOLES.sub(take, rule)
    return Pattern(text, tuple(moduli), tuple(timeouts), tuple(addresses), tuple(names.items()))


def filled(expressions: bytes, wanted: Pattern, numbers: Mapping[str, int]) -> bytes:
    """A compiled rule's expressions with a pattern's numbers put in. numbers: of anonymous sets in the transaction, by
    the names that they have in the expressions. Raises PlaneError where not all find their place."""
    filling = _Filling(wanted, numbers)
    made = b"".join(
        nf_tables.nested(nf_tables.LIST_ELEMENT, filling.expression(bytes(expression)))
        for _, expression in attributes(expressions)
    )
    if filling.moduli or filling.timeouts or filling.addresses:
        raise PlaneError(f"libnftables compiled a rule to something that has no room for its numbers: {wanted.text}")
    return made


class _Filling:
    """Puts a pattern's numbers into the expressions of its rule, one after the other; keeps those that are left."""

    def __init__(self, wanted: Pattern, numbers: Mapping[str, int]) -> None:
        self.moduli, self.timeouts = list(wanted.moduli), list(wanted.timeouts)
        self.addresses = list(wanted.addresses)
        self._names, self._numbers = dict(wanted.names), numbers
        self._kinds: dict[str, Callable[[dict[int, bytes]], None]] = {
            "numgen": self._choose, "hash": self._hash, "dynset": self._remember, "lookup": self._look_up,
            "cmp": self._compare,
        }  # fmt: skip

    def expression(self, expression: bytes) -> bytes:
        """One expression with what belongs into it."""
        parts = dict(attributes(expression))
        name = text_of(parts[_NAME])
        fill = self._kinds.get(name)
        if fill is None:
            return expression
        data = {kind: bytes(payload) for kind, payload in attributes(parts[_DATA])}
        fill(data)
        content = (attribute(kind, payload) for kind, payload in data.items())
        return nf_tables.text(_NAME, name) + nf_tables.nested(_DATA, *content)

    def _choose(self, data: dict[int, bytes]) -> None:
        if self.moduli:
            data[_MODULUS] = self.moduli.pop(0).to_bytes(4, "big")

    def _hash(self, data: dict[int, bytes]) -> None:
        if self.moduli and data[_SEED] == int(HASH_SEED, 16).to_bytes(4, "big"):
            data[_HASH_MODULUS] = self.moduli.pop(0).to_bytes(4, "big")

    def _remember(self, data: dict[int, bytes]) -> None:
        if _TIMEOUT in data and self.timeouts:
            data[_TIMEOUT] = (self.timeouts.pop(0) * 1000).to_bytes(8, "big")
        self._name(data)

    def _look_up(self, data: dict[int, bytes]) -> None:
        number = self._numbers.get(text_of(memoryview(data[_SET])))
        if number is None:
            self._name(data)
        else:
            data[_SET] = b"__set%d\0"
            data[_LOOKUP_SET_ID] = number.to_bytes(4, "big")

    def _name(self, data: dict[int, bytes]) -> None:
        held = text_of(memoryview(data[_SET]))
        data[_SET] = self._names.get(held, held).encode() + b"\0"

    def _compare(self, data: dict[int, bytes]) -> None:
        if not self.addresses:
            return
        sample = packed(_SAMPLES[len(self.addresses[0])])
        if data[_COMPARED] == attribute(nf_tables.DATA_VALUE, sample):
            data[_COMPARED] = attribute(nf_tables.DATA_VALUE, self.addresses.pop(0))
