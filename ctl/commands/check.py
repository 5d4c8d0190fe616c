"""`hotplane check`: compare the kernel with the plan, say every difference in words, repair on request."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ctl.output import Table, add_output_option, print_records
from dataplane.errors import HotplaneError

if TYPE_CHECKING:
    from ctl.store.drift import Difference
    from ctl.store.state import Saved
    from dataplane.plan.types import Plan
    from dataplane.planes.base import Plane

_MORE_LOOKS = 2
"""Where something differs beside a daemon. One is enough, but for changes by the dozen each second."""


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    from ctl.context import add_manifest_option
    from ctl.store.lock import add_takeover_option

    parser = subparsers.add_parser(
        "check",
        help="compare the kernel with the plan; --repair",
        description="Compare what the kernel holds with the plan: of -f, else of the last apply in this network "
        "namespace. Exit 1 when they differ and are not repaired.",
    )
    add_manifest_option(parser, required=False)
    parser.add_argument("--repair", action="store_true", help="bring the kernel back to the plan")
    add_takeover_option(parser)
    add_output_option(parser, of_many=True)


def run(args: argparse.Namespace) -> int:
    """Print one record a difference; 0 when there is none (left)."""
    from ctl.store.lock import hold

    if not args.repair:
        return _check(args)
    with hold("check --repair", takeover=args.takeover):
        return _check(args)


def _check(args: argparse.Namespace) -> int:
    from dataplane.faults import ignore
    from dataplane.planes.mode import Making, print_warning
    from dataplane.planes.options import PlaneOptions
    from dataplane.planes.registry import mode_of

    saved, tcp_be_liberal = _wanted(args)
    doubt = _doubt(args)
    if doubt and args.repair:
        raise HotplaneError(f"{doubt}; a repair would undo them: apply the manifests again, or name them with -f")
    if doubt:
        print(f"hotplane: {doubt}; what differs may be this plan", file=sys.stderr)
    plan = saved.plan()
    options = saved.options or PlaneOptions()
    warn = print_warning if args.repair else ignore  # who only looks changes no feature
    making = Making(options, plan.node, tcp_be_liberal, plan.node.detector, warn=warn)
    plane = mode_of(saved.mode).make(making)
    found = _differences(saved, plan, plane)
    if found and not args.repair and not args.filename:
        found = _lasting(args, found, plane)
    for service in sorted({key.service for key, entry in plan.entries.items() if entry.limited}):
        print(
            f"hotplane: {service}: has more endpoints than the plan may use; see apply's or the daemon's messages",
            file=sys.stderr,
        )
    records = [
        {
            "service": d.service,
            "frontend": str(d.frontend),
            "difference": d.difference,
            "where": d.where,
            "what": d.what,
            "field": d.field,
            "wanted": d.wanted,
            "held": d.held,
        }
        for d in found
    ]
    print_records(
        records,
        args.output,
        Table(("service", "frontend", "difference"), (), ("difference",)),
        empty=f"no difference: the {saved.mode} rules hold the plan's {sum(1 for _ in plan.frontends())} frontends",
    )
    if not found or not args.repair:
        return int(bool(found))
    return _repair(args, saved, plan, plane)


def _doubt(args: argparse.Namespace) -> str:
    """Why the remembered plan may be older than what the kernel holds; "" where it is good, or none is used."""
    from pathlib import Path

    from ctl.store import state, unfinished_loads

    if args.filename:
        return ""
    folder = Path(args.state_dir)
    if state.is_stale(folder):
        return f"the plan in {folder} is from before changes that could not be written down there (is it full?)"
    if unfinished_loads.unfinished_modes(folder):
        return f"the plan in {folder} is from before changes that were ended in the middle"
    return ""


def _wanted(args: argparse.Namespace) -> "tuple[Saved, bool]":
    """Return the intended state and conntrack.tcpBeLiberal. Raises HotplaneError if there is none."""
    from ctl.loaded import last_loaded
    from ctl.plane_options import given, plane_options
    from ctl.store import state

    if args.filename:
        from ctl.manifests import plan_manifests

        options = plane_options(args)
        context, plan, *_ = plan_manifests(args)
        if not given(args):  # as it was applied
            before = state.load(context.state_dir)
            options = before.options if before and before.mode == context.mode and before.options else options
        return state.Saved.of(context.mode, plan, options), context.config.conntrack.tcp_be_liberal
    saved = last_loaded(args.mode, args.state_dir)
    tcp_be_liberal = False
    if args.config:
        from ctl.config import load_config

        tcp_be_liberal = load_config(args.config).config.conntrack.tcp_be_liberal
    return saved, tcp_be_liberal


def _differences(saved: "Saved", plan: "Plan", plane: "Plane") -> "list[Difference]":
    """Return the differences between plan and plane, except Services that are known to be left out."""
    from ctl.store.drift import plane_differences
    from dataplane.plan.rows import rows

    return list(plane_differences(plane, rows(plan), frozenset(saved.left_out)))


def _lasting(args: argparse.Namespace, found: "list[Difference]", plane: "Plane") -> "list[Difference]":
    """Look again where a daemon runs, whose change may have come between the look at the plan and that at the kernel.
    Returns what differs each time, but of Services that change during a look. found: the first time."""
    from pathlib import Path

    from ctl.store import state

    folder = Path(args.state_dir)
    for _ in range(_MORE_LOOKS):
        if not found or not state.ask_daemon(folder):  # it saves its plan when no change is under way
            break
        before = state.load(folder, current=False)
        if before is None or before.mode != plane.name:
            break
        again = _differences(before, before.plan(), plane)
        after = state.load(folder, current=False)
        named = {each.service for each in found} - (_changed(before, after) if after is not None else set())
        found = [each for each in again if each.service in named]
    return found


def _changed(before: "Saved", after: "Saved") -> set[str]:
    """Return the Services that differ between two plans."""
    from dataplane.plan.rows import rows

    old, new = rows(before.plan()), rows(after.plan())
    differing = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    return {table[key].service for key in differing for table in (old, new) if key in table}


def _repair(args: argparse.Namespace, saved: "Saved", plan: "Plan", plane: "Plane") -> int:
    from pathlib import Path

    from msgspec.structs import replace

    from ctl.loaded import finish_load
    from ctl.store import state
    from dataplane.planes.base import load_others
    from dataplane.planes.conntrack import clean_stale_udp

    change, refusals = load_others(plane, plan)
    for refusal in refusals:
        print(f"hotplane: {refusal}", file=sys.stderr)
    clean_stale_udp(change, plan.node, plan)
    saved = replace(saved, left_out=finish_load(plane, change))
    left = _differences(saved, plan, plane)
    if left:
        print(f"hotplane: {len(left)} differences are left after the repair", file=sys.stderr)
        return 1
    state.save(Path(args.state_dir), saved)
    print(f"repaired: the {saved.mode} rules hold the plan again", file=sys.stderr)
    return 0
