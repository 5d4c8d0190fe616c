"""`hotplane diff`: what an apply of the same manifests would change."""

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from ctl.output import Table, add_output_option, print_records

if TYPE_CHECKING:
    from ctl.manifests import Planned

COLUMNS = Table(("service", "change", "frontends", "details"), ("frontends",), ("details",))


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    from ctl.context import add_manifest_option

    parser = subparsers.add_parser(
        "diff",
        help="which Services an apply would add, change and remove",
        description="Compare what the manifests say with what the kernel holds, Service by Service. Nothing is "
        "changed. Exit 1 if there is a difference, as diff and kubectl diff do.",
    )
    add_manifest_option(parser)
    add_output_option(parser, of_many=True)


def run(args: argparse.Namespace) -> int:
    """Print one record a Service that differs; 0 when there is none."""
    from ctl.manifests import plan_manifests

    return int(print_changes(args, plan_manifests(args)) > 0)


def print_changes(args: argparse.Namespace, planned: "Planned") -> int:
    """Print what a load of this plan would change, and a summary on a table's last line; return how many Services."""
    from pathlib import Path

    from ctl.loaded import loaded_plane
    from ctl.store import state
    from ctl.store.changes import changes
    from ctl.store.settings import settings_changes
    from dataplane.plan.rows import rows

    saved = state.load(Path(args.state_dir))
    loaded = saved.mode if saved else planned.context.mode
    plane = loaded_plane(loaded, args.state_dir)
    found = [*changes(rows(planned.plan), plane.read_back(), plane.stored_name)]
    records = [
        {
            "service": c.service,
            "change": c.change,
            "frontends": c.frontends,
            "details": list(c.details),
            "fields": [each._asdict() for each in c.fields],
        }
        for c in found
    ]
    print_records(records, args.output, COLUMNS, empty="no Service differs")
    if loaded != planned.context.mode and args.output in ("table", "wide"):
        print(f"mode: {loaded} -> {planned.context.mode}")
    if found and args.output in ("table", "wide"):
        counts = Counter(change.change for change in found)
        print(", ".join(f"{counts[what]} {what}" for what in ("added", "changed", "removed")))
        for setting in settings_changes(saved.node, planned.context.node) if saved and counts["changed"] else ():
            print(f"unlike at the last apply, {setting}")
    return len(found)
