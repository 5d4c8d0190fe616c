"""Rate limit of syncs: at once after a quiet time, else with a minimum interval."""

import time
from collections.abc import Callable


class Pace:
    """A token bucket of syncs: `burst` of them without any delay, then one each `interval` seconds.

    The first change after a quiet time is never delayed (as with kube-proxy's minSyncPeriod, burst 2 included).
    """

    def __init__(self, interval: float, burst: int = 2, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval = interval
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._as_of = clock()

    def delay(self) -> float:
        """Return the seconds until the next sync may begin."""
        self._refill()
        return 0.0 if self.interval <= 0 or self._tokens >= 1 else (1 - self._tokens) * self.interval

    def spend(self) -> None:
        """Note that a sync begins now."""
        self._refill()
        self._tokens = max(0.0, self._tokens - 1)

    def _refill(self) -> None:
        now = self._clock()
        gained = (now - self._as_of) / self.interval if self.interval > 0 else self._burst
        self._tokens = min(float(self._burst), self._tokens + gained)
        self._as_of = now
