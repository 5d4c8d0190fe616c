"""What a node's stack drops, and when, as a test made it so; by that answers are judged."""

import time
from typing import NamedTuple

from dataplane.model.net import Family, Protocol

KEEP_SECONDS = 150.0
"""How long an end is remembered: longer than any answer is waited for."""


class Ends(NamedTuple):
    """What rules see of a flow. pods: those of the node that send or get its packets. opened: when, by the clock
    time.monotonic(), as all times here."""

    family: Family
    protocol: Protocol
    pods: frozenset[str]
    opened: float


class Denial:
    """Packets that are dropped for a while: of these pods, None = of all; of one protocol or family, None = of both.

    fresh: connection tracking lets flows go on that it knows, so those from before may or may not be dropped, and of
    datagrams any: their ports may be those of a flow that it remembers. In force for certain from `hold` to `lift`;
    before, from when it was made, and after, to `end`, packets may fare either way.
    """

    def __init__(
        self,
        what: str,
        pods: frozenset[str] | None,
        protocol: Protocol | None = None,
        family: Family | None = None,
        *,
        fresh: bool = False,
    ) -> None:
        self.what = what
        self._pods, self._protocol, self._family, self._fresh = pods, protocol, family, fresh
        self._asked = time.monotonic()
        self._held = self._lifted = self.ended = float("inf")

    def hold(self) -> None:
        """Whatever is sent from now on is dropped."""
        self._held = time.monotonic()

    def lift(self) -> None:
        """From now on this is being taken back."""
        self._lifted = time.monotonic()

    def end(self) -> None:
        """It is gone."""
        self.ended = time.monotonic()

    def concerns(self, ends: Ends) -> bool:
        """Whether it drops packets of such a flow."""
        return (
            (self._pods is None or bool(self._pods & ends.pods))
            and self._protocol in (None, ends.protocol)
            and self._family in (None, ends.family)
        )

    def forbids(self, ends: Ends, sent: float, answered: float) -> bool:
        """Whether what was sent at a time cannot have been answered by another."""
        if self._fresh and ends.protocol is Protocol.UDP:
            return False
        begun = ends.opened if self._fresh else sent
        return self.concerns(ends) and begun > self._held and answered < self._lifted

    def touches(self, ends: Ends, since: float, until: float) -> bool:
        """Whether packets of some time may have been dropped."""
        return self.concerns(ends) and self._asked <= until and since <= self.ended


class Book:
    """All denials of late. One thread writes, another reads."""

    def __init__(self) -> None:
        self._denials: list[Denial] = []
        self.count = 0

    def add(self, denial: Denial) -> Denial:
        """Enter one before the first step is taken for it."""
        now = time.monotonic()
        self._denials = [*(each for each in self._denials if each.ended > now - KEEP_SECONDS), denial]
        self.count += 1
        return denial

    def let_through(self, ends: Ends, sent: float, answered: float) -> str:
        """The denial that an answer went past; "" if none."""
        return next((each.what for each in self._denials if each.forbids(ends, sent, answered)), "")

    def disturbed(self, ends: Ends, since: float, until: float) -> bool:
        """Whether packets of some time may have been dropped."""
        return any(each.touches(ends, since, until) for each in self._denials)
