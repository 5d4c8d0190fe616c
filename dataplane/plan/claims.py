"""Resolve conflicts of Services that claim one (address, port, protocol). Pods come last (see plan.pods)."""

from typing import NamedTuple

import msgspec

from dataplane.model.objects import Service
from dataplane.plan.types import FrontendKey

ServiceId = tuple[str, str]
"""Namespace and name."""

NO_TIME = "9999"
"""Sorts after every RFC 3339 time: an object without a creation time counts as the youngest."""


class Claim(NamedTuple):
    """A Service's claim to a frontend; the smallest wins: a clusterIP before any other (the control plane allocates
    it, whereas any user may write an externalIP), then older creationTimestamp, then namespace/name."""

    external: bool
    created: str
    service: ServiceId


class Claimant(msgspec.Struct, frozen=True, gc=False):
    """The frontends that a Service claims. Kept for each Service of the cluster, so it is small: each `Claim` is made
    on demand."""

    service: ServiceId
    created: str
    cluster_ips: tuple[str, ...]
    keys: tuple[FrontendKey, ...]

    def claim(self, key: FrontendKey) -> Claim:
        """Return the claim to one frontend."""
        return Claim(key.address not in self.cluster_ips, self.created, self.service)


def claimant(service_id: ServiceId, service: Service, keys: tuple[FrontendKey, ...]) -> Claimant:
    """Return the claimant of a Service that claims these keys."""
    return Claimant(service_id, service.created or NO_TIME, service.cluster_ips, keys)


class Claims:
    """Claims of Services by frontend. Each operation is O(frontends of the Service that changes)."""

    def __init__(self) -> None:
        self._claims: dict[FrontendKey, Claimant | tuple[Claimant, ...]] = {}  # several: the winner first
        self._of: dict[ServiceId, Claimant] = {}

    def winner(self, key: FrontendKey) -> Claim | None:
        """Return the claim that wins the frontend, or None."""
        claimants = self._claimants(key)
        return claimants[0].claim(key) if claimants else None

    def add(self, new: Claimant) -> bool:
        """Record the claims of a Service that has none, if nobody else claims any of it; else do nothing and return
        False."""
        if new.service in self._of or not self._claims.keys().isdisjoint(new.keys):
            return False
        for key in new.keys:
            self._claims[key] = new
        self._of[new.service] = new
        return True

    def replace(self, service: ServiceId, new: Claimant | None) -> set[ServiceId]:
        """Replace the claims of a Service (None: no claims). Returns the *other* Services that may win or lose
        frontends."""
        held = self._of.get(service)
        if new is not None and not new.keys:
            new = None
        affected: set[ServiceId] = set()
        if new == held:
            return affected
        for key in held.keys if held is not None else ():
            self._withdraw(service, key, affected)
        for key in new.keys if new is not None else ():
            assert new is not None, "it has keys"
            if self._claims.setdefault(key, new) is not new:
                others = self._claimants(key)
                affected.update(other.service for other in others)
                self._claims[key] = tuple(sorted((*others, new), key=lambda each: each.claim(key)))
        if new is None:
            self._of.pop(service, None)
        else:
            self._of[service] = new
        return affected

    def _claimants(self, key: FrontendKey) -> tuple[Claimant, ...]:
        found = self._claims.get(key, ())
        return found if isinstance(found, tuple) else (found,)

    def _withdraw(self, service: ServiceId, key: FrontendKey, affected: set[ServiceId]) -> None:
        rest = tuple([each for each in self._claimants(key) if each.service != service])
        if rest:
            self._claims[key] = rest if len(rest) > 1 else rest[0]
            affected.update(other.service for other in rest)
        else:
            del self._claims[key]
