"""Assign indexes in a numbered set of backends after a change, moving as few backends as possible.

A backend that stays keeps its index, a new one takes the index of a removed one, and indexes that are still free are
filled from the end.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def moves(count: int, holes: Iterable[int], added: Sequence[_T], at: Callable[[int], _T]) -> dict[int, _T | None]:
    """Return the indexes that change, with their new member; None past the new end of the set. O(what changes).

    count: members before. holes: indexes of removed members. added: new members. at: the member at an index before.
    """
    empty = sorted(holes)
    moved: dict[int, _T | None] = dict(zip(empty, added, strict=False))
    end = count
    for newcomer in added[len(empty) :]:
        moved[end] = newcomer
        end += 1
    empty = empty[len(added) :]
    still_empty = set(empty)
    for hole in empty:
        while end > hole and end - 1 in still_empty:
            end -= 1
            moved[end] = None
        if hole >= end:
            break
        end -= 1
        last = moved.get(end)
        moved[hole] = at(end) if last is None else last
        moved[end] = None
    return moved
