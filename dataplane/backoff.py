"""Exponential backoff: the waiting time before a failed attempt is repeated; one rule for all retries."""

import math
import random
import time
from collections.abc import Callable


def longer(wait: float, first: float, most: float) -> float:
    """Return the seconds to wait after a wait of `wait` seconds: twice as long, between `first` and `most`."""
    return min(max(first, 2 * wait), most)


class Backoff:
    """Waiting times between failures, in seconds: `first`, doubling to `most`. The next failure is the first one again
    after `worked`, and after `reset` seconds without failure. jitter: up to this share of a wait is added at random."""

    def __init__(
        self,
        first: float = 1.0,
        most: float = 60.0,
        *,
        jitter: float = 0.0,
        reset: float = math.inf,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._first, self._most, self._jitter, self._reset = first, most, jitter, reset
        self._clock = clock or time.monotonic
        self._wait = self._failed = self.at = 0.0

    @property
    def failures_in_a_row(self) -> bool:
        """True if the last attempt failed."""
        return self.at > 0

    def failed(self) -> float:
        """Record a failed attempt; return the seconds until the next one."""
        now = self._clock()
        self._wait = longer(self._wait if now - self._failed <= self._reset else 0.0, self._first, self._most)
        delay = self._wait * (1 + self._jitter * random.random())
        self._failed, self.at = now, now + delay
        return delay

    def worked(self) -> None:
        """Record a successful attempt."""
        self._wait = self.at = 0.0

    def due_in(self) -> float | None:
        """Return the seconds until the next attempt, None if none is pending."""
        return max(0.0, self.at - self._clock()) if self.at else None
