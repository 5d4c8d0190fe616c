"""Who stays on the node's stack, whatever devices and routes allow."""

from collections.abc import Mapping
from dataclasses import dataclass, field

UNKNOWN = "no Pod of this node that runs is known to have this address, and there are NetworkPolicies"


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Who stays on the node's stack, and why.

    node: a reason for everything, or None. addresses: a reason for each pod address (canonical text) of this node that
    stays. known: the only other addresses that need not stay; None for any. Reasons are clauses for the user, without a
    full stop.
    """

    node: str | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)
    known: frozenset[str] | None = None

    def reason(self, address: str) -> str | None:
        """Why a pod's address (canonical text) stays on the stack; None if it need not."""
        found = self.node or self.addresses.get(address)
        if found is None and self.known is not None and address not in self.known:
            return UNKNOWN
        return found
