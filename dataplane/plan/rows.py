"""Convert a plan to the table that `Plane.read_back()` must return."""

from dataplane.plan.types import Frontend, FrontendKey, Plan, PlanEntry, Row, SourceRanges
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.endpoints import Backend
from dataplane.policy.routes import Action, Scope


def _pairs(backends: tuple[Backend, ...]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((backend.address, backend.port) for backend in backends))


def _ranges(ranges: SourceRanges | None) -> SourceRanges | None:
    """Sort and deduplicate source ranges: a plane holds a set."""
    return SourceRanges(tuple(sorted(set(ranges.cidrs)))) if ranges is not None else None


def row(frontend: Frontend, entry: PlanEntry) -> Row:
    """Return one frontend as a plane holds it.

    Only what has an effect is kept, so that equal behaviour compares equal: a set that no route forwards to is
    empty, affinity is absent where no route forwards at all, source ranges where every route drops.
    """
    guards = any(route.action is not Action.DROP for route in frontend.routes)
    scopes = {route.scope for route in frontend.routes if route.action is Action.FORWARD}
    return Row(
        service=entry.key.service,
        routes=frontend.routes,
        cluster=_pairs(entry.drawn(Scope.CLUSTER)) if Scope.CLUSTER in scopes else (),
        local=_pairs(entry.drawn(Scope.LOCAL)) if Scope.LOCAL in scopes else (),
        affinity_seconds=entry.affinity_seconds if scopes else 0,
        source_ranges=_ranges(frontend.source_ranges) if guards else None,
        algorithm=entry.algorithm if entry.steady(frontend) else Algorithm.RANDOM,
    )


def rows(plan: Plan) -> dict[FrontendKey, Row]:
    """Return every frontend of the plan as a row. O(size of the plan)."""
    return {frontend.key: row(frontend, entry) for frontend, entry in plan.frontends()}
