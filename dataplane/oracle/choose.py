"""Which backend a connection gets: the uniform choice and session affinity, as a model for simulations.

Source of the rules: Kubernetes Service API (sessionAffinityConfig.clientIP.timeoutSeconds) and kube-proxy's published
behaviour: the timeout counts from the client's last new connection.
"""

from random import Random
from typing import NamedTuple

from dataplane.oracle.types import Decision, Verdict
from dataplane.plan.types import EntryKey
from dataplane.policy.endpoints import Backend


class Sticky(NamedTuple):
    """The backend that a client was given, and when it last opened a connection (seconds)."""

    backend: Backend
    last: float


class AffinityTable:
    """Which client is with which backend, for each Service port: all frontends of a port share it, as in kube-proxy.

    A client moves only when its backend leaves the set that its route chooses from, or when the timeout has passed
    since its last new connection; what happens to other backends does not matter.
    """

    def __init__(self) -> None:
        self._clients: dict[tuple[EntryKey, str], Sticky] = {}

    def recall(self, decision: Decision, now: float) -> Backend | None:
        """The backend that the client is still with, or None."""
        assert decision.entry is not None
        sticky = self._clients.get((decision.entry.key, decision.packet.source))
        if sticky is None or now - sticky.last >= decision.affinity_seconds or sticky.backend not in decision.backends:
            return None
        return sticky.backend

    def remember(self, decision: Decision, backend: Backend, now: float) -> None:
        """Note that the client opened a connection to this backend."""
        assert decision.entry is not None
        self._clients[decision.entry.key, decision.packet.source] = Sticky(backend, now)


def choose(decision: Decision, rng: Random, affinity: AffinityTable, now: float) -> Backend:
    """The backend for a new connection: the client's own where affinity holds, else one of the set at random, 1/n each.

    now: seconds of any clock that does not go back. Raises ValueError for a decision that forwards nothing.
    """
    if decision.verdict is not Verdict.DNAT:
        raise ValueError(f"{decision.packet}: the verdict is {decision.verdict.value}, there is nothing to choose")
    if not decision.affinity_seconds:
        return rng.choice(decision.backends)
    backend = affinity.recall(decision, now) or rng.choice(decision.backends)
    affinity.remember(decision, backend, now)
    return backend
