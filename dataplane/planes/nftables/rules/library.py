"""Rules that hotplane's tables may need, and the sets and maps they refer to: compiled ahead of time."""

from collections.abc import Iterable
from functools import cache
from itertools import product

from dataplane.kernel.nft.forms import Group, Library
from dataplane.kernel.nft.messages import messages
from dataplane.kernel.nft.transaction import COMPILER
from dataplane.model.net import Family
from dataplane.planes.nftables.localnet import guard
from dataplane.planes.nftables.rules.ping import ping_objects, ping_rules
from dataplane.planes.nftables.rules.shapes import Masquerade, Shape, affinity_map, shape_rules
from dataplane.planes.nftables.rules.skeleton import (
    add_ranges,
    chains,
    restricted_rules,
    skeleton_objects,
    skeleton_rules,
)
from dataplane.planes.nftables.rules.syntax import Syntax, syntax_for
from dataplane.policy.node import NodeConfig


@cache
def library() -> Library:
    """Of both families. One group of rules for what every table has and for all shapes, one for all source ranges."""
    objects = ""
    for family, syntax in _tables().items():
        for line in skeleton_objects(syntax, family, NodeConfig()).splitlines():
            if line.split(" ", 2)[1] in ("counter", "map", "set"):
                objects += f"{line}\n"
        objects += "".join(affinity_map(syntax, syntax.kind(nodeport), 1) for nodeport in (False, True))
        objects += add_ranges(syntax, 1)
    return Library(objects, (Group("", _usual), Group("@ranges-", _ranges)))


def _tables() -> dict[Family, Syntax]:
    return {family: syntax_for(family, "hotplane") for family in Family}


def _usual() -> str:
    text = ""
    for family, syntax in _tables().items():
        text += _rules(syntax, (rule for rules in chains(syntax, family, NodeConfig()).values() for rule in rules))
        text += _rules(syntax, (rule for shape in _shapes() for rule in shape_rules(syntax, shape)))
        text += _rules(syntax, restricted_rules(syntax, ()))
    return text


def _ranges() -> str:
    """Return the rules that check source ranges, without the last one of each family, which stands in every table."""
    return "".join(
        _rules(syntax, restricted_rules(syntax, range(syntax.bits + 1))[:-1]) for syntax in _tables().values()
    )


def compile_ahead(node: NodeConfig) -> None:
    """Compile the rules for tables of such a node, and cache them on disk. Raises PlaneError."""
    for text in (*(group.rules() for group in library().groups), skeletons(node)):
        messages(text, COMPILER, library())


def skeletons(node: NodeConfig) -> str:
    """Commands that make the constant part of the tables of both families, and what stands beside them, for compiling
    it in one."""
    text = guard() if node.nodeports.loopback else ""
    if node.answer_ping:
        text += "".join(ping_objects(syntax) + ping_rules(syntax, family, node) for family, syntax in _tables().items())
    return text + "".join(
        skeleton_objects(syntax, family, node) + skeleton_rules(syntax, family, node)
        for family, syntax in _tables().items()
    )


def _shapes() -> list[Shape]:
    """One of each kind; the numbers in them make no difference to what is compiled."""
    return [Shape(*parts) for parts in product((False, True), (1,), (False, True), Masquerade, (0, 1))]


def _rules(syntax: Syntax, rules: Iterable[str]) -> str:
    """Commands that add each rule once, to a chain that does not matter."""
    return "".join(f"add rule {syntax.target('any')} {rule}\n" for rule in dict.fromkeys(rules))
