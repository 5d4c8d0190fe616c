"""`hotplane apply`: program this network namespace once from manifests."""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ctl.output import Table, add_output_option, notify, print_records
from ctl.progress import stage

if TYPE_CHECKING:
    from ctl.context import Context
    from ctl.manifests import Planned
    from dataplane.plan.change import PlanChange
    from dataplane.plan.types import Plan
    from dataplane.planes.options import PlaneOptions

COLUMNS = Table(
    (
        "node", "mode", "addresses", "services", "frontends", "endpoints", "added", "changed", "removed", "problems",
        "milliseconds", "waitedSeconds",
    ),
    ("milliseconds", "services", "addresses", "problems", "frontends"),
    ("addresses",),
)  # fmt: skip


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
    parser.add_argument("--dry-run", action="store_true", help="only say what would change, as diff does")
    add_takeover_option(parser)
    add_output_option(parser, of_many=True)


def run(args: argparse.Namespace) -> int:
    """Load the plan, clean stale UDP flows, remember the plan; 1 when something was refused and the rest is loaded."""
    from ctl.manifests import plan_manifests
    from ctl.plane_options import plane_options
    from ctl.store.lock import hold
    from ctl.store.stale import try_sweep

    started = time.monotonic()
    options = plane_options(args)
    planned = plan_manifests(args)
    if args.dry_run:
        return _dry_run(args, planned)
    with hold(args.command, planned.context.mode, takeover=args.takeover):
        status = _load(args, options, planned, started)
    try_sweep(planned.context.state_dir)
    return status


def _dry_run(args: argparse.Namespace, planned: "Planned") -> int:
    """Say what a load would change, and refuse what it would refuse."""
    from ctl.commands.diff import print_changes
    from ctl.manifests import check_intended
    from ctl.store import state

    previous = state.load(planned.context.state_dir)
    check_intended(planned, previous.plan() if previous else None, keep_going=args.keep_going, prune=args.prune)
    print_changes(args, planned)
    print("nothing was changed (--dry-run)", file=sys.stderr)
    return 1 if planned.refused else 0


def _load(args: argparse.Namespace, options: "PlaneOptions", planned: "Planned", asked: float) -> int:
    """asked: when the command began, by time.monotonic()."""
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
    with stage(f"loading {len(plan.entries)} Service ports in {context.mode} mode"):
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
    loaded = Loaded(stale, replaced, problems, time.monotonic() - started, time.monotonic() - asked)
    print_records([_record(context, plan, change, loaded)], args.output, COLUMNS)
    if replaced and args.output in ("table", "wide"):  # else all Services are added, and nobody sees why
        notify(f"the {context.mode} mode has taken over from the {replaced} mode, with all Services")
    return 1 if planned.refused or refusals else 0


class Loaded(NamedTuple):
    """What a load did. seconds: of the load itself. waited: since the command began, manifests read and planned."""

    stale: int
    replaced: str
    problems: int
    seconds: float
    waited: float


def _record(context: "Context", plan: "Plan", change: "PlanChange", loaded: Loaded) -> dict[str, object]:
    entries = change.entries
    return {
        "node": context.node.name,
        "mode": context.mode,
        "addresses": list(context.node.addresses),
        "services": len({(key.namespace, key.name) for key in plan.entries}),
        "frontends": sum(len(entry.frontends) for entry in plan.entries.values()),
        "endpoints": len({(b.address, b.port) for e in plan.entries.values() for b in (*e.cluster, *e.local)}),
        "added": sum(entry.old is None for entry in entries),
        "changed": sum(entry.old is not None and entry.new is not None for entry in entries),
        "removed": sum(entry.new is None for entry in entries),
        "staleUDPFlows": loaded.stale,
        "replacedMode": loaded.replaced,
        "problems": loaded.problems,
        "milliseconds": round(loaded.seconds * 1000, 1),
        "waitedSeconds": round(loaded.waited, 2),
    }
