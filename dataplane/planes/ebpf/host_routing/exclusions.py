"""Who stays on the node's stack, whatever devices and routes allow."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Who stays on the node's stack, and why.

    node: a reason for everything, or None. addresses: a reason for each pod address (canonical text) of this node that
    stays. Reasons are clauses for the user, without a full stop.
    """

    node: str | None = None
    addresses: Mapping[str, str] = field(default_factory=dict)
