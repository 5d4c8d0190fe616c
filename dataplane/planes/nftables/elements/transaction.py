"""Collect changes of elements and references for one nftables transaction."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from dataplane.model.net import Family
from dataplane.planes.nftables.elements.compile import Compiled, ElementRef, RangesRef, Reference, ShapeRef
from dataplane.planes.nftables.elements.in_flight import needed_in_flight
from dataplane.planes.nftables.netlink.fields import Element, Layouts, number
from dataplane.planes.nftables.rules.shapes import ShapeIds, add_shape, affinity_map, affinity_name
from dataplane.planes.nftables.rules.skeleton import add_ranges, ranges_name, rewrite_restricted
from dataplane.planes.nftables.rules.syntax import Syntax

ELEMENTS_A_COMMAND = 200
"""Elements in one command: few enough to locate an error, enough to make the overhead of commands negligible."""

Structure = ShapeRef | RangesRef
_T = TypeVar("_T")


class References:
    """Use counts of shared objects. `structures`: the shapes and range sets in use, few in number.

    Elements are as many as Services: they are stored by target, with the key as an integer, in half the memory.
    """

    def __init__(self) -> None:
        self._counts: dict[Structure, int] = {}
        self._elements: dict[str, dict[int, int]] = {}
        self.structures: set[Structure] = set()

    def count(self, reference: Reference) -> int:
        """Return the number of uses of one reference."""
        if isinstance(reference, ElementRef):
            return self._elements.get(reference.target, {}).get(int.from_bytes(reference.key), 0)
        return self._counts.get(reference, 0)

    def use(self, target: str, keys: Iterable[bytes]) -> list[bytes]:
        """Count one more use of each of these elements of a target; return those that were not in use."""
        counts, new = self._elements.setdefault(target, {}), []
        for key in keys:
            identity = int.from_bytes(key)
            count = counts.get(identity, 0)
            if not count:
                new.append(key)
            counts[identity] = count + 1
        return new

    def add(self, deltas: Mapping[Reference, int]) -> None:
        """Change the counts."""
        for reference, delta in deltas.items():
            count = self.count(reference) + delta
            if isinstance(reference, ElementRef):
                _set(self._elements.setdefault(reference.target, {}), int.from_bytes(reference.key), count)
                continue
            _set(self._counts, reference, count)
            if count:
                self.structures.add(reference)
            else:
                self.structures.discard(reference)


def _set(counts: dict[_T, int], key: _T, count: int) -> None:
    if count:
        counts[key] = count
    else:
        counts.pop(key, None)


def affinities(references: Iterable[Reference]) -> set[tuple[Family, bool, int]]:
    """(family, for node ports, seconds) of every affinity map that the referenced shapes need."""
    return {
        (ref.family, ref.shape.nodeport, ref.shape.affinity)
        for ref in references
        if isinstance(ref, ShapeRef) and ref.shape.affinity
    }


def _commands(verb: str, elements: Iterable[tuple[str, str]]) -> str:
    """Return `add|delete element` commands for (target, text of an element), grouped by target."""
    by_target: dict[str, list[str]] = defaultdict(list)
    for target, text in elements:
        by_target[target].append(text)
    return "".join(
        f"{verb} element {target} {{ {', '.join(texts[first : first + ELEMENTS_A_COMMAND])} }}\n"
        for target, texts in by_target.items()
        for first in range(0, len(texts), ELEMENTS_A_COMMAND)
    )


def delete_commands(layouts: Layouts, elements: Iterable[Element]) -> str:
    """Commands that delete elements."""
    return _commands("delete", ((target, layouts.of(target).key_text(key)) for target, key in elements))


def add_commands(layouts: Layouts, elements: Iterable[tuple[Element, bytes]]) -> str:
    """Commands that add elements with their values."""
    texts = ((target, layouts.of(target), key, value) for (target, key), value in elements)
    return _commands("add", ((target, of.key_text(key) + of.rest_text(value)) for target, of, key, value in texts))


class Parts(NamedTuple):
    """One change, in the order of its commits.

    A packet sees the rules of the time when it entered a hook, but elements as of its look-up. So chains and maps are
    committed before the elements that lead to them: each commit, before its elements are visible, makes the chains of
    the previous commit valid for packets of both generations (nf_tables_commit_chain). They are deleted once all
    packets in flight have left. A packet that arrives between two commits is not affected by either.

    ahead: commands for chains, sets and maps that come into use; "" if there are none. removed, added: elements.
    behind: elements still needed by packets that already followed one of `removed`. disappearing: commands that delete
    unused objects. undo: commands that revert `ahead`.
    """

    ahead: str
    removed: list[Element]
    added: list[tuple[Element, bytes]]
    behind: list[Element]
    disappearing: str
    undo: str


def affinity_names(syntax: Syntax) -> tuple[str, ...]:
    """Return the prefixes of the names of affinity maps."""
    return tuple(f"{kind.affinity_prefix}-" for kind in (syntax.services, syntax.nodeports))


class Transaction:
    """Changes against recorded references. They take effect when `parts` are committed and `commit()` is called.

    `references` is the plane's own count, changed only by `commit`.
    """

    def __init__(
        self, syntax: Mapping[Family, Syntax], layouts: Layouts, ids: Mapping[Family, ShapeIds], references: References
    ) -> None:
        self._syntax = syntax
        self._layouts = layouts
        self._ids = ids
        self._references = references
        self._removed: dict[Element, bytes] = {}
        self._added: dict[Element, bytes] = {}
        self._delta: Counter[Reference] = Counter()
        self.unused: list[ShapeRef] = []  # shapes that `parts` removes

    def replace(self, old: Compiled, new: Compiled) -> None:
        """Replace the elements and references of an entry. O(size of both)."""
        for element, value in old.elements.items():
            if new.elements.get(element) != value:
                self._removed[element] = value
        for element, value in new.elements.items():
            if old.elements.get(element) != value:
                self._added[element] = value
        self.refer(old.references, -1)
        self.refer(new.references)

    def add(self, new: Compiled) -> None:
        """Add the elements and references of a new entry."""
        self._added.update(new.elements)
        self.refer(new.references)

    def refer(self, references: Iterable[Reference], times: int = 1) -> None:
        """Count references without the elements of their entry."""
        delta = self._delta
        for reference in references:
            delta[reference] += times

    def refer_many(self, references: Mapping[Reference, int]) -> None:
        """The same, each as often as is given."""
        self._delta.update(references)

    def _crossing(self) -> tuple[list[Reference], list[Reference]]:
        """Return the references that come into use and those that go out of use."""
        new = [r for r, d in self._delta.items() if d > 0 and not self._references.count(r)]
        gone = [r for r, d in self._delta.items() if d < 0 and self._references.count(r) + d == 0]
        return new, gone

    def parts(self) -> Parts:
        """Return the parts of the transaction."""
        new, gone = self._crossing()
        self.unused = [reference for reference in gone if isinstance(reference, ShapeRef)]
        removed = [e for e, value in self._removed.items() if self._added.get(e) != value]
        added = list(self._added.items())
        if self._removed:
            added = [(e, value) for e, value in added if self._removed.get(e) != value]
        removed += [(r.target, r.key) for r in gone if isinstance(r, ElementRef)]
        added += [((r.target, r.key), b"") for r in new if isinstance(r, ElementRef)]
        needed = needed_in_flight(self._syntax.values(), removed, self._added)
        before = self._references.structures
        with_new = frozenset[Reference](before).union(ref for ref in new if not isinstance(ref, ElementRef))
        return Parts(
            "".join(self._appearing(new, with_new)),
            [element for element in removed if element not in needed] if needed else removed,
            added,
            [element for element in removed if element in needed] if needed else [],
            "".join(self._disappearing(gone, with_new)),
            "".join(self._disappearing(new, with_new)),
        )

    def _verdict(self, ref: ShapeRef) -> tuple[Element, bytes]:
        """Return the element that maps a shape's number to its chain."""
        key = number(self._ids[ref.family].of(ref.shape))
        return (self._syntax[ref.family].target("shapes"), key), ref.shape.name.encode()

    def _structures(self, new: Iterable[Reference]) -> list[str]:
        """Return commands for maps, chains and sets that come into use."""
        parts = []
        for family, nodeport, seconds in sorted(affinities(new)):
            syntax = self._syntax[family]
            parts.append(affinity_map(syntax, syntax.kind(nodeport), seconds))
        for ref in new:
            if isinstance(ref, ShapeRef):
                parts.append(add_shape(self._syntax[ref.family], ref.shape))
            elif isinstance(ref, RangesRef):
                parts.append(add_ranges(self._syntax[ref.family], ref.prefix))
        return parts

    def _appearing(self, new: Iterable[Reference], after: frozenset[Reference]) -> list[str]:
        """Return commands for what comes into use and what leads to it; `after`: all that is in use then."""
        verdicts = add_commands(self._layouts, (self._verdict(ref) for ref in new if isinstance(ref, ShapeRef)))
        families = {ref.family for ref in new if isinstance(ref, RangesRef)}
        return [*self._structures(new), verdicts, *self._restricted(families, after)]

    def _restricted(self, families: Iterable[Family], after: Iterable[Reference]) -> list[str]:
        """Return commands that rewrite the rules that use sets of source ranges."""
        return [
            rewrite_restricted(
                self._syntax[family], [r.prefix for r in after if isinstance(r, RangesRef) and r.family is family]
            )
            for family in sorted(families)
        ]

    def _disappearing(self, gone: Iterable[Reference], present: frozenset[Reference]) -> list[str]:
        """Return commands that delete what is `present` but unused, after the rules and verdicts that refer to it."""
        after = present.difference(gone)
        shapes = [ref for ref in gone if isinstance(ref, ShapeRef)]
        ranges = [ref for ref in gone if isinstance(ref, RangesRef)]
        parts = [delete_commands(self._layouts, (self._verdict(ref)[0] for ref in shapes))]
        parts += self._restricted({ref.family for ref in ranges}, after)
        for ref in shapes:
            chain = self._syntax[ref.family].target(ref.shape.name)
            parts.append(f"flush chain {chain}\ndelete chain {chain}\n")
        parts += [f"delete set {self._syntax[ref.family].target(ranges_name(ref.prefix))}\n" for ref in ranges]
        unused = affinities(shapes)
        if unused:
            unused -= affinities(after)
        for family, nodeport, seconds in sorted(unused):
            syntax = self._syntax[family]
            parts.append(f"delete map {syntax.target(affinity_name(syntax.kind(nodeport), seconds))}\n")
        return parts

    def elements(self) -> dict[Element, bytes]:
        """Return all elements of this transaction, shared ones included, if it started from an empty table."""
        shared = {(r.target, r.key): b"" for r in self._delta if isinstance(r, ElementRef)}
        return self._added | shared | dict(self._verdict(r) for r in self._delta if isinstance(r, ShapeRef))

    def structures_text(self) -> str:
        """Commands that make every map, set and shape chain that this transaction needs, whether or not it exists."""
        return "".join(self._structures(self._delta))

    def prefixes(self, family: Family) -> set[int]:
        """Prefix lengths of the source ranges of a family that this transaction needs."""
        return {r.prefix for r in self._delta if isinstance(r, RangesRef) and r.family is family}

    def chain_names(self, family: Family) -> set[str]:
        """Shape chains of a family that this transaction needs."""
        return {r.shape.name for r in self._delta if isinstance(r, ShapeRef) and r.family is family}

    def set_names(self, family: Family) -> set[str]:
        """Sets of source ranges and affinity maps of a family that this transaction needs."""
        names = {ranges_name(prefix) for prefix in self.prefixes(family)}
        syntax = self._syntax[family]
        return names | {
            affinity_name(syntax.kind(nodeport), seconds)
            for owner, nodeport, seconds in affinities(self._delta)
            if owner is family
        }

    def commit(self) -> None:
        """Apply the changes to the plane's counts, after the kernel has committed them."""
        self._references.add(self._delta)
