"""Other nodes to which traffic is forwarded with the client's address kept, and which Services have endpoints there.

A node takes part if its Node object says that it speaks what this node does (same port and network identifier), or if
it was named by hand. Packets to it are wrapped as this node's setting says if it says that it opens that, otherwise in
VXLAN, which all open. Such a node takes forwarded packets from nodes that say so themselves, so this node forwards to
it only once its own Node object says it, with the address that it sends from. Everybody else gets SNAT.
"""

from collections.abc import Iterable, Iterator, Mapping

from dataplane.model.forwarding import MORE, Dispatch
from dataplane.model.net import Family, family_of
from dataplane.model.objects import Node
from dataplane.plan.types import EntryKey
from dataplane.policy.node import NodeConfig

Ways = Mapping[str, str]
"""By name of a node: its address, of one family."""

_ServiceId = tuple[str, str]


class Tunnels:
    """Which nodes take forwarded packets, kept up to date with their Node objects. Each operation is O(what changed).

    changes: counts the changes of `ways`, so that a result made of them can be kept. moved: see Plan.tunnel_moves; made
    anew at each change.
    """

    def __init__(self, node: NodeConfig) -> None:
        self._node = node
        self._nodes: dict[str, Node] = {}  # those that announce something, this one included
        self._given: dict[str, tuple[str, ...]] = {}
        self._reached: dict[str, tuple[str, ...]] = {}
        self._ways: dict[Family, dict[str, str]] = {family: {} for family in Family}
        self._homes: dict[str, set[EntryKey]] = {}
        self._nodes_of: dict[EntryKey, frozenset[str]] = {}
        self._addresses: frozenset[str] | None = None
        self._formats: dict[str, Dispatch] | None = None
        self.changes = 0
        self.moved: dict[str, str] = {}
        self.use(node)

    def __len__(self) -> int:
        """Return how many other nodes take part."""
        return len(self._reached)

    def use(self, node: NodeConfig) -> None:
        """Use this node's settings; which Services are concerned is not said."""
        self._node, self._given, self._formats = node, {}, None
        for peer in node.lb_peers:
            self._given[peer.node] = (*self._given.get(peer.node, ()), peer.address)
        self._look_at_all()

    def add_node(self, node: Node) -> set[_ServiceId]:
        """Take in an added or changed Node; return the Services whose traffic goes another way because of it."""
        if not node.announced:
            return self.remove_node(node.name)
        if self._nodes.get(node.name) == node:  # its kubelet's heartbeat
            return set()
        self._nodes[node.name] = node
        return self._look_at_all() if node.name == self._node.name else self._look(node.name)

    def remove_node(self, name: str) -> set[_ServiceId]:
        """Forget what a Node announced, if it is known; return as `add_node`."""
        if self._nodes.pop(name, None) is None:
            return set()
        return self._look_at_all() if name == self._node.name else self._look(name)

    def ways(self, family: Family) -> Ways:
        """Return the nodes to which this node forwards, with the address to which their packets go; none of a node that
        has no address of the family."""
        return self._ways[family]

    @property
    def addresses(self) -> frozenset[str]:
        """Every address, of both families, of the nodes that take part: they may send from any of them."""
        if self._addresses is None:
            self._addresses = frozenset(address for each in self._reached.values() for address in each)
        return self._addresses

    @property
    def formats(self) -> dict[str, Dispatch]:
        """How packets are wrapped, by the address that they are sent to, where that is not VXLAN."""
        if self._formats is None:
            wanted = self._node.lb_dispatch
            able = (name for name in self._reached if wanted in self.opens(name)) if wanted in MORE else ()
            self._formats = {address: wanted for name in able for address in self._reached[name]}
        return self._formats

    def opens(self, name: str) -> tuple[Dispatch, ...]:
        """Return what a node that takes part opens besides VXLAN."""
        if name in self._given:
            return tuple({also: None for peer in self._node.lb_peers if peer.node == name for also in peer.also})
        node = self._nodes.get(name)
        return node.forwarding.also if node is not None and node.forwarding is not None else ()

    def format_to(self, name: str) -> Dispatch:
        """Return how packets to a node that takes part are wrapped."""
        return next((self.formats[a] for a in self._reached.get(name, ()) if a in self.formats), Dispatch.VXLAN)

    def names(self) -> dict[str, str]:
        """Return the names of the nodes that take part, by each of their addresses."""
        return {address: name for name, addresses in self._reached.items() for address in addresses}

    def others(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """Yield each other node that announces something, was named by hand or has endpoints of entries that ask for
        more than SNAT: its name, its addresses as far as it takes part, and why this node does not forward to it."""
        for name in sorted({*self._nodes, *self._given, *self._homes} - {self._node.name, ""}):
            why = self.why_not_to(name)
            if not why and not any(name in ways for ways in self._ways.values()):
                why = next(
                    filter(None, map(self.why_not_from_here, Family)), "it has no address of a family that is used"
                )
            yield name, self._reached.get(name, ()), why

    def note(self, key: EntryKey, nodes: Iterable[str]) -> None:
        """Note on which nodes an entry that asks for more than SNAT has endpoints."""
        now, before = frozenset(nodes), self._nodes_of.get(key, frozenset())
        self._nodes_of[key] = now
        for name in now - before:
            self._homes.setdefault(name, set()).add(key)
        for name in before - now:
            self._leave(name, key)

    def forget(self, key: EntryKey) -> None:
        """Note that an entry is gone, or asks for SNAT alone."""
        for name in self._nodes_of.pop(key, ()):
            self._leave(name, key)

    @property
    def asked(self) -> bool:
        """True if any entry asks for more than SNAT."""
        return bool(self._nodes_of)

    def why_not_from_here(self, family: Family) -> str:
        """Return in a clause why nodes that announce it would not take this node's packets of a family; "" if they
        do."""
        own, primary = self._nodes.get(self._node.name), self._node.primary(family)
        if not primary:
            return f"this node has no IPv{family.value} address"
        if own is None or not self._node.offer.meets(own.forwarding):
            return "this node does not announce that it speaks it"
        if primary not in own.addresses:
            return f"{primary}, from which this node sends, is none of its Node object's addresses"
        return ""

    def why_not_to(self, name: str) -> str:
        """Return in a clause why a node takes no forwarded packets; "" if it does."""
        if name in self._reached:
            return ""
        known = self._nodes.get(name)
        if known is None:
            return "does not announce that it speaks it"
        return f"announces {known.announced[:80]}, where this node speaks {self._node.offer}"

    def _leave(self, name: str, key: EntryKey) -> None:
        self._homes[name].discard(key)
        if not self._homes[name]:
            del self._homes[name]

    def _look_at_all(self) -> set[_ServiceId]:
        return set().union(*(self._look(name) for name in {*self._nodes, *self._given, *self._reached}))

    def _look(self, name: str) -> set[_ServiceId]:
        """Find out anew whether a node takes part; return the Services for which that has changed."""
        given, self._formats = self._given.get(name, ()), None
        addresses = () if name == self._node.name else given or self._announced(name)
        if self._reached.get(name, ()) != addresses:
            self._addresses = None
            self._move(self._reached.get(name, ()), addresses)
            if addresses:
                self._reached[name] = addresses
            else:
                del self._reached[name]
        changed = False
        for family, ways in self._ways.items():
            address = next((each for each in addresses if family_of(each) is family), "")
            if not given and self.why_not_from_here(family):
                address = ""
            if ways.get(name, "") != address:
                changed = True
                if address:
                    ways[name] = address
                else:
                    del ways[name]
        if not changed:
            return set()
        self.changes += 1
        return {key[:2] for key in self._homes.get(name, ())}

    def _move(self, before: tuple[str, ...], now: tuple[str, ...]) -> None:
        """Note which addresses a node has instead of those that it had, as far as it has any of the family."""
        instead: dict[str, str] = {}
        for old in set(before).difference(now):
            new = next((each for each in now if family_of(each) is family_of(old)), "")
            if new:
                instead[old] = new
        if instead or not self.moved.keys().isdisjoint(now):
            moved = {old: instead.get(new, new) for old, new in self.moved.items()} | instead
            self.moved = {old: new for old, new in moved.items() if old not in now}

    def _announced(self, name: str) -> tuple[str, ...]:
        node = self._nodes.get(name)
        return node.addresses if node is not None and self._node.offer.meets(node.forwarding) else ()
