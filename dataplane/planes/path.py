"""The way of a packet through a mode's part of the kernel, step by step, as `explain` tells it."""

import enum
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec

from dataplane.oracle.keeps import NOTHING, Keeping
from dataplane.planes.options import PlaneOptions
from dataplane.policy.node import NodeConfig

_SHOWN = 3
"""Alternatives that the text names; JSON has all of them."""


class Kind(enum.StrEnum):
    """What a step passes: a chain or a rule's target, a map or set and the element that is looked up there, a program,
    or the node's routing."""

    CHAIN = "chain"
    MAP = "map"
    SET = "set"
    PROGRAM = "program"
    ROUTING = "routing"


class Step(msgspec.Struct, frozen=True):
    """One step. hook: where the kernel calls it, the base chain's priority or the program's attach point included.
    name: of the chain, map, set or program, as the kernel's own tools show it. key: the element that is looked up, or
    what a rule matches. result: where that leads. share: of packets that take this step and not the ones beside it,
    such as "1/3". note: in words."""

    hook: str
    kind: Kind
    name: str
    key: str = ""
    result: str = ""
    share: str = ""
    note: str = ""


class At(NamedTuple):
    """Where a decision is made: this node, the options of its plane, and whose address the mode leaves alone."""

    node: NodeConfig
    options: PlaneOptions = PlaneOptions()
    keeping: Keeping = NOTHING


def lines(steps: Sequence[Step]) -> Iterator[str]:
    """One line a hook, for people: what is passed there in order, joined by arrows, with what follows in words."""
    for hook, group in groupby(steps, key=lambda step: step.hook):
        parts: list[str] = []
        for shared, same in groupby(group, key=lambda step: bool(step.share)):
            listed = list(same)
            parts += [_choice(listed)] if shared else map(_words, listed)
        if hook != "routing":  # whose sentences are among the reasons
            yield f"{hook}: {' -> '.join(parts)}"


def _choice(steps: Sequence[Step]) -> str:
    """Steps one of which is taken, what they have in common once."""
    first = steps[0]
    alike = len({step.share for step in steps}) == 1

    def listed(texts: Sequence[str]) -> str:
        parts = [text if alike else f"{text} ({step.share})" for text, step in zip(texts, steps, strict=True)]
        return _listed(parts)

    if first.result and len({(step.name, step.key) for step in steps}) == 1:
        text = f"{_words(msgspec.structs.replace(first, result=''))} -> {listed([step.result for step in steps])}"
    elif len({step.name for step in steps}) == 1:
        text = f"{first.name} {{ {listed([step.key for step in steps])} }}"
    else:
        text = listed([_words(step) for step in steps])
    return f"{text} ({first.share}{' each' if len(steps) > 1 else ''})" if alike else text


def _listed(texts: Sequence[str]) -> str:
    more = f" | {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return " | ".join(texts[:_SHOWN]) + more


def _words(step: Step) -> str:
    key = f" {{ {step.key} }}" if step.key and step.kind in (Kind.MAP, Kind.SET) else ""
    result = f" -> {step.result}" if step.result else ""
    note = f" ({step.note})" if step.note else ""
    return f"{step.name}{key}{result}{note}"
