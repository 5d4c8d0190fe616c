"""The elements of hotplane's sets in the kernel, written and read without libnftables.

Only elements, and only where there are many or where text would be read back: libnftables takes seconds and hundreds of
megabytes for what the kernel does in tenths. Tables, sets, chains, rules and verdicts stay with libnftables' text,
which knows how to compile them; so do elements that have to share a transaction with any of these, because one
transaction is either the one or the other.
"""

import copy
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from dataplane.kernel.nfnetlink import BODY, CREATE, Message, Nfnetlink, Refused, attribute, attributes, text_of
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables import wire
from dataplane.planes.nftables.fields import Element, Layouts

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GET_TABLES, _GET_CHAINS, _GET_RULES, _GET_SETS = 1, 4, 7, 10
_NEW_ELEMENTS, _GET_ELEMENTS, _DELETE_ELEMENTS = 12, 13, 14
_TABLE, _CHAIN_NAME, _RULE_CHAIN, _SET_NAME, _SET_FLAGS, _SET_COUNT = 1, 3, 2, 2, 3, 20
_ANONYMOUS, _DYNAMIC = 0x1, 0x10 | 0x20  # NFT_SET_ANONYMOUS; NFT_SET_TIMEOUT, NFT_SET_EVAL
_READ_ATTEMPTS = 20
_PAUSE = 0.005
"""Seconds by which the wait before each further attempt to read a set grows."""
_FAMILIES = {"ip": socket.AF_INET, "ip6": socket.AF_INET6}


def _message(operation: int, target: str, attributes: bytes) -> Message:
    flags = CREATE if operation == _NEW_ELEMENTS else 0
    return Message(_SUBSYSTEM << 8 | operation, flags, _FAMILIES[target.partition(" ")[0]], attributes)


class ElementStore:
    """Elements in the network namespace of the thread that makes the object. Not for use by two threads at once."""

    def __init__(self, layouts: Layouts) -> None:
        self._layouts = layouts
        self._door = Nfnetlink()
        self._encoders: dict[str, wire.Encoder] = {}

    def of(self, layouts: Layouts) -> "ElementStore":
        """A store of other tables in the same network namespace. Not for use by two threads at once with this one."""
        other = copy.copy(self)
        other._layouts, other._encoders = layouts, {}
        return other

    def _encoder(self, target: str) -> wire.Encoder:
        encoder = self._encoders.get(target)
        if encoder is None:
            encoder = self._encoders[target] = wire.Encoder(self._layouts.of(target))
        return encoder

    def change(self, removed: Iterable[Element], added: Iterable[tuple[Element, bytes]]) -> None:
        """Remove and add elements in one transaction: all of it or nothing. Raises PlaneError, naming the element.

        An element that is there with the same value may be added again; one that is not there cannot be removed.
        """
        self.send(self.messages(removed, added))

    def messages(self, removed: Iterable[Element], added: Iterable[tuple[Element, bytes]]) -> list[Message]:
        """What `send` takes, for a change that another thread is to send."""
        deletions: dict[str, list[bytes]] = defaultdict(list)
        for target, key in removed:
            deletions[target].append(self._encoder(target).key(key))
        additions: dict[str, list[bytes]] = defaultdict(list)
        before = ""
        for (target, key), value in added:
            if target != before:  # they mostly come in runs
                before, element, append = target, self._encoder(target).element, additions[target].append
            append(element(key, value))
        return [
            _message(operation, target, attributes)
            for operation, elements in ((_DELETE_ELEMENTS, deletions), (_NEW_ELEMENTS, additions))
            for target, encoded in elements.items()
            for attributes in wire.lists(target, encoded)
        ]

    def send(self, messages: list[Message]) -> None:
        """Send one transaction. Raises PlaneError."""
        try:
            self._door.transact(_SUBSYSTEM, messages)
        except Refused as error:
            where = "" if error.message is None else self._about(messages[error.message], error.offset)
            raise PlaneError(f"nftables refused a change, nothing of it was applied: {error}{where}") from error
        except OSError as error:
            raise PlaneError(f"nftables could not be told a change: {error}; run as root") from error

    def _about(self, message: Message, offset: int) -> str:
        """What a refused message was about, as far as the kernel points at it."""
        words = next(ip for ip, number in _FAMILIES.items() if number == message.family)
        names = [text_of(payload) for kind, payload in attributes(message.attributes) if kind in (1, 2)]
        target = " ".join((words, *names))
        verb = "add" if message.kind & 0xFF == _NEW_ELEMENTS else "delete"
        layout = self._layouts.of(target)
        key = wire.element_at(message.attributes, layout, offset - BODY)
        return f" at: {verb} element {target}" + (f" {{ {layout.key_text(key)} }}" if key is not None else "")

    def _dump(self, operation: int, target: str, attributes: bytes) -> list[memoryview]:
        message = _message(operation, target, b"")
        try:
            return self._door.dump(message.kind, message.family, attributes)
        except (Refused, OSError) as error:
            raise PlaneError(f"nftables table {target} cannot be read: {error}") from error

    def elements(self, target: str) -> dict[bytes, bytes]:
        """Key to value of every element of `family table set`. Raises PlaneError.

        The kernel answers a large dump in pieces, and says nothing when its hash table was resized between two of them
        (as it is for a moment after many additions), though elements are then missing. So a dump in pieces counts
        only if it has as many elements as the kernel says the set has (Linux 6.15 and later), or as the dump before.
        """
        layout = self._layouts.of(target)
        before = -1
        for attempt in range(_READ_ATTEMPTS):
            time.sleep(_PAUSE * attempt)
            messages = self._dump(_GET_ELEMENTS, target, wire.dump_request(target))
            found = dict(element for message in messages for element in wire.decode(message, layout))
            if len(messages) <= 1 or len(found) in (before, self._count(target)):
                return found
            before = len(found)
        raise PlaneError(f"nftables set {target} keeps changing while it is read; try again")

    def _count(self, target: str) -> int:
        """How many elements a set has, -1 where the kernel does not say."""
        own, _, name = target.rpartition(" ")
        for parts in self._sets(own):
            if text_of(parts[_SET_NAME]) == name and _SET_COUNT in parts:
                return int.from_bytes(parts[_SET_COUNT], "big")
        return -1

    def clients(self, target: str) -> list[tuple[bytes, bytes, int]]:
        """(key, data, milliseconds left) of every element of an affinity map. Raises PlaneError."""
        messages = self._dump(_GET_ELEMENTS, target, wire.dump_request(target))
        return [client for message in messages for client in wire.remembered(message)]

    def has_table(self, target: str) -> bool:
        """Whether there is a table `family table`. Raises PlaneError."""
        table = target.partition(" ")[2]
        return any(self._texts(message)[_TABLE] == table for message in self._dump(_GET_TABLES, target, b""))

    def chains(self, target: str) -> dict[str, int]:
        """Number of rules of each chain of `family table`. Raises PlaneError."""
        table = target.partition(" ")[2]
        request = attribute(_TABLE, table.encode() + b"\0")
        chains = [self._texts(message) for message in self._dump(_GET_CHAINS, target, request)]
        rules = [self._texts(message) for message in self._dump(_GET_RULES, target, request)]
        counts = Counter(rule[_RULE_CHAIN] for rule in rules if rule[_TABLE] == table)
        return {chain[_CHAIN_NAME]: counts[chain[_CHAIN_NAME]] for chain in chains if chain[_TABLE] == table}

    def _sets(self, target: str) -> Iterator[dict[int, memoryview]]:
        table = target.partition(" ")[2]
        for message in self._dump(_GET_SETS, target, attribute(_TABLE, table.encode() + b"\0")):
            parts = dict(attributes(message))
            if text_of(parts[_TABLE]) == table:
                yield parts

    def sets(self, target: str) -> dict[str, bool]:
        """Every named set and map of `family table`: whether packets fill it. Raises PlaneError."""
        found = {}
        for parts in self._sets(target):
            flags = int.from_bytes(parts.get(_SET_FLAGS, b""), "big")
            if not flags & _ANONYMOUS:
                found[text_of(parts[_SET_NAME])] = bool(flags & _DYNAMIC)
        return found

    @staticmethod
    def _texts(message: memoryview) -> dict[int, str]:
        return {kind: text_of(payload) for kind, payload in attributes(message) if kind <= _CHAIN_NAME}
