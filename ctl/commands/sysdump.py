"""`hotplane sysdump`: everything that a report of a fault needs, in one archive."""

import argparse
import time
from pathlib import Path
from typing import Any

from ctl.output import Table, add_output_option, notify, print_records

COLUMNS = Table(("part", "bytes", "problem"), (), ("problem",))


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "sysdump",
        help="pack versions, plan, tables, views, counters and logs into one archive",
        description="Pack what a report of a fault needs: versions, what doctor finds, every view of show, the "
        "kernel's tables, addresses and routes, the daemon's health and metrics, its log. Credentials are removed; "
        "names and addresses of the cluster are not. Nothing is changed.",
    )
    parser.add_argument("--file", type=Path, metavar="FILE.tar.gz", help="default: hotplane-sysdump-NODE-TIME.tar.gz")
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write the archive and say what is in it."""
    from ctl.context import build_context
    from ctl.progress import stage
    from ctl.sysdump import parts, write

    context = build_context(args, offline=True)
    name = f"hotplane-sysdump-{context.node.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = args.file or Path(f"{name}.tar.gz")
    with stage("collecting") as now:
        wanted = [*parts(args.state_dir, args.mode, context.config)]
        written = write(path, name, wanted, lambda part: now(f"collecting {part}"))
    print_records([part._asdict() for part in written], args.output, COLUMNS)
    if without := sum(bool(part.problem) for part in written):
        notify(
            f"{without} of {len(written)} parts do not have what they should, for the problems named "
            "(and in their place in the archive)"
        )
    said = f"written to {path}; it names this cluster's Services and addresses"
    if args.output == "table":
        print(said)
    else:  # a script reads records on standard output, and who runs it still asks where the archive is
        notify(said)
    return 0
