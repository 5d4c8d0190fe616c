"""Answers to ICMP echo requests at the virtual addresses of Services (`--answer-ping`).

A request to an address that leads to an endpoint is translated to this node's own primary address, whose kernel
answers; connection tracking turns the answer back. So type, checksums, hop limit and the limits on ICMP are the
kernel's, in both families, and for the node's own processes, too. It takes a table of its own, which is there only
where the option is set: a set of addresses, since the maps of frontends have ports as keys, which echo requests lack.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Family
from dataplane.plan.change import PlanChange
from dataplane.plan.types import FrontendKind, Plan, PlanEntry
from dataplane.planes.nftables.netlink.fields import Layouts
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.rules.ping import COUNTER, ping_objects, ping_rules, ping_table
from dataplane.planes.nftables.rules.syntax import Syntax, syntax_for
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import Action

_ELEMENTS_A_COMMAND = 1000
_VIRTUAL = (FrontendKind.CLUSTER_IP, FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER)


def virtual_addresses(entry: PlanEntry) -> set[str]:
    """Return the addresses of an entry that forward to an endpoint, without those that have source ranges."""
    return {
        frontend.key.address
        for frontend in entry.frontends
        if frontend.kind in _VIRTUAL
        and frontend.source_ranges is None
        and any(route.action is Action.FORWARD for route in frontend.routes)
    }


def answered_pings(table: str = "hotplane") -> int | None:
    """Return the number of requests answered in this network namespace; None if they are not answered. Raises
    PlaneError."""
    syntax = [syntax_for(family, table) for family in Family]
    store = ElementStore(Layouts(syntax))
    tables = [ping_table(each) for each in syntax if store.has_table(ping_table(each))]
    return sum(store.counters(each).get(COUNTER, 0) for each in tables) if tables else None


class Pings:
    """The ping tables of a plane. count: transactions of changes so far, without those of loads."""

    def __init__(self, nft: Nft, store: ElementStore, syntax: Mapping[Family, Syntax]) -> None:
        self._nft, self._store, self._syntax = nft, store, syntax
        self._uses: Counter[tuple[Family, str]] = Counter()
        self._on = False
        self.count = 0

    def load(self, plan: Plan) -> None:
        """Create the tables for a plan's addresses, or remove them if the option is off. Raises PlaneError."""
        self._on = plan.node.answer_ping
        self._uses.clear()
        if not self._on:
            self.remove()
            return
        for entry in plan.entries.values():
            self._uses.update((entry.key.family, address) for address in virtual_addresses(entry))
        self._nft.run("".join(self._whole(family, plan.node) for family in self._syntax))

    def apply(self, change: PlanChange, node: NodeConfig) -> None:
        """Follow a change that the plane has applied. After a PlaneError, a load is needed."""
        if not self._on:
            return
        before = {key for entry in change.entries for key in self._keys(entry.old) | self._keys(entry.new)}
        held = {key: self._uses[key] for key in before}
        for entry in change.entries:
            self._uses.subtract(self._keys(entry.old))
            self._uses.update(self._keys(entry.new))
        text = "".join(self._rules(family, node) for family in self._syntax) if change.node is not None else ""
        text += self._elements("delete", [key for key in before if held[key] and not self._uses[key]])
        text += self._elements("add", [key for key in before if not held[key] and self._uses[key]])
        for key in before:
            if not self._uses[key]:
                del self._uses[key]
        if text:
            self._nft.run(text)
            self.count += 1

    def rules(self, node: NodeConfig) -> list[str]:
        """Return the commands that make each table and its rules; none if the option is off."""
        return [ping_objects(s) + ping_rules(s, f, node) for f, s in self._syntax.items()] if self._on else []

    def put_back(self, node: NodeConfig, lost: Collection[str]) -> None:
        """Make some of the tables (`family table`) again, with all that they held. Raises PlaneError."""
        for family, syntax in self._syntax.items():
            if ping_table(syntax) in lost:
                self._nft.run(self._whole(family, node))
                self.count += 1

    def remove(self) -> None:
        """Delete the tables, if any. Raises PlaneError."""
        tables = [ping_table(syntax) for syntax in self._syntax.values() if self._store.has_table(ping_table(syntax))]
        if tables:
            self._nft.run("".join(f"delete table {table}\n" for table in tables))

    @staticmethod
    def _keys(entry: PlanEntry | None) -> set[tuple[Family, str]]:
        return {(entry.key.family, address) for address in virtual_addresses(entry)} if entry is not None else set()

    def _whole(self, family: Family, node: NodeConfig) -> str:
        syntax = self._syntax[family]
        mine = [key for key, uses in self._uses.items() if uses and key[0] is family]
        text = ping_objects(syntax) + f"flush set {ping_table(syntax)} answered\n" + self._rules(family, node)
        return text + self._elements("add", mine)

    def _rules(self, family: Family, node: NodeConfig) -> str:
        return ping_rules(self._syntax[family], family, node)

    def _elements(self, verb: str, keys: list[tuple[Family, str]]) -> str:
        return "".join(self._commands(verb, keys))

    def _commands(self, verb: str, keys: list[tuple[Family, str]]) -> Iterator[str]:
        for family, syntax in self._syntax.items():
            mine = sorted(address for each, address in keys if each is family)
            for first in range(0, len(mine), _ELEMENTS_A_COMMAND):
                part = ", ".join(mine[first : first + _ELEMENTS_A_COMMAND])
                yield f"{verb} element {ping_table(syntax)} answered {{ {part} }}\n"
