"""Captures the packets that iptables mode's rules refuse, beside these rules, which stay kube-proxy's.

A table of nftables stands in front of the filter table while somebody captures: its chains ask for what the refusing
rules there ask for, by sets of frontends made of these rules, log the packet and let it go on to them. The rules are
read again every few seconds, since a sync writes them anew. What a capture that was killed left there hands packets to
a group that nobody listens to, until the next capture, or the end of the mode.

Packets of a hook are told before the rules of any program at the filter table's priority; one that such a rule decides
about before kube-proxy's jumps, which stand first, is told all the same.
"""

import errno
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dataplane.kernel.nft.transaction import Nft
from dataplane.kernel.wait import readable
from dataplane.model.net import Family
from dataplane.planes.answers import FATES
from dataplane.planes.base import PlaneError
from dataplane.planes.captures import Captured, CaptureStream
from dataplane.planes.iptables.counts import GUARDS, WHERE, guarded, rules, saved_tables
from dataplane.planes.iptables.rules import names
from dataplane.planes.logged import GROUP, captured, open_log

TABLE = "hotplane-capture"
READ_SECONDS = 2.0
_SHARE = 20
"""Reading the rules takes at most one part in so many of the time: with many Services it takes long."""

_WORDS = {Family.IPV4: ("ip", "ipv4_addr"), Family.IPV6: ("ip6", "ipv6_addr")}
_PRIORITY = -1  # iptables' filter table is at 0
_FATES = {**FATES, **dict(GUARDS.values())}
_HOOKS = {
    "input": (names.FIREWALL, names.PROXY_FIREWALL, names.EXTERNAL_SERVICES),
    "forward": (names.PROXY_FIREWALL, names.FORWARD, names.SERVICES, names.EXTERNAL_SERVICES),
    "output": (names.FIREWALL, names.PROXY_FIREWALL, names.SERVICES),
}
"""The chains that refuse, by hook, in the order in which packets meet them (rules.skeleton.JUMPS)."""

_GUARDED = {
    names.FORWARD: "ct state invalid",
    names.FIREWALL: "ip saddr != 127.0.0.0/8 ip daddr 127.0.0.0/8 "
    "ct state != { established, related } ct status & dnat == 0",
}


class Refusing(NamedTuple):
    """Rules that refuse alike. local: node ports, at every address of the node."""

    chain: str
    reason: str
    local: bool

    @property
    def set(self) -> str:
        """Return the name of their set."""
        return f"{self.chain.lower()}-{self.reason}{'-ports' if self.local else ''}"


Elements = Mapping[Refusing, Sequence[str]]


class Found(NamedTuple):
    """What a family's filter table refuses: elements of the sets; chains that drop packets whatever their Service."""

    elements: Elements
    guards: frozenset[str]


def found_in(family: Family, saved: str) -> Found | None:
    """Return what a filter table, as iptables-save -c prints it, refuses; None if it is not this mode's."""
    if f":{names.SERVICES} " not in saved:
        return None
    elements: dict[Refusing, list[str]] = defaultdict(list)
    for key, reason, _, chain in rules(family, "filter", saved):
        ends = (key.address, key.protocol.text, str(key.port)) if key.address else (key.protocol.text, str(key.port))
        elements[Refusing(chain, reason, not key.address)].append(" . ".join(ends))
    return Found(dict(elements), frozenset(guarded(family, saved)))


def commands(family: Family, found: Found, snap: int) -> str:
    """Return the commands that make the table anew, whatever a capture before left. snap: bytes of a packet that are
    wanted. A packet that is told goes on to the rules; it is told once."""
    word, address = _WORDS[family]
    table = f"{word} {TABLE}"
    lines = [*_removal(table), f"add table {table}"]
    for refusing, elements in found.elements.items():
        kind = "inet_proto . inet_service" if refusing.local else f"{address} . inet_proto . inet_service"
        lines.append(f"add set {table} {refusing.set} {{ type {kind}; }}")
        lines.append(f"add element {table} {refusing.set} {{ {', '.join(elements)} }}")
    for hook, chains in _HOOKS.items():
        lines.append(f"add chain {table} {hook} {{ type filter hook {hook} priority {_PRIORITY}; }}")
        for chain in chains:
            for match, reason in _matches(word, chain, found):
                log = f'log prefix "{reason}" group {GROUP} snaplen {snap} accept'
                lines.append(f"add rule {table} {hook} {match} {log}")
    return "".join(f"{line}\n" for line in lines)


def _matches(word: str, chain: str, found: Found) -> Iterator[tuple[str, str]]:
    """Yield what the refusing rules of a chain ask for, and why they refuse."""
    if chain in found.guards:
        yield _GUARDED[chain], GUARDS[chain][0]
    for refusing in found.elements:
        if refusing.chain == chain and refusing.local:
            yield f"ct state new fib daddr type local meta l4proto . th dport @{refusing.set}", refusing.reason
        elif refusing.chain == chain:
            yield f"ct state new {word} daddr . meta l4proto . th dport @{refusing.set}", refusing.reason


def _removal(table: str) -> tuple[str, str]:
    """Return the commands that remove a table, which may be gone already."""
    return f"add table {table}", f"delete table {table}"


def _table(family: Family) -> tuple[str, str]:
    """Return a family's table as Nft.tables names it."""
    return _WORDS[family][0], TABLE


def remove_table() -> None:
    """Remove what a capture left in this network namespace, if anything; a kernel without nf_tables, or without
    netfilter's netlink, has nothing. Raises PlaneError."""
    try:
        nft = Nft()
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return
        raise PlaneError(f"a capture's table cannot be removed: {error.strerror}; run as root") from error
    mine = nft.tables() & {_table(family) for family in Family}
    if mine:
        nft.run("".join(f"{line}\n" for word, name in sorted(mine) for line in _removal(f"{word} {name}")))


class Capture(CaptureStream):
    """A capture in this network namespace, in which every call must be made. snap: bytes of a packet that are kept.
    Raises PlaneError if it cannot be begun, or another one goes on."""

    def __init__(self, snap: int) -> None:
        self._snap, self._nft = snap, Nft()
        self._loaded: dict[Family, Found] = {}
        self._not_before = 0.0
        found = self._read()
        if not found:
            raise PlaneError(
                "no rules of this mode are loaded in this network namespace, so nothing can be captured: "
                "hotplane apply -f ..., or restart the daemon"
            )
        self._log = open_log(snap)
        try:
            self._write(found)
        except BaseException:  # it may be there already when the user interrupts
            self.close()
            raise

    def _read(self) -> dict[Family, Found]:
        began = time.monotonic()
        each = {family: found_in(family, text) for family, text in saved_tables("filter").items()}
        ended = time.monotonic()
        self._not_before = ended + max(READ_SECONDS, _SHARE * (ended - began))
        return {family: found for family, found in each.items() if found is not None}

    def _write(self, found: dict[Family, Found]) -> None:
        """Bring the tables to what was found, also those that somebody removed; they stay where the rules have gone."""
        there = self._nft.tables()
        known = {
            family: self._loaded[family] for family in found.keys() & self._loaded.keys() if _table(family) in there
        }
        changed = {family: each for family, each in found.items() if known.get(family) != each}
        if changed:
            self._nft.run("".join(commands(family, each, self._snap) for family, each in changed.items()))
        self._loaded = found

    @property
    def lost(self) -> int:
        """See CaptureStream.lost."""
        return self._log.lost

    def poll(self, seconds: float) -> Sequence[Captured]:
        """See CaptureStream.poll. Raises PlaneError."""
        if time.monotonic() >= self._not_before:
            self._write(self._read())
        readable([self._log.fileno()], seconds)
        return list(captured(self._log.take(), WHERE, _FATES))

    def close(self) -> None:
        """Remove the tables, while no other capture can begin, whose tables they would be. Raises PlaneError."""
        try:
            remove_table()
        finally:
            self._log.close()
