"""How a backend is chosen for a new connection of a client from outside."""

import enum


class Algorithm(enum.Enum):
    """RANDOM: by chance. MAGLEV: by a hash of the connection and a table that is the same on every node (see
    policy.maglev)."""

    RANDOM = "random"
    MAGLEV = "maglev"
    __hash__ = object.__hash__  # members are singletons, and Enum's own hash is slow Python code


TABLE_SIZES = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)
"""Sizes that a Maglev table may have, all prime (Cilium's)."""

DEFAULT_TABLE_SIZE = 16381
DEFAULT_SEED = "hotplane"
