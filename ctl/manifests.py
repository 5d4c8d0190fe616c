"""From manifest files to a plan, for the commands that work once (apply, check)."""

import argparse
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ctl.context import Context, build_context, report_problems
from ctl.progress import stage
from ctl.sources.manifests import read_manifests
from dataplane.errors import HotplaneError
from dataplane.model.objects import SOURCE, Namespace, NetworkPolicy, ObjectRef, Pod, Problem, Service
from dataplane.plan.frontends import has_frontends
from dataplane.plan.planner import Planner
from dataplane.plan.types import Plan

_SHOWN = 5
"""Number of Services that a refusal names."""


class Planned(NamedTuple):
    """A plan made of manifests.

    problems: how many were reported on stderr. refused: how many of them are faults of the manifests, not conflicts
    between Services. broken: how many files, documents or objects could not be read at all. unusable: Services
    (namespace, name) that the manifests name and nothing can reach, because of a fault or for want of an address.
    """

    context: Context
    plan: Plan
    problems: int
    refused: int = 0
    broken: int = 0
    unusable: frozenset[tuple[str, str]] = frozenset()


def plan_manifests(args: argparse.Namespace) -> Planned:
    """Read `args.filename` and plan it for this node; problems are reported, one line each, and skipped; notes too.

    Raises HotplaneError when nothing of it could be used.
    """
    with stage(f"reading {', '.join(args.filename)}"):
        decoded = read_manifests(args.filename, args.node_ports)
    context = build_context(args, decoded.objects)
    planner = Planner(context.node, vouched=False)
    with stage(f"planning {len(decoded.objects)} objects"):
        planner.update(decoded.objects)
    conflicts = [problem for problems in planner.problems.values() for problem in problems]
    count = report_problems([*decoded.problems, *conflicts])
    report_problems([*decoded.notes, *place_notes(planner)])
    kinds = Counter(
        type(item).__name__ for item in decoded.objects if isinstance(item, Pod | Namespace | NetworkPolicy)
    )
    if kinds.total() == len(decoded.objects) and not planner.plan.entries:
        others = ", ".join(f"{n} {kind}" for kind, n in sorted((decoded.ignored + kinds).items()))
        found = f" (found {others})" if others else ""
        read = ", ".join("stdin" if name == "-" else name for name in args.filename)
        raise HotplaneError(
            f"nothing to use in {read}: no valid Service, EndpointSlice, Node or ServiceCIDR{found}; "
            "to remove what is loaded, use cleanup"
        )
    used = {(key.namespace, key.name) for key in planner.plan.entries}
    services = [item for item in decoded.objects if isinstance(item, Service)]
    silent = {(s.namespace, s.name) for s in services if has_frontends(s)} - used
    named = _refused(problem.ref for problem in decoded.problems) - {(s.namespace, s.name) for s in services}
    broken = sum(problem.ref.kind == SOURCE for problem in decoded.problems)
    return Planned(
        context,
        planner.plan,
        count + len(silent - _refused(problem.ref for problem in decoded.problems)),
        len(decoded.problems) + len(silent),
        broken,
        frozenset(silent | named),
    )


def place_notes(planner: Planner) -> list[Problem]:
    """Return warnings about a node name that no object has, and about endpoints without a node for policy Local."""
    doubt = planner.places.doubt()
    notes = [Problem(ObjectRef("Node", "", planner.places.here), "metadata.name", doubt)] if doubt else []
    unknown = [
        ObjectRef("Service", key.namespace, key.name)
        for key, entry in planner.plan.entries.items()
        if (entry.internal_local or entry.external_local)
        and entry.unplaced
        and any(not endpoint.node for endpoint, _ in planner.candidates(key))
    ]
    reason = "some have no nodeName, which policy Local counts as another node's; name the node that each runs on"
    return notes + [Problem(ref, "endpoints", reason) for ref in dict.fromkeys(unknown)]


def _refused(refs: Iterable[ObjectRef]) -> set[tuple[str, str]]:
    """Return namespace and name of the Services among some objects."""
    return {(ref.namespace, ref.name) for ref in refs if ref.kind == "Service"}


def check_intended(planned: Planned, before: Plan | None, *, keep_going: bool, prune: bool) -> None:
    """Refuse what would take more away than the manifests ask for. Raises HotplaneError; nothing has changed then.

    What the manifests do not name any more goes unasked. `prune` allows the rest: a plan that leaves nothing of what
    is loaded, and Services that go although they are named, because nothing can reach them as they are written, or
    because they may have stood in what could not be read (which only `keep_going` lets pass).
    """
    if planned.broken and not keep_going:
        raise HotplaneError(
            f"nothing was changed: {planned.broken} of the manifests or objects cannot be read (see above); mend them, "
            "or use --keep-going to apply the others"
        )
    if prune or before is None:
        return
    had, has = _served(before), _served(planned.plan)
    lost = had - has
    if had and not has:
        why = "nothing that is loaded would be left"
    elif planned.broken and lost:
        why = "they are in none of the manifests that could be read"
    elif lost := lost & planned.unusable:
        why = "they are in the manifests, and as they are written there nothing can reach them"
    else:
        return
    names = ", ".join("/".join(name) for name in sorted(lost)[:_SHOWN])
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    raise HotplaneError(f"nothing was changed: {names}{more} would be removed, for {why}; use --prune if that is meant")


def _served(plan: Plan) -> set[tuple[str, str]]:
    """Return the Services that can be reached."""
    return {(key.namespace, key.name) for key, entry in plan.entries.items() if entry.frontends}
