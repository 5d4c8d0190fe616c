"""From manifest files to a plan, for the commands that work once (apply, check)."""

import argparse
from typing import NamedTuple

from ctl.context import Context, build_context, report_problems
from ctl.sources.manifests import read_manifests
from dataplane.errors import HotplaneError
from dataplane.plan.planner import Planner
from dataplane.plan.types import Plan


class Planned(NamedTuple):
    """A plan made of manifests; `problems`: how many were reported on stderr."""

    context: Context
    plan: Plan
    problems: int


def plan_manifests(args: argparse.Namespace) -> Planned:
    """Read `args.filename` and plan it for this node; problems are reported, one line each, and skipped; notes too.

    Raises HotplaneError when nothing of it could be used.
    """
    decoded = read_manifests(args.filename)
    context = build_context(args, decoded.objects)
    planner = Planner(context.node)
    planner.update(decoded.objects)
    conflicts = [problem for problems in planner.problems.values() for problem in problems]
    count = report_problems([*decoded.problems, *conflicts])
    report_problems(decoded.notes)
    if not decoded.objects:
        others = ", ".join(f"{n} {kind}" for kind, n in sorted(decoded.ignored.items()))
        found = f" (found {others})" if others else ""
        raise HotplaneError(
            f"nothing to use in {', '.join(args.filename)}: no valid Service, EndpointSlice, Node or ServiceCIDR"
            f"{found}; "
            "to remove what is loaded, use cleanup"
        )
    return Planned(context, planner.plan, count)
