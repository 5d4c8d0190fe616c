"""Collect changes of elements and references, and write them as the text of one nftables transaction."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping

from dataplane.model.net import Family
from dataplane.planes.nftables.elements import Compiled, ElementId, ElementRef, RangesRef, Reference, ShapeRef
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

    def elements(self) -> Iterator[ElementRef]:
        """Every shared element in use."""
        return (reference for reference in self._counts if isinstance(reference, ElementRef))


def affinities(references: Iterable[Reference]) -> set[tuple[Family, bool, int]]:
    """(family, for node ports, seconds) of every affinity map that the referenced shapes need."""
    return {
        (ref.family, ref.shape.nodeport, ref.shape.affinity)
        for ref in references
        if isinstance(ref, ShapeRef) and ref.shape.affinity
    }


def commands(verb: str, elements: Iterable[tuple[ElementId, str]]) -> list[str]:
    """`add|delete element` commands, grouped by target."""
    by_target: dict[str, list[str]] = defaultdict(list)
    for (target, key), rest in elements:
        by_target[target].append(key + rest)
    return [
        f"{verb} element {target} {{ {', '.join(texts[first : first + ELEMENTS_A_COMMAND])} }}\n"
        for target, texts in by_target.items()
        for first in range(0, len(texts), ELEMENTS_A_COMMAND)
    ]


def affinity_names(words: Syntax) -> tuple[str, ...]:
    """What the names of affinity maps begin with."""
    return tuple(f"{kind.affinity_prefix}-" for kind in (words.services, words.nodeports))


class Transaction:
    """Changes against a state of references. Nothing takes effect before `text()` ran and `commit()` is called.

    `references` is the plane's own count, changed only by `commit`.
    """

    def __init__(self, words: Mapping[Family, Syntax], ids: Mapping[Family, ShapeIds], references: References) -> None:
        self._words = words
        self._ids = ids
        self._references = references
        self._removed: dict[ElementId, str] = {}
        self._added: dict[ElementId, str] = {}
        self._delta: Counter[Reference] = Counter()

    def replace(self, old: Compiled, new: Compiled) -> None:
        """Replace what an entry held by what it shall hold. O(size of both)."""
        for element, rest in old.elements.items():
            if new.elements.get(element) != rest:
                self._removed[element] = rest
        for element, rest in new.elements.items():
            if old.elements.get(element) != rest:
                self._added[element] = rest
        for reference in old.references:
            self._delta[reference] -= 1
        for reference in new.references:
            self._delta[reference] += 1

    def _crossing(self) -> tuple[list[Reference], list[Reference]]:
        """References that come into use and that go out of use."""
        new = [r for r, d in self._delta.items() if d > 0 and not self._references.count(r)]
        gone = [r for r, d in self._delta.items() if d < 0 and self._references.count(r) + d == 0]
        return new, gone

    def text(self) -> str:
        """The commands, in an order that the kernel accepts; "" when there is nothing to do."""
        new, gone = self._crossing()
        unchanged = {e for e, rest in self._added.items() if self._removed.get(e) == rest}
        removed = [(e, "") for e in self._removed if e not in unchanged]
        added = [(e, rest) for e, rest in self._added.items() if e not in unchanged]
        removed += [((r.target, r.key), "") for r in gone if isinstance(r, ElementRef)]
        added += [((r.target, r.key), "") for r in new if isinstance(r, ElementRef)]
        removed += [self._shape_element(r, "") for r in gone if isinstance(r, ShapeRef)]
        added += [self._shape_element(r, f" : goto {r.shape.name}") for r in new if isinstance(r, ShapeRef)]
        parts = self._appearing(new)
        parts += commands("delete", removed)
        parts += commands("add", added)
        parts += self._disappearing(new, gone)
        return "".join(parts)

    def _shape_element(self, ref: ShapeRef, rest: str) -> tuple[ElementId, str]:
        """The element that leads from a shape's number to its chain."""
        return (self._words[ref.family].target("shapes"), self._ids[ref.family].of(ref.shape)), rest

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

    def elements(self) -> dict[ElementId, str]:
        """Every element that this transaction adds, shared ones included; for one that starts from nothing."""
        shared = {(r.target, r.key): "" for r in self._delta if isinstance(r, ElementRef)}
        shapes = dict(self._shape_element(r, f" : goto {r.shape.name}") for r in self._delta if isinstance(r, ShapeRef))
        return self._added | shared | shapes

    def structures_text(self) -> str:
        """Commands that make every map, set and shape chain that this transaction needs, whether or not it exists."""
        return "".join(self._appearing(list(self._delta)))

    def restricted_text(self) -> str:
        """Commands that give the check of source ranges its rules, for a transaction that starts from nothing."""
        text = ""
        for family, words in self._words.items():
            prefixes = [r.prefix for r in self._delta if isinstance(r, RangesRef) and r.family is family]
            text += rewrite_chain(words, "restricted", restricted_rules(words, prefixes))
        return text

    def chain_names(self, family: Family) -> set[str]:
        """Shape chains of a family that this transaction needs."""
        return {r.shape.name for r in self._delta if isinstance(r, ShapeRef) and r.family is family}

    def set_names(self, family: Family) -> set[str]:
        """Sets of source ranges and affinity maps of a family that this transaction needs."""
        names = {ranges_name(r.prefix) for r in self._delta if isinstance(r, RangesRef) and r.family is family}
        words = self._words[family]
        return names | {
            affinity_name(words.kind(nodeport), seconds)
            for owner, nodeport, seconds in affinities(self._delta)
            if owner is family
        }

    def commit(self) -> None:
        """Take the changes into the plane's count, after the kernel took them."""
        self._references.add(self._delta)
