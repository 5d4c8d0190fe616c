"""nftables commands as the netlink messages that do them (linux/netfilter/nf_tables.h)."""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from dataplane.errors import PlaneError
from dataplane.kernel.netlink.netlink import attribute
from dataplane.kernel.netlink.nfnetlink import CREATE, Message
from dataplane.kernel.nft import uapi as nf_tables
from dataplane.kernel.nft.command import Command
from dataplane.kernel.nft.elements import encoded
from dataplane.kernel.nft.forms import Compiler, Library
from dataplane.kernel.nft.uapi import (
    NAME,
    TABLE,
    Chain,
    Flowtable,
    FlowtableHook,
    Operation,
    Rule,
    Set,
    nested,
    number,
    text,
)

_APPEND = 0x800  # NLM_F_APPEND
_COUNTER = 1  # NFT_OBJECT_COUNTER
_OBJECT_TYPE, _OBJECT_DATA = 3, 4  # NFTA_OBJ_*
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2  # NFTA_COUNTER_*
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2  # NFTA_HOOK_*
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}  # enum nf_inet_hooks
_POLICIES = {"drop": 0, "accept": 1}
_HOOK = re.compile(r"\{ type (\w+) hook (\w+) priority (-?\d+);(?: policy (\w+);)? \}")
_FLOWTABLE = re.compile(r"\{ hook ingress priority (-?\d+); counter; \}")
_INGRESS = 0  # NF_NETDEV_INGRESS
_DELETIONS = {
    "table": Operation.DELETE_TABLE, "chain": Operation.DELETE_CHAIN, "set": Operation.DELETE_SET,
    "map": Operation.DELETE_SET, "element": Operation.DELETE_ELEMENTS, "flowtable": Operation.DELETE_FLOWTABLE,
}  # fmt: skip

_set_ids = itertools.count(1)
"""Numbers of sets within a transaction; those of another transaction do not matter."""


class Sent(NamedTuple):
    """A message and the command that it comes from."""

    message: Message
    command: Command


def commands(transaction: str) -> list[Command]:
    """The commands of a text, one a line. Raises PlaneError."""
    return [Command.of(line) for line in transaction.splitlines() if line]


def messages(transaction: str, compiler: Compiler, library: Library) -> list[Sent]:
    """The netlink messages of a text's commands, in their order. Raises PlaneError for text that is none of hotplane's
    commands, or that libnftables does not compile."""
    found = commands(transaction)
    compiler.prepare(found, library)
    return [Sent(message, command) for command in found for message in _of(command, compiler)]


def _of(command: Command, compiler: Compiler) -> Iterator[Message]:
    family = nf_tables.FAMILIES[command.family]

    def message(operation: Operation, *parts: bytes, flags: int = 0) -> Message:
        return Message(operation.kind, flags, family, text(TABLE, command.table) + b"".join(parts))

    match command.verb, command.what:
        case "add", "table":
            yield message(Operation.NEW_TABLE, flags=CREATE)
        case "add", "counter":
            zero = (number(_COUNTER_BYTES, 0, 8), number(_COUNTER_PACKETS, 0, 8))
            parts = (text(NAME, command.name), number(_OBJECT_TYPE, _COUNTER), nested(_OBJECT_DATA, *zero))
            yield message(Operation.NEW_OBJECT, *parts, flags=CREATE)
        case "add", "flowtable":
            yield message(Operation.NEW_FLOWTABLE, text(NAME, command.name), _flowtable(command), flags=CREATE)
        case "add", "set" | "map":
            parts = (text(NAME, command.name), compiler.set_form(command), number(Set.ID, _set_id()))
            yield message(Operation.NEW_SET, *parts, flags=CREATE)
        case "add", "chain":
            yield message(Operation.NEW_CHAIN, text(Chain.NAME, command.name), _hook(command), flags=CREATE)
        case "add", "rule":
            yield from _rule(command, compiler)
        case ("add" | "delete") as verb, "element":
            held = attribute(nf_tables.ELEMENT_LIST | nf_tables.NESTED, encoded(command.rest))
            operation, flags = (Operation.NEW_ELEMENTS, CREATE) if verb == "add" else (Operation.DELETE_ELEMENTS, 0)
            yield message(operation, text(NAME, command.name), held, flags=flags)
        case "flush", "table":
            yield message(Operation.DELETE_RULE)
        case "flush", "chain":
            yield message(Operation.DELETE_RULE, text(Rule.CHAIN, command.name))
        case "flush", "set" | "map":
            yield message(Operation.DELETE_ELEMENTS, text(NAME, command.name))
        case "delete", what if what in _DELETIONS:
            kind = Chain.NAME if what == "chain" else NAME
            yield message(_DELETIONS[what], text(kind, command.name) if command.name else b"")
        case _:
            raise PlaneError(f"hotplane has no such nftables command: {command.text[:160]}")


def _set_id() -> int:
    return next(_set_ids) & 0xFFFFFFFF


def _hook(command: Command) -> bytes:
    """The attributes of a base chain; none for another one."""
    if not command.rest:
        return b""
    match = _HOOK.fullmatch(command.rest)
    if match is None:
        raise PlaneError(f"hotplane has no such nftables chain: {command.text[:160]}")
    kind, hook, priority, policy = match.groups()
    place = nested(Chain.HOOK, number(_HOOK_NUMBER, _HOOKS[hook]), number(_HOOK_PRIORITY, int(priority)))
    return place + (number(Chain.POLICY, _POLICIES[policy]) if policy else b"") + text(Chain.TYPE, kind)


def _flowtable(command: Command) -> bytes:
    """The attributes of a flowtable that counts, without devices."""
    match = _FLOWTABLE.fullmatch(command.rest)
    if match is None:
        raise PlaneError(f"hotplane has no such nftables flowtable: {command.text[:160]}")
    hook = number(FlowtableHook.NUMBER, _INGRESS), number(FlowtableHook.PRIORITY, int(match[1]))
    return nested(Flowtable.HOOK, *hook) + number(Flowtable.FLAGS, nf_tables.FLOWTABLE_COUNTER)


def _rule(command: Command, compiler: Compiler) -> Iterator[Message]:
    """A rule, after the sets that belong to it alone."""
    family = nf_tables.FAMILIES[command.family]
    form, expressions, numbers = compiler.rule(command, _set_id)
    table = text(TABLE, command.table)
    for name, held in form.sets.items():
        place = table + text(NAME, "__set%d")
        identity = number(Set.ID, numbers[name])
        yield Message(Operation.NEW_SET.kind, CREATE, family, place + held.attributes + identity)
        content = b"".join(nested(nf_tables.LIST_ELEMENT, element) for element in held.elements)
        place += number(nf_tables.ELEMENT_LIST_SET_ID, numbers[name])
        elements = nested(nf_tables.ELEMENT_LIST, content)
        yield Message(Operation.NEW_ELEMENTS.kind, CREATE, family, place + elements)
    parts = text(Rule.CHAIN, command.name) + nested(Rule.EXPRESSIONS, expressions)
    if form.userdata:
        parts += attribute(Rule.USERDATA, form.userdata)
    yield Message(Operation.NEW_RULE.kind, CREATE | _APPEND, family, table + parts)
