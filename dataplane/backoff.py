"""How long to wait before something that failed is tried again: one rule for all retries."""

import math
import random
import time
from collections.abc import Callable


def longer(wait: float, first: float, most: float) -> float:
    """The rule: seconds to wait next, after `wait` seconds were not enough: twice as long, from `first` to `most`."""
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
        """An attempt failed now: seconds until the next."""
        now = self._clock()
        self._wait = longer(self._wait if now - self._failed <= self._reset else 0.0, self._first, self._most)
        delay = self._wait * (1 + self._jitter * random.random())
        self._failed, self.at = now, now + delay
        return delay

    def worked(self) -> None:
        """An attempt worked."""
        self._wait = self.at = 0.0

    def due_in(self) -> float | None:
        """Seconds until the next attempt, None when there is nothing to try again."""
        return max(0.0, self.at - self._clock()) if self.at else None
