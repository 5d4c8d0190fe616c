"""Shares of weighted backends: how often each of them stands in the list that a plane draws from.

A plane draws uniformly from a list of places; a backend of weight 3 has three places beside one of weight 1. Weights
are divided by their greatest common divisor. Where that is more places than a list may have, they are scaled down: no
backend loses its last place, so a share below one place is rounded up to one.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, repeat
from math import gcd

from dataplane.policy.endpoints import Backend

_PLACES = 1024
_PLACES_EACH = 16
MOST_PLACES = 0x8000
"""A list has room for 1,024 places, or 16 for each backend if that is more, and never for more than a set has backends
(policy.node.MOST_BACKENDS)."""


@lru_cache(maxsize=256)
def drawn(backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
    """Return a sorted set with each backend as often as it has places. Weights of 0 count as 1. O(places)."""
    return tuple(chain.from_iterable(map(repeat, backends, places([b.weight or 1 for b in backends]))))


def places(weights: Sequence[int]) -> list[int]:
    """Return the number of places of each backend. weights: at least 1 each."""
    reduced = _reduced(weights)
    most = max(len(reduced), min(max(_PLACES, _PLACES_EACH * len(reduced)), MOST_PLACES))
    total = sum(reduced)
    if total <= most:
        return reduced
    found = [max(1, weight * most // total) for weight in reduced]
    # By largest remainders, ties by order; what the smallest were given too much, the largest lose.
    order = sorted(range(len(found)), key=lambda at: (-(reduced[at] * most % total), at))
    spare = most - sum(found)
    for at in order[: max(spare, 0)]:
        found[at] += 1
    while spare < 0:
        largest = max(found)
        for at, count in enumerate(found):
            if count == largest > 1 and spare < 0:
                found[at] -= 1
                spare += 1
    return _reduced(found)


def _reduced(weights: Sequence[int]) -> list[int]:
    """Return the smallest numbers of the same proportions."""
    divisor = gcd(*weights)
    return [weight // divisor for weight in weights]
