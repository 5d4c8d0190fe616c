"""`hotplane show`: what the kernel holds now, without manifests."""

import argparse
from collections.abc import Callable
from typing import Any

from ctl.output import Record, add_output_option, print_records

VIEWS = {
    "services": "frontends, and what happens to their packets by where these come from",
    "endpoints": "endpoints, and the frontends that choose among them",
    "affinity": "clients that session affinity remembers now",
    "connections": "connections through frontends that conntrack holds now",
    "drops": "what was refused or dropped, and why; the nftables mode's rules do not count that",
    "connect-time": "ebpf mode: for which Pods, control groups and network namespaces connect time is off, and why",
    "counters": "connections of each frontend now; in iptables mode also those opened and refused since it was loaded; "
    "in ebpf mode connections, packets and bytes of each Service port and every way out of each hook",
}


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "show",
        help="what the kernel holds now",
        description="What the kernel holds now in this network namespace: " + "; ".join(
            f"{name}: {text}" for name, text in VIEWS.items()
        ),
    )  # fmt: skip
    parser.add_argument("what", choices=VIEWS, metavar="WHAT", help=" | ".join(VIEWS))
    parser.add_argument("--service", metavar="NAMESPACE/NAME", help="only this Service")
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the view."""
    from ctl import views
    from ctl.loaded import loaded_plane

    if args.what == "connect-time":
        return _connect_time(args)
    plane = loaded_plane(args.mode, args.state_dir)
    view: Callable[..., tuple[list[Record], tuple[str, ...]]] = getattr(views, args.what)
    records, columns = view(plane)
    if args.service:
        records = [r for r in records if str(r.get("service", "")).partition(":")[0] == args.service]
    empty = f"the {plane.name} rules of this network namespace hold no {args.what}"
    if args.what == "drops" and not views.counts_drops(plane):
        empty = f"the {plane.name} mode's rules do not count what they refuse; explain says what is refused and why"
    print_records(records, args.output, columns, empty=empty)
    return 0


def _connect_time(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ctl.connect_off import COLUMNS, records

    empty = "connect time is off for nobody in this network namespace"
    print_records(list(records(Path(args.state_dir))), args.output, COLUMNS, empty=empty)
    return 0
