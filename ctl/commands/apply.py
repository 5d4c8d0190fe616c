"""`hotplane apply`: program this network namespace once from manifests."""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from ctl.output import add_output_option, print_records

if TYPE_CHECKING:
    from ctl.manifests import Planned
    from dataplane.plan.change import PlanChange
    from dataplane.plan.types import Plan
    from dataplane.planes.options import PlaneOptions


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    from ctl.context import add_manifest_option
    from ctl.store.lock import add_takeover_option

    parser = subparsers.add_parser(
        "apply",
        help="program this network namespace once from manifests",
        description="Bring the rules of this network namespace to what the manifests say, without a gap in service. "
        "Objects with problems are reported and skipped, and the exit status is 1 then. Another mode's rules go once "
        "this mode's are in place.",
    )
    add_manifest_option(parser)
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="apply the rest where a manifest cannot be read (else nothing changes)",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="let everything go that is loaded, and Services that the manifests name and nothing can reach",
    )
    add_takeover_option(parser)
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """Load the plan, clean stale UDP flows, remember the plan; 1 when something was refused and the rest is loaded."""
    from ctl.manifests import plan_manifests
    from ctl.plane_options import plane_options
    from ctl.store.lock import hold
    from ctl.store.stale import try_sweep

    options = plane_options(args)
    planned = plan_manifests(args)
    with hold(args.command, planned.context.mode, takeover=args.takeover):
        status = _load(args, options, planned)
    try_sweep(planned.context.state_dir)
    return status


def _load(args: argparse.Namespace, options: "PlaneOptions", planned: "Planned") -> int:
    from ctl.loaded import finish_load, replace_plane
    from ctl.manifests import check_intended
    from ctl.store import state, unfinished_loads
    from dataplane.planes.base import load_others
    from dataplane.planes.conntrack import clean_stale_udp
    from dataplane.planes.mode import Making
    from dataplane.planes.registry import mode_of

    context, plan = planned.context, planned.plan
    previous = state.load(context.state_dir)
    check_intended(planned, previous.plan() if previous else None, keep_going=args.keep_going, prune=args.prune)
    making = Making(options, tcp_be_liberal=context.config.conntrack.tcp_be_liberal, detector=context.node.detector)
    plane = mode_of(context.mode).make(making)
    started = time.monotonic()
    unfinished = unfinished_loads.record(context.state_dir, context.mode)
    change, refusals = load_others(plane, plan)
    for refusal in refusals:
        print(f"hotplane: {refusal}", file=sys.stderr)
    stale = sum(cleaned.entries for cleaned in clean_stale_udp(change, context.node, plan).values())
    others = unfinished_loads.other_modes(context.mode, previous, unfinished)
    replaced = unfinished_loads.replace_others(others, lambda old: replace_plane(old, context.mode))
    left_out = finish_load(plane, change)
    state.save(context.state_dir, state.Saved.of(context.mode, plan, options, left_out))
    unfinished_loads.clear(context.state_dir)
    problems = planned.problems + len(refusals)
    _print(args.output, context.mode, plan, change, stale, replaced, problems, time.monotonic() - started)
    return 1 if planned.refused or refusals else 0


def _print(
    output: str, mode: str, plan: "Plan", change: "PlanChange", stale: int, replaced: str, problems: int, seconds: float
) -> None:
    entries = change.entries
    record = {
        "mode": mode,
        "frontends": sum(len(entry.frontends) for entry in plan.entries.values()),
        "endpoints": len({(b.address, b.port) for e in plan.entries.values() for b in (*e.cluster, *e.local)}),
        "added": sum(entry.old is None for entry in entries),
        "changed": sum(entry.old is not None and entry.new is not None for entry in entries),
        "removed": sum(entry.new is None for entry in entries),
        "staleUDPFlows": stale,
        "replacedMode": replaced,
        "problems": problems,
        "milliseconds": round(seconds * 1000, 1),
    }
    columns = ("mode", "frontends", "endpoints", "added", "changed", "removed", "problems", "milliseconds")
    print_records([record], output, columns)
