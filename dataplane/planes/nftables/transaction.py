"""Collect changes of elements and references, as what one nftables transaction is made of."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dataplane.model.net import Family
from dataplane.planes.nftables.elements import Compiled, ElementRef, RangesRef, Reference, ShapeRef
from dataplane.planes.nftables.fields import Element, Layouts, number
from dataplane.planes.nftables.shapes import ShapeIds, add_shape, affinity_map, affinity_name
from dataplane.planes.nftables.skeleton import add_ranges, ranges_name, restricted_rules, rewrite_chain
from dataplane.planes.nftables.syntax import Syntax

ELEMENTS_A_COMMAND = 200
"""Elements in one command: few enough that an error shows where, enough that commands cost nothing."""

Structure = ShapeRef | RangesRef


class References:
    """How often everything shared is used. `structures`: the shapes and range sets in use, few in number."""

    def __init__(self) -> None:
        self._counts: dict[Reference, int] = {}
        self.structures: set[Structure] = set()

    def count(self, reference: Reference) -> int:
        """Uses of one reference."""
        return self._counts.get(reference, 0)

    def add(self, deltas: Mapping[Reference, int]) -> None:
        """Change the counts."""
        for reference, delta in deltas.items():
            count = self.count(reference) + delta
            if count:
                self._counts[reference] = count
            else:
                self._counts.pop(reference, None)
            if isinstance(reference, ElementRef):
                continue
            if count:
                self.structures.add(reference)
            else:
                self.structures.discard(reference)


def affinities(references: Iterable[Reference]) -> set[tuple[Family, bool, int]]:
    """(family, for node ports, seconds) of every affinity map that the referenced shapes need."""
    return {
        (ref.family, ref.shape.nodeport, ref.shape.affinity)
        for ref in references
        if isinstance(ref, ShapeRef) and ref.shape.affinity
    }


def _commands(verb: str, elements: Iterable[tuple[str, str]]) -> str:
    """`add|delete element` commands for (target, text of an element), grouped by target."""
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
    """One transaction, in the order that the kernel accepts.

    appearing: commands for chains, sets and maps that come into use. verdicts_removed, verdicts_added: elements that
    lead to chains. disappearing: commands for what nobody uses any more and for rules that name it.
    """

    appearing: str
    removed: list[Element]
    verdicts_removed: list[Element]
    added: list[tuple[Element, bytes]]
    verdicts_added: list[tuple[Element, bytes]]
    disappearing: str

    @property
    def only_elements(self) -> bool:
        """Whether nothing but elements that are plain data changes."""
        return not (self.appearing or self.verdicts_removed or self.verdicts_added or self.disappearing)

    def text(self, layouts: Layouts) -> str:
        """All of it as commands; "" when there is nothing to do."""
        return (
            self.appearing
            + delete_commands(layouts, self.removed + self.verdicts_removed)
            + add_commands(layouts, self.added + self.verdicts_added)
            + self.disappearing
        )


def affinity_names(words: Syntax) -> tuple[str, ...]:
    """What the names of affinity maps begin with."""
    return tuple(f"{kind.affinity_prefix}-" for kind in (words.services, words.nodeports))


class Transaction:
    """Changes against a state of references. Nothing takes effect before its `parts` ran and `commit()` is called.

    `references` is the plane's own count, changed only by `commit`.
    """

    def __init__(self, words: Mapping[Family, Syntax], ids: Mapping[Family, ShapeIds], references: References) -> None:
        self._words = words
        self._ids = ids
        self._references = references
        self._removed: dict[Element, bytes] = {}
        self._added: dict[Element, bytes] = {}
        self._delta: Counter[Reference] = Counter()

    def replace(self, old: Compiled, new: Compiled) -> None:
        """Replace what an entry held by what it shall hold. O(size of both)."""
        for element, value in old.elements.items():
            if new.elements.get(element) != value:
                self._removed[element] = value
        for element, value in new.elements.items():
            if old.elements.get(element) != value:
                self._added[element] = value
        self.refer(old.references, -1)
        self.refer(new.references)

    def add(self, new: Compiled) -> None:
        """Add what a new entry shall hold."""
        self._added.update(new.elements)
        self.refer(new.references)

    def refer(self, references: Iterable[Reference], times: int = 1) -> None:
        """Count references, but leave the elements of their entry alone."""
        delta = self._delta
        for reference in references:
            delta[reference] += times

    def _crossing(self) -> tuple[list[Reference], list[Reference]]:
        """References that come into use and that go out of use."""
        new = [r for r, d in self._delta.items() if d > 0 and not self._references.count(r)]
        gone = [r for r, d in self._delta.items() if d < 0 and self._references.count(r) + d == 0]
        return new, gone

    def parts(self) -> Parts:
        """What the transaction consists of."""
        new, gone = self._crossing()
        removed = [e for e, value in self._removed.items() if self._added.get(e) != value]
        added = list(self._added.items())
        if self._removed:
            added = [(e, value) for e, value in added if self._removed.get(e) != value]
        removed += [(r.target, r.key) for r in gone if isinstance(r, ElementRef)]
        added += [((r.target, r.key), b"") for r in new if isinstance(r, ElementRef)]
        return Parts(
            "".join(self._appearing(new)),
            removed,
            [self._verdict(r)[0] for r in gone if isinstance(r, ShapeRef)],
            added,
            [self._verdict(r) for r in new if isinstance(r, ShapeRef)],
            "".join(self._disappearing(new, gone)),
        )

    def _verdict(self, ref: ShapeRef) -> tuple[Element, bytes]:
        """The element that leads from a shape's number to its chain."""
        key = number(self._ids[ref.family].of(ref.shape))
        return (self._words[ref.family].target("shapes"), key), ref.shape.name.encode()

    def _appearing(self, new: list[Reference]) -> list[str]:
        parts = []
        for family, nodeport, seconds in sorted(affinities(new)):
            words = self._words[family]
            parts.append(affinity_map(words, words.kind(nodeport), seconds))
        for ref in new:
            if isinstance(ref, ShapeRef):
                parts.append(add_shape(self._words[ref.family], ref.shape))
            elif isinstance(ref, RangesRef):
                parts.append(add_ranges(self._words[ref.family], ref.prefix))
        return parts

    def _disappearing(self, new: list[Reference], gone: list[Reference]) -> list[str]:
        """Rewrite the rules that name sets of source ranges, then delete what nobody uses any more."""
        parts = []
        after: set[Reference] = (self._references.structures | set(new)) - set(gone)
        for family in sorted({ref.family for ref in [*new, *gone] if isinstance(ref, RangesRef)}):
            prefixes = [r.prefix for r in after if isinstance(r, RangesRef) and r.family is family]
            parts.append(
                rewrite_chain(self._words[family], "restricted", restricted_rules(self._words[family], prefixes))
            )
        for ref in gone:
            if isinstance(ref, ShapeRef):
                chain = self._words[ref.family].target(ref.shape.name)
                parts.append(f"flush chain {chain}\ndelete chain {chain}\n")
            elif isinstance(ref, RangesRef):
                parts.append(f"delete set {self._words[ref.family].target(ranges_name(ref.prefix))}\n")
        unused = affinities(gone)
        if unused:
            unused -= affinities(after)
        for family, nodeport, seconds in sorted(unused):
            words = self._words[family]
            parts.append(f"delete map {words.target(affinity_name(words.kind(nodeport), seconds))}\n")
        return parts

    def elements(self) -> dict[Element, bytes]:
        """Every element that this transaction adds, shared ones included; for one that starts from nothing."""
        shared = {(r.target, r.key): b"" for r in self._delta if isinstance(r, ElementRef)}
        return self._added | shared | dict(self._verdict(r) for r in self._delta if isinstance(r, ShapeRef))

    def structures_text(self) -> str:
        """Commands that make every map, set and shape chain that this transaction needs, whether or not it exists."""
        return "".join(self._appearing(list(self._delta)))

    def prefixes(self, family: Family) -> set[int]:
        """Prefix lengths of the source ranges of a family that this transaction needs."""
        return {r.prefix for r in self._delta if isinstance(r, RangesRef) and r.family is family}

    def chain_names(self, family: Family) -> set[str]:
        """Shape chains of a family that this transaction needs."""
        return {r.shape.name for r in self._delta if isinstance(r, ShapeRef) and r.family is family}

    def set_names(self, family: Family) -> set[str]:
        """Sets of source ranges and affinity maps of a family that this transaction needs."""
        names = {ranges_name(prefix) for prefix in self.prefixes(family)}
        words = self._words[family]
        return names | {
            affinity_name(words.kind(nodeport), seconds)
            for owner, nodeport, seconds in affinities(self._delta)
            if owner is family
        }

    def commit(self) -> None:
        """Take the changes into the plane's count, after the kernel took them."""
        self._references.add(self._delta)
