"""Conflicts: two Services that claim one (address, port, protocol)."""

from typing import NamedTuple

from dataplane.model.objects import Service
from dataplane.plan.types import FrontendKey

ServiceId = tuple[str, str]
"""Namespace and name."""

_NO_TIME = "9999"  # sorts behind every RFC 3339 time: an object without a creation time is not older than any


class Claim(NamedTuple):
    """A Service's claim to a frontend; the smallest claim wins: older creationTimestamp, then namespace/name."""

    created: str
    namespace: str
    name: str

    @property
    def service(self) -> ServiceId:
        return self.namespace, self.name


def claim_of(service: Service) -> Claim:
    """The claim that a Service makes to each of its frontends."""
    return Claim(service.created or _NO_TIME, service.namespace, service.name)


class Claims:
    """Who claims which frontend. Each operation is O(frontends of the Service that changes)."""

    def __init__(self) -> None:
        self._claims: dict[FrontendKey, tuple[Claim, ...]] = {}
        self._of: dict[ServiceId, tuple[Claim, frozenset[FrontendKey]]] = {}

    def winner(self, key: FrontendKey) -> Claim | None:
        """The claim that gets the frontend."""
        claims = self._claims.get(key)
        return claims[0] if claims else None

    def replace(self, service: ServiceId, claim: Claim | None, keys: frozenset[FrontendKey]) -> set[ServiceId]:
        """Set what a Service claims (claim None: nothing). Returns the *other* Services that won or lost by it."""
        old_claim, old_keys = self._of.pop(service, (None, frozenset()))
        if claim is not None and keys:
            self._of[service] = (claim, keys)
        if claim == old_claim and keys == old_keys:
            return set()
        affected: set[ServiceId] = set()
        for key in old_keys | keys:
            before = self._claims.get(key, ())
            after = tuple(c for c in before if c.service != service)
            if claim is not None and key in keys:
                after = tuple(sorted((*after, claim)))
            if after:
                self._claims[key] = after
            else:
                self._claims.pop(key, None)
            if len(before) > 1 or len(after) > 1:
                affected |= {c.service for c in (*before, *after)}
        return affected - {service}
