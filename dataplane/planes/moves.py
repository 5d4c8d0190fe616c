"""Who stands where in a numbered set of backends after a change that moves as few as possible.

Whoever stays keeps its place, a newcomer takes the place of one that went, and what is empty then is filled from the
end.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def moves(count: int, holes: Iterable[int], added: Sequence[_T], at: Callable[[int], _T]) -> dict[int, _T | None]:
    """The places that change: who stands there afterwards, None where the set ends before. O(what changes).

    count: members before. holes: places of those that went. added: newcomers. at: who stands at a place before.
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
