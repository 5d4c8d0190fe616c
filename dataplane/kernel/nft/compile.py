"""libnftables' own process: `python -m dataplane.kernel.nft.compile`, a `Request` on standard input.

libnftables reads every table of the network namespace that it is in before it does anything, and may end the process
over what it finds there. So it runs in a process of its own, in a network namespace that is empty and goes with it.
What it made there of the text is taken in the kernel's own form, as a dump of the kernel shows it, and printed.
"""

import os
import sys

import msgspec

from dataplane.kernel.namespaces import netns
from dataplane.kernel.netlink.netlink import attribute, attributes, text_of
from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.kernel.nft import uapi as nf_tables
from dataplane.kernel.nft.uapi import Element, Operation, Rule, Set

_LINES_A_TRANSACTION = 100
"""Without CAP_NET_ADMIN over the machine a socket's buffer is small, and a transaction must fit into it."""

_KEPT = frozenset(set(Set) - {Set.ID, Set.COUNT})
_TABLE = "compiled"


class Request(msgspec.Struct):
    """Texts to compile. Each text is what follows `family table name` in a command, and may use the table's objects.

    objects: `set|map|counter|flowtable`, family, name and declaration of each. sets: `set|map`, family and declaration
    by any name. rules: family and rule by any name. chains: of each family, where rules lead to.
    """

    objects: list[tuple[str, str, str, str]] = []
    sets: dict[str, tuple[str, str, str]] = {}
    rules: dict[str, tuple[str, str]] = {}
    chains: list[tuple[str, str]] = []


class AnonymousSet(msgspec.Struct):
    """A set that belongs to one rule: its attributes but table, name and number, and its elements in order."""

    attributes: bytes
    elements: list[bytes]


class RuleForm(msgspec.Struct):
    """A rule as the kernel takes it. expressions: NFTA_RULE_EXPRESSIONS' content. userdata: NFTA_RULE_USERDATA's. sets:
    by the names that its expressions have for them."""

    expressions: bytes
    userdata: bytes = b""
    sets: dict[str, AnonymousSet] = {}


class Forms(msgspec.Struct):
    """Rules, and attributes of sets (but table, name and number), by the names of the request."""

    rules: dict[str, RuleForm] = {}
    sets: dict[str, bytes] = {}


def commands(request: Request) -> list[str]:
    """The commands that make everything of a request in one table of each family; names become numbers."""
    families = dict.fromkeys(
        [o[1] for o in request.objects] + [s[1] for s in request.sets.values()] + [r[0] for r in request.rules.values()]
    )
    lines = [f"add table {family} {_TABLE}" for family in families]
    for what, family, name, declaration in request.objects:
        lines.append(f"add {what} {family} {_TABLE} {name} {declaration}")
    for number, (what, family, declaration) in enumerate(request.sets.values()):
        lines.append(f"add {what} {family} {_TABLE} set/{number} {declaration}")
    for family, name in request.chains:
        lines.append(f"add chain {family} {_TABLE} {name}")
    for number, (family, rule) in enumerate(request.rules.values()):
        lines.append(f"add chain {family} {_TABLE} rule/{number}")
        lines.append(f"add rule {family} {_TABLE} rule/{number} {rule}")
    return lines


def explain(output: str, lines: list[str]) -> str:
    """libnftables' error text as one sentence: each reason, with the command that it is about."""
    reasons = []
    for line in output.splitlines():
        place, mark, reason = line.partition("Error: ")
        if mark:
            number = place.split(":")[1] if place.count(":") > 1 else ""
            about = lines[int(number) - 1][:200] if number.isdigit() and int(number) <= len(lines) else ""
            reasons.append(reason.strip() + (f" at: {about}" if about else ""))
    return "; ".join(reasons[:5]) or output.strip() or "no reason given"


def _make(lines: list[str]) -> str:
    """Have libnftables make everything; returns what went wrong, "" if nothing did."""
    from nftables import Nftables  # type: ignore[import-not-found,unused-ignore]

    context = Nftables()
    for first in range(0, len(lines), _LINES_A_TRANSACTION):
        part = lines[first : first + _LINES_A_TRANSACTION]
        # For commands in memory, libnftables names the wrong line in its errors; for a file, the right one.
        with os.fdopen(os.memfd_create("commands"), "w", encoding="utf-8") as file:
            file.write("\n".join(part) + "\n")
            file.flush()
            code, _, errors = context.cmd_from_file(f"/proc/self/fd/{file.fileno()}")
        if code:
            return explain(str(errors), part)
    return ""


class _Dump:
    """The contents of one family's table."""

    def __init__(self, netlink: Nfnetlink, family: str) -> None:
        self._netlink, self._family = netlink, nf_tables.FAMILIES[family]
        self.sets = {text_of(parts[nf_tables.NAME]): parts for parts in self._all(Operation.GET_SET)}
        self.rules = {text_of(parts[Rule.CHAIN]): parts for parts in self._all(Operation.GET_RULE)}

    def _all(self, operation: Operation, more: bytes = b"") -> list[dict[int, memoryview]]:
        request = nf_tables.text(nf_tables.TABLE, _TABLE) + more
        return [dict(attributes(m)) for m in self._netlink.dump(operation.kind, self._family, request)]

    def set_form(self, name: str) -> bytes:
        """The attributes that make a set, in the order of the kernel's dump."""
        return b"".join(
            attribute(kind, bytes(payload)) for kind, payload in self.sets[name].items() if kind in _KEPT and payload
        )

    def _elements(self, name: str) -> list[bytes]:
        """By key, an interval's beginning after the end of the one before it."""
        found = []
        for parts in self._all(Operation.GET_ELEMENTS, nf_tables.text(nf_tables.NAME, name)):
            for _, element in attributes(parts.get(nf_tables.ELEMENT_LIST, b"")):
                of = dict(attributes(element))
                ends = int.from_bytes(of.get(Element.FLAGS, b""), "big") & nf_tables.INTERVAL_END
                found.append((bytes(of.get(Element.KEY, b"")), not ends, bytes(element)))
        return [element for _, _, element in sorted(found)]

    def rule_form(self, chain: str) -> RuleForm:
        """The only rule of a chain."""
        parts = self.rules[chain]
        expressions = bytes(parts[Rule.EXPRESSIONS])
        sets = {
            name: AnonymousSet(self.set_form(name), self._elements(name))
            for name in named_sets(expressions)
            if int.from_bytes(self.sets[name].get(Set.FLAGS, b""), "big") & nf_tables.ANONYMOUS
        }
        return RuleForm(expressions, bytes(parts.get(Rule.USERDATA, b"")), sets)


def named_sets(expressions: bytes) -> list[str]:
    """The sets that look-ups among a rule's expressions name."""
    found = []
    for _, expression in attributes(expressions):
        parts = dict(attributes(expression))
        if text_of(parts[1]) == "lookup":  # NFTA_EXPR_NAME, NFTA_EXPR_DATA; NFTA_LOOKUP_SET
            found.append(text_of(dict(attributes(parts[2]))[1]))
    return found


def _taken(request: Request) -> Forms:
    """The kernel's state after the commands of a request."""
    netlink, dumps, forms = Nfnetlink(), dict[str, _Dump](), Forms()

    def dump(family: str) -> _Dump:
        if family not in dumps:
            dumps[family] = _Dump(netlink, family)
        return dumps[family]

    for number, (key, (_, family, _)) in enumerate(request.sets.items()):
        forms.sets[key] = dump(family).set_form(f"set/{number}")
    for number, (key, (family, _)) in enumerate(request.rules.items()):
        forms.rules[key] = dump(family).rule_form(f"rule/{number}")
    return forms


def main() -> int:
    """0: compiled; 1: not, and standard error says why."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        netns.leave()
    except OSError as error:
        print(
            f"no empty network namespace could be made for it ({error.strerror}), which takes CAP_SYS_ADMIN or user "
            "namespaces; run `hotplane run --init-only` once with all rights, and with this node's settings",
            file=sys.stderr,
        )
        return 1
    try:
        errors = _make(commands(request))
    except ImportError as error:
        print(f"it cannot be imported ({error}): apt-get install python3-nftables", file=sys.stderr)
        return 1
    if errors:
        print(errors, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(_taken(request)))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
