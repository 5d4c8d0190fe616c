"""Read and write elements of hotplane's sets in the kernel as bytes, and read the names of tables, chains and sets.

Elements as text would take seconds and hundreds of megabytes, while the kernel takes tenths of a second. Tables, sets,
chains, rules and verdicts are text (see kernel.nft); if elements share a transaction with them, both become messages of
one transaction.
"""

import copy
import errno
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from dataplane.kernel.netlink.netlink import Refused, attributes, text_of
from dataplane.kernel.netlink.nfnetlink import BODY, CREATE, Message, Nfnetlink
from dataplane.kernel.nft import uapi as nf_tables
from dataplane.kernel.nft.messages import Sent, messages
from dataplane.kernel.nft.transaction import COMPILER, shown
from dataplane.kernel.nft.uapi import NAME, TABLE, Chain, Operation, Rule, Set
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.netlink import wire
from dataplane.planes.nftables.netlink.fields import Element, Layouts
from dataplane.planes.nftables.rules.library import library

_OBJECT_DATA, _COUNTER_PACKETS = 4, 2  # NFTA_OBJ_DATA, NFTA_COUNTER_PACKETS
_READ_ATTEMPTS = 20
_PAUSE = 0.005
"""Seconds by which the wait grows before each further attempt to read a set."""


def _message(operation: Operation, target: str, attributes: bytes) -> Message:
    flags = CREATE if operation == Operation.NEW_ELEMENTS else 0
    return Message(operation.kind, flags, nf_tables.FAMILIES[target.partition(" ")[0]], attributes)


class ElementStore:
    """Elements in the network namespace of the thread that makes the object. Not for use by two threads at once."""

    def __init__(self, layouts: Layouts) -> None:
        self._layouts = layouts
        self._netlink = Nfnetlink()
        self._encoders: dict[str, wire.Encoder] = {}

    def of(self, layouts: Layouts) -> "ElementStore":
        """Return a store of other tables in the same network namespace. Not for use by two threads at once with this
        one."""
        other = copy.copy(self)
        other._layouts, other._encoders = layouts, {}
        return other

    def _encoder(self, target: str) -> wire.Encoder:
        encoder = self._encoders.get(target)
        if encoder is None:
            encoder = self._encoders[target] = wire.Encoder(self._layouts.of(target))
        return encoder

    def change(
        self,
        removed: Iterable[Element],
        added: Iterable[tuple[Element, bytes]],
        ahead: str = "",
        behind: str = "",
    ) -> None:
        """Remove and add elements in one atomic transaction. Raises PlaneError with the element at fault.

        An element that exists with the same value may be added again; one that does not exist cannot be removed. ahead,
        behind: commands (see kernel.nft) that come before and after the elements in the same transaction.
        """
        first, last = (messages(text, COMPILER, library()) if text else [] for text in (ahead, behind))
        elements = self.messages(removed, added)
        self.send([*(s.message for s in first), *elements, *(s.message for s in last)], first, last)

    def messages(self, removed: Iterable[Element], added: Iterable[tuple[Element, bytes]]) -> list[Message]:
        """Return the messages of a change, for `send` in another thread."""
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
            for operation, elements in (
                (Operation.DELETE_ELEMENTS, deletions),
                (Operation.NEW_ELEMENTS, additions),
            )
            for target, encoded in elements.items()
            for attributes in wire.lists(target, encoded)
        ]

    def column_messages(self, target: str, keys: Sequence[bytes], values: Sequence[bytes]) -> list[Message]:
        """Return the messages that add elements of one set, for `send` in another thread."""
        return self._additions(target, self._encoder(target).elements(keys, values))

    def laid_messages(self, target: str, count: int, keys: Sequence[bytes], values: Sequence[bytes]) -> list[Message]:
        """The same of so many elements in parts (see wire.Encoder.laid)."""
        return self._additions(target, self._encoder(target).laid(count, keys, values))

    @staticmethod
    def _additions(target: str, pieces: Iterable[bytes]) -> list[Message]:
        return [_message(Operation.NEW_ELEMENTS, target, each) for each in wire.whole_lists(target, pieces)]

    def send(self, messages: list[Message], first: Sequence[Sent] = (), last: Sequence[Sent] = ()) -> None:
        """Send one transaction. first, last: those of its messages that come from commands, at either end. Raises
        PlaneError."""
        try:
            self._netlink.transact(nf_tables.SUBSYSTEM, messages)
        except Refused as error:
            where = "" if error.message is None else f" at: {self._about(messages, error, first, last)}"
            raise PlaneError(f"nftables refused a change, nothing of it was applied: {error}{where}") from error
        except OSError as error:
            raise PlaneError(f"nftables could not be told a change: {error}; run as root") from error

    def _about(self, messages: list[Message], error: Refused, first: Sequence[Sent], last: Sequence[Sent]) -> str:
        """Describe the refused message and element, as far as the kernel names them."""
        number = error.message or 0
        behind = number - (len(messages) - len(last))
        if number < len(first) or behind >= 0:
            return shown((first[number] if behind < 0 else last[behind]).command)
        message = messages[number]
        syntax = next(ip for ip, family in nf_tables.FAMILIES.items() if family == message.family)
        names = [text_of(payload) for kind, payload in attributes(message.attributes) if kind in (TABLE, NAME)]
        target = " ".join((syntax, *names))
        verb = "add" if message.kind == Operation.NEW_ELEMENTS.kind else "delete"
        layout = self._layouts.of(target)
        key = wire.element_at(message.attributes, layout, error.offset - BODY)
        return f"{verb} element {target}" + (f" {{ {layout.key_text(key)} }}" if key is not None else "")

    def _dump(self, operation: Operation, target: str, attributes: bytes, beginning: bytes = b"") -> list[memoryview]:
        message = _message(operation, target, b"")
        try:
            return self._netlink.dump(message.kind, message.family, attributes, beginning)
        except (Refused, OSError) as error:
            number = error.number if isinstance(error, Refused) else error.errno
            advice = "; run as root" if number == errno.EPERM else ""
            raise PlaneError(f"nftables table {target} cannot be read: {error}{advice}") from error

    def elements(self, target: str) -> dict[bytes, bytes]:
        """Return the value of every element of `family table set` by key. Raises PlaneError.

        The kernel sends a large dump in several messages. It does not report that its hash table was resized between
        two of them (as for a moment after many additions), although elements are then missing. So such a dump is valid
        only if it has as many elements as the kernel reports for the set (Linux 6.15 and later), or as the dump before.
        """
        layout = self._layouts.of(target)
        before = -1
        for attempt in range(_READ_ATTEMPTS):
            time.sleep(_PAUSE * attempt)
            messages = self._dump(Operation.GET_ELEMENTS, target, wire.dump_request(target))
            found = dict(element for message in messages for element in wire.decode(message, layout))
            if len(messages) <= 1 or len(found) in (before, self._count(target)):
                return found
            before = len(found)
        raise PlaneError(f"nftables set {target} keeps changing while it is read; try again")

    def _count(self, target: str) -> int:
        """Return the number of elements of a set, -1 if the kernel does not report it."""
        own, _, name = target.rpartition(" ")
        for parts in self._sets(own):
            if text_of(parts[NAME]) == name and Set.COUNT in parts:
                return int.from_bytes(parts[Set.COUNT], "big")
        return -1

    def clients(self, target: str) -> list[tuple[bytes, bytes, int]]:
        """(key, data, milliseconds left) of every element of an affinity map. Raises PlaneError."""
        messages = self._dump(Operation.GET_ELEMENTS, target, wire.dump_request(target))
        return [client for message in messages for client in wire.remembered(message)]

    def _of_table(self, operation: Operation, target: str) -> list[memoryview]:
        """Return the messages of a dump that belong to `family table`; those of other tables are skipped."""
        table = nf_tables.text(TABLE, target.partition(" ")[2])
        return self._dump(operation, target, table, table)

    def has_table(self, target: str) -> bool:
        """True if there is a table `family table`. Raises PlaneError."""
        table = nf_tables.text(TABLE, target.partition(" ")[2])
        return bool(self._dump(Operation.GET_TABLE, target, b"", table))

    def chains(self, target: str) -> dict[str, int]:
        """Return the number of rules of each chain of `family table`. Raises PlaneError."""
        chains = [self._texts(message)[Chain.NAME] for message in self._of_table(Operation.GET_CHAIN, target)]
        rules = [self._texts(message)[Rule.CHAIN] for message in self._of_table(Operation.GET_RULE, target)]
        counts = Counter(rules)
        return {chain: counts[chain] for chain in chains}

    def counters(self, target: str) -> dict[str, int]:
        """Return the packets of each named counter of `family table`. Raises PlaneError."""
        objects = (dict(attributes(message)) for message in self._of_table(Operation.GET_OBJECT, target))
        return {
            text_of(parts[NAME]): int.from_bytes(dict(attributes(parts[_OBJECT_DATA]))[_COUNTER_PACKETS], "big")
            for parts in objects
        }

    def _sets(self, target: str) -> Iterator[dict[int, memoryview]]:
        for message in self._of_table(Operation.GET_SET, target):
            yield dict(attributes(message))

    def sets(self, target: str) -> dict[str, bool]:
        """Return the named sets and maps of `family table`; True for those filled by packets. Raises PlaneError."""
        found = {}
        for parts in self._sets(target):
            flags = int.from_bytes(parts.get(Set.FLAGS, b""), "big")
            if not flags & nf_tables.ANONYMOUS:
                found[text_of(parts[NAME])] = bool(flags & nf_tables.DYNAMIC)
        return found

    @staticmethod
    def _texts(message: memoryview) -> dict[int, str]:
        return {kind: text_of(payload) for kind, payload in attributes(message) if kind <= Chain.NAME}
