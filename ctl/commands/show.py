"""`hotplane show`: what the kernel holds now, without manifests."""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ctl.output import (
    NotCounted,
    Record,
    Table,
    add_output_option,
    clear_screen,
    heading,
    notify,
    print_not_counted,
    print_reading,
    print_records,
)
from ctl.service_option import add_service_option, named, require_service
from dataplane.errors import UsageError

if TYPE_CHECKING:
    from ctl.store.state import Saved

WATCH_SECONDS = 2.0
VIEWS = {
    "services": "frontends, and what happens to their packets by where these come from",
    "endpoints": "endpoints, and the frontends that choose among them",
    "affinity": "clients that session affinity remembers now",
    "connections": "connections through frontends that conntrack holds now; in ebpf mode also those that the programs "
    "track, and whether they go past the node's stack",
    "drops": "packets that were refused, dropped or not served, by reason; in iptables mode by frontend, too, since "
    "its rules were last written",
    "connect-time": "ebpf mode: for which Pods, control groups and network namespaces connect time is off, and why",
    "counters": "connections of each frontend now; in iptables mode also those opened and refused since its rules were "
    "last written; in ebpf mode connections, packets and bytes of each Service port",
    "decisions": "ebpf mode: how often each hook's program left a packet for which reason, and which way packets of "
    "pods took; pings to Services that were answered",
}


_SHORT = {
    **{name.removesuffix("s"): name for name in VIEWS if name.endswith("s")},
    **dict.fromkeys(("svc",), "services"),
    **dict.fromkeys(("ep", "endpointslices"), "endpoints"),
}
"""Names of views as kubectl has them, and in the singular."""


class Shown(NamedTuple):
    """What a view found. empty: what to say if that is nothing. services: names of all Service ports that are loaded,
    None for a view that is not of Services."""

    records: list[Record]
    columns: Table
    empty: str
    services: Callable[[], set[str]] | None = None


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "show",
        help="what the kernel holds now",
        description="What the kernel holds now in this network namespace: " + "; ".join(
            f"{name}: {text}" for name, text in VIEWS.items()
        ),
    )  # fmt: skip
    parser.add_argument(
        "what", choices=tuple(VIEWS), metavar="WHAT", type=lambda text: _SHORT.get(text, text), help=" | ".join(VIEWS)
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="only this Service, [NAMESPACE/]NAME[:PORT], as --service"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-n", "--namespace", metavar="NAMESPACE", help="only Services of this namespace")
    where.add_argument("-A", "--all-namespaces", action="store_true", help="Services of all namespaces (the default)")
    add_service_option(parser)
    parser.add_argument(
        "--sort-by", metavar="COLUMN", help="sort by a column, or any key of -o json; numbers: highest first"
    )
    parser.add_argument(
        "-w",
        "--watch",
        nargs="?",
        type=_seconds,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"print it again every so often (default: {WATCH_SECONDS:.0f} seconds) until interrupted",
    )
    add_output_option(parser, of_many=True)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of seconds above 0")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Print the view, once or until interrupted."""
    while True:
        try:
            shown = _connect_time(args) if args.what == "connect-time" else _view(args)
        except NotCounted as error:
            print_not_counted(error, args.output)
        else:
            _print(shown._replace(records=_chosen(args, shown)), args)
        if args.watch is None:
            return 0
        sys.stdout.flush()
        time.sleep(args.watch)


def _view(args: argparse.Namespace) -> Shown:
    from pathlib import Path

    from ctl import views
    from ctl.loaded import plane_of, why_default
    from ctl.store import state, ways

    saved = state.load(Path(args.state_dir))
    plane = plane_of(args.mode, saved)
    read = views.Reading(plane)
    view: Callable[..., views.View] = getattr(views, args.what)
    if args.what == "connections":
        view = partial(view, routes=ways.load(Path(args.state_dir)))
    records, columns = view(read)
    if args.what in ("services", "endpoints") and saved is not None and _forwards(saved, plane.name):
        records, columns = views.with_forwarding(records, columns, saved.plan())
    whose = f" of namespace {args.namespace}" if args.namespace else f" of {args.name}" if args.name else ""
    empty = f"the {plane.name} rules of this network namespace hold no {args.what}{whose}"
    default = why_default(args.mode, args.state_dir)
    if args.what == "drops":
        empty = f"nothing was refused since the {plane.name} mode counts it"
    elif args.what == "decisions":
        return Shown(records, columns, f"{default}the {plane.name} mode has no programs that count decisions")
    if args.what == "drops" and (args.service or args.name or args.namespace) and plane.frontend_counts() is None:
        raise NotCounted(f"the {plane.name} mode counts what it refuses by reason, not by Service: show drops alone")
    return Shown(records, columns, default + empty, lambda: {row.service for row in read.table.values()})


def _forwards(saved: "Saved", mode: str) -> bool:
    """True if the saved plan is this mode's, which can do more than SNAT towards other nodes."""
    from dataplane.planes.options import PlaneOptions
    from dataplane.planes.registry import mode_of

    return saved.mode == mode and not mode_of(mode).why_only_snat(saved.options or PlaneOptions())


def _connect_time(args: argparse.Namespace) -> Shown:
    from pathlib import Path

    from ctl.connect_off import COLUMNS, records, why_nobody

    found, folder = list(records(Path(args.state_dir))), Path(args.state_dir)
    return Shown(found, Table(COLUMNS, (), ("why",)), "" if found else why_nobody(folder))


def _chosen(args: argparse.Namespace, shown: Shown) -> list[Record]:
    """The records that were asked for, in the order asked for. Raises HotplaneError, UsageError."""
    from dataplane.planes.decisions import matches

    records, asked = shown.records, args.service
    if args.service and args.name:
        raise UsageError(
            f"show {args.what}: {args.name} and --service {args.service} both name a Service; leave one out"
        )
    if args.service or args.name or args.namespace:
        if shown.services is None:
            raise UsageError(f"show {args.what}: is not of Services; name none, and leave --service and -n out")
        if args.service or args.name:
            names = {str(record.get("service", "")) for record in records} | shown.services()
            asked = args.service or named(args.name, names, args.namespace)
            require_service(asked, names)
    if asked:
        records = [record for record in records if matches(str(record.get("service", "")), asked)]
    if args.namespace:
        records = [r for r in records if str(r.get("service", "")).startswith(f"{args.namespace}/")]
    return _sorted(records, args.sort_by) if args.sort_by else records


def _sorted(records: list[Record], by: str) -> list[Record]:
    """Records by one of their keys, which may be written as the table's heading. Raises UsageError."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    key = next((key for key in keys if by.lower() in (key.lower(), heading(key).lower())), None)
    if key is None and records:
        raise UsageError(f"--sort-by {by}: there is no such column; choose of {', '.join(keys)}")
    numbers = [r for r in records if isinstance(r.get(key or ""), int | float)]
    others = [r for r in records if not isinstance(r.get(key or ""), int | float)]
    numbers.sort(key=lambda record: -float(str(record[key or ""])))
    others.sort(key=lambda record: str(record.get(key or "") or ""))
    return [*numbers, *others]


def _print(shown: Shown, args: argparse.Namespace) -> None:
    if args.watch is not None and args.output in ("json", "yaml"):
        print_reading(f"show {args.what}", shown.records, args.output)
        return
    if args.watch is not None and args.output in ("table", "wide"):
        clear_screen()
        notify(time.strftime("%H:%M:%S"))
    print_records(shown.records, args.output, shown.columns, empty=shown.empty)
