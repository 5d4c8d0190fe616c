"""Shape chains: one chain for each distinct kind of forwarding, shared by all frontends that forward like this.

A shape is the number of backends, the set they come from, when to masquerade, and the affinity timeout. The frontend is
known from the packet, and its backends are in maps. So the number of chains depends on the number of different shapes,
never on the number of Services.

A large number of backends is rounded up, so that it does not change with every endpoint: creating one chain and
deleting another takes longer than the rest of such a change. A draw that hits an unused index is repeated, which keeps
the choice uniform.
"""

import enum
import re
import zlib
from functools import lru_cache
from typing import NamedTuple

from dataplane.kernel.nft.pattern import HASH_SEED
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.rules.refusals import IN_CHANGE
from dataplane.planes.nftables.rules.syntax import HAS_NUMBER, LOCAL_OFFSET, STRAY_RULE, Kind, Syntax

AFFINITY_LIMIT = 1 << 20
"""Limit of clients per affinity map. If it is full, new clients are forwarded without affinity."""


ROUNDED = 64
"""A number of backends of at least this is rounded up, by at most a 32nd."""

_DRAWS = 4
"""Number of draws of a rounded shape before it takes the first backend, as one packet in a million does."""


def drawn_from(count: int) -> int:
    """Return the number of indexes that a shape for so many backends draws from."""
    if count < ROUNDED:
        return count
    step = 1 << (count.bit_length() - 6)
    return -(-count // step) * step


class Masquerade(enum.Enum):
    """The sources that a shape masquerades; the value is the part of the chain's name."""

    NOBODY = ""
    OFF_POD = "-offpod"
    EVERYBODY = "-masq"


class Shape(NamedTuple):
    """One kind of forwarding. size: indexes to draw from, at least 1 (see `drawn_from`). affinity: seconds, 0 =
    none."""

    nodeport: bool
    size: int
    local: bool
    masquerade: Masquerade
    affinity: int

    @property
    def name(self) -> str:
        """Return the chain's name, from which `shape_of` recovers the shape."""
        prefix = "np" if self.nodeport else "lb"
        sticky = f"-{self.affinity}s" if self.affinity else ""
        return f"{prefix}-{self.size}{'-local' if self.local else ''}{self.masquerade.value}{sticky}"


_NAME = re.compile(r"(lb|np)-([1-9]\d*)(-local)?(-offpod|-masq)?(?:-([1-9]\d*)s)?")


@lru_cache(maxsize=4096)
def shape_of(chain: str) -> Shape | None:
    """Return the shape of a chain's name, or None for any other chain."""
    match = _NAME.fullmatch(chain)
    if match is None:
        return None
    prefix, count, local, masquerade, affinity = match.groups()
    return Shape(prefix == "np", int(count), bool(local), Masquerade(masquerade or ""), int(affinity or 0))


class ShapeIds:
    """Numbers of shapes: stable as long as the kernel holds the shape, read from the kernel when a table is adopted.

    A number is derived from the shape's name, so that a shape that is added again gets the same one.
    """

    _FIRST, _END = 0x10, 0xFFF0

    def __init__(self) -> None:
        self._numbers: dict[Shape, int] = {}
        self._taken: set[int] = set()

    def of(self, shape: Shape) -> int:
        """Return the number of a shape. Raises PlaneError if there are too many shapes."""
        known = self._numbers.get(shape)
        if known is not None:
            return known
        room = self._END - self._FIRST
        if len(self._taken) >= room:
            raise PlaneError(f"more than {room} different ways to forward; use fewer affinity timeouts")
        number = zlib.crc32(shape.name.encode()) % room + self._FIRST
        while number in self._taken:
            number = number + 1 if number + 1 < self._END else self._FIRST
        self.adopt(shape, number)
        return number

    def forget(self, shape: Shape) -> None:
        """Free the number, if any, of a shape that was deleted from the kernel."""
        number = self._numbers.pop(shape, None)
        if number is not None:
            self._taken.discard(number)

    def adopt(self, shape: Shape, number: int) -> None:
        """Record the number that a shape has in the kernel."""
        self._taken.add(number)
        self._numbers[shape] = number


def affinity_name(kind: Kind, seconds: int) -> str:
    """Return the name of the affinity map of one timeout."""
    return f"{kind.affinity_prefix}-{seconds}"


def _affinity_key(syntax: Syntax, kind: Kind) -> str:
    """Return the packet fields of the affinity key: client and frontend.

    nftables 1.0.6 gives the key of a map update four 32-bit registers, which IPv4 fills exactly and IPv6 does not fit
    (it aborts). IPv6 therefore uses two independent 32-bit hashes of the same fields: two clients that collide
    in both (1 in 2^64) would share a backend, nothing worse.
    """
    fields = f"{syntax.ip} saddr . {kind.key}"
    if syntax.ip == "ip":
        return fields
    return f"jhash {fields} mod 4294967295 seed 0x68704c31 . jhash {fields} mod 4294967295 seed 0x1f83d9ab"


def affinity_map(syntax: Syntax, kind: Kind, seconds: int) -> str:
    """Return the command that adds the affinity map of one timeout, if it does not exist."""
    number = "numgen random mod 65536"
    key = f"type {syntax.address_type} . {kind.key_type} : classid"
    if syntax.ip != "ip":
        key = f"typeof {number} . {number} : meta priority"
    return (
        f"add map {syntax.target(affinity_name(kind, seconds))} "
        f"{{ {key}; flags dynamic,timeout; size {AFFINITY_LIMIT}; }}\n"
    )


def _sticky_rules(syntax: Syntax, kind: Kind, shape: Shape) -> list[str]:
    """Return the rules of a shape with affinity. They carry the slot number of the chosen backend in the packet's
    priority, the only 32-bit field besides the marks that rules can write; postrouting clears it.

    First rule: a known client whose slot still has a backend. A miss in any of the lookups ends the rule, and whether
    the priority has a number then tells known clients from new ones. Next: a known client whose backend is gone; delete
    it (an update does not overwrite the slot of a live element), and choose by a hash. Then: choose at random, add the
    client, forward. A full map ends such a rule too, so the last rules do not add the client.

    Two processors may have packets of one client at once, and both must forward to one backend. So each looks up what
    is remembered after it added its own choice: an update keeps what the other has added. What one has added for a
    client whose backend is gone the other may delete, and adds again, since the hash is the same; a miss in between is
    why that rule stands there twice.
    """
    remembered = affinity_name(kind, shape.affinity)
    client = _affinity_key(syntax, kind)
    known = f"meta priority set {client} map @{remembered}"
    remember = f"update @{remembered} {{ {client} timeout {shape.affinity}s : meta priority }}"
    backends = kind.local_slot_endpoints if shape.local else kind.slot_endpoints
    forward = f"dnat {syntax.ip} addr . port to {kind.key} . meta priority map @{backends}"
    slot = f"meta priority set {kind.key} . meta priority map @{kind.slots}"
    hashed = f"jhash {syntax.ip} saddr . {kind.key} mod {shape.size} seed {HASH_SEED} offset {_first(shape)}"
    moved = f"{HAS_NUMBER} meta priority set {hashed} {slot} {remember} {known} {forward}"
    choices = [f"{_choose(shape, size)} {slot}" for size in _tries(shape)]
    return [
        f"meta priority set 0:0 {known} {remember} {forward}",
        f"{HAS_NUMBER} delete @{remembered} {{ {client} : meta priority }}",
        *[moved] * 2,
        *(f"{choice} {remember} {known} {forward}" for choice in choices),
        *(f"{choice} {forward}" for choice in choices),
    ]


def _tries(shape: Shape) -> tuple[int, ...]:
    """Return the number of indexes of each draw; the next draw is used if the index is unused or was just removed."""
    return (*[shape.size] * (_DRAWS if shape.size >= ROUNDED else 1), 1)


def _choose(shape: Shape, size: int) -> str:
    """Return a statement that sets the packet's priority to a random backend index below `size`."""
    return f"meta priority set numgen random mod {size} offset {_first(shape)}"


def _first(shape: Shape) -> int:
    """Return the priority that stands for the first index of a shape's set."""
    return 0xFFFF0000 + (LOCAL_OFFSET if shape.local else 0)


def shape_rules(syntax: Syntax, shape: Shape) -> list[str]:
    """The rules of a shape's chain, in order.

    A packet may enter the chain before a commit and look up after it; an index that has just gone is then retried as
    index 0, which every set has, and a set that has just gone altogether costs this one packet.
    """
    kind = syntax.kind(shape.nodeport)
    marks = {
        Masquerade.NOBODY: [],
        Masquerade.OFF_POD: ["jump mark-off-pod"],
        Masquerade.EVERYBODY: ["jump mark-packet"],
    }
    rules = [STRAY_RULE, *marks[shape.masquerade]]
    if shape.affinity:
        rules += _sticky_rules(syntax, kind, shape)
    else:
        rules += [
            f"{_choose(shape, size)} dnat {syntax.ip} addr . port to {kind.key} . meta priority map @{kind.endpoints}"
            for size in _tries(shape)
        ]
    return [*rules, f"goto {IN_CHANGE.chain}"]


def add_shape(syntax: Syntax, shape: Shape) -> str:
    """Commands that make a shape's chain hold exactly its rules, whether or not it exists."""
    chain = syntax.target(shape.name)
    rules = "".join(f"add rule {chain} {rule}\n" for rule in shape_rules(syntax, shape))
    return f"add chain {chain}\nflush chain {chain}\n{rules}"
