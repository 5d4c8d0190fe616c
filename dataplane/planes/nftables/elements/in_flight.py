"""Find the elements that packets in flight through the rules need while a change is committed.

The kernel takes a hook's rules as they were when the packet entered it, but each element as it is at the look-up. So a
packet may have read an action of a frontend, and then find nothing where that action leads to.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from dataplane.planes.nftables.netlink.fields import Element, number, number_of
from dataplane.planes.nftables.rules.syntax import DROP_ACTION, LOCAL_OFFSET, REJECT_ACTION, Kind, Syntax

_ALL, _NONE = (b"",), ()
_FIRST = (number(0), number(LOCAL_OFFSET))
"""Indexes of a set's first backend, which a shape's rules try when there is no other."""


class _Role(NamedTuple):
    """The role of one map's elements. first: target of the frontend's own element. frontend: slice of their keys that
    is the frontend's key. needed: key endings of the elements without which packets in flight are dropped."""

    first: str
    frontend: slice
    needed: tuple[bytes, ...]


@cache
def _roles(syntax: Syntax) -> dict[str, _Role]:
    """Return the roles by target."""
    first = syntax.target(syntax.services.first)
    return {
        **_roles_of(syntax, syntax.services),
        **_roles_of(syntax, syntax.nodeports),
        syntax.target("restricted"): _Role(first, slice(None), _ALL),
    }


def _roles_of(syntax: Syntax, kind: Kind) -> dict[str, _Role]:
    first = syntax.target(kind.first)
    entire, before_index = slice(None), slice(-4)
    return {
        **{syntax.target(name): _Role(first, entire, _ALL) for name in (kind.pod, kind.node, kind.outside)},
        **{syntax.target(name): _Role(first, before_index, _FIRST) for name in (kind.endpoints, kind.slots)},
        syntax.target(kind.slot_endpoints): _Role(first, before_index, _NONE),
        syntax.target(kind.local_slot_endpoints): _Role(first, before_index, _NONE),
    }


def needed_in_flight(
    syntax: Iterable[Syntax], removed: Iterable[Element], added: Mapping[Element, bytes]
) -> frozenset[Element]:
    """Those of the removed elements without which a packet in flight would be dropped although it is let through by
    the plans before and after: all those of a frontend that stays, but loses an action or a map entry it had.

    Fewer endpoints are no such case, because a shape's rules try another one. Other source ranges are one, because the
    new one may be looked for before it is there, and the old one after it has gone.
    """
    gone = frozenset(element for element in removed if element not in added)
    changed, of_frontend = set(), []
    for w in syntax:
        roles, ranges = _roles(w), w.target("ranges-")
        of_ranges = _Role(w.target(w.services.first), slice(-(w.bits // 8)), _ALL)
        for element in gone:
            role = of_ranges if element[0].startswith(ranges) else roles.get(element[0])
            if role is None:
                continue
            frontend = (role.first, element[1][role.frontend])
            of_frontend.append((frontend, element))
            if element[1].endswith(role.needed):
                changed.add(frontend)
    on = {f for f in changed if f not in gone and not _refuses(added.get(f))}
    return frozenset(element for frontend, element in of_frontend if frontend in on)


def _refuses(value: bytes | None) -> bool:
    """True if a frontend's new element refuses all sources; None: it has no new element."""
    return value is not None and number_of(value[:4]) in (REJECT_ACTION, DROP_ACTION)
