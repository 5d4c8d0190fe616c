"""`hotplane bench cluster`: the benchmark between pods of a real cluster, through kubectl."""

import argparse
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctl.output import notify, print_object, print_records
from dataplane.errors import UsageError

if TYPE_CHECKING:
    from dataplane.bench.cluster.settings import SiteOptions
    from dataplane.bench.figures.results import Results
    from dataplane.bench.profiles import Settings

RESULTS = Path("hotplane-bench-cluster.json")
_COLUMNS = (
    "scenario", "services", "mode", "median", "unit", "spread", "rounds", "against direct", "noise floor",
    "p50 µs", "p99 µs", "note",
)  # fmt: skip
_READING = """Medians over rounds; spread: distance of their quartiles; against direct: median of the rounds' ratios to
a connection straight to the pod, with its 95 % confidence interval; noise floor: the smallest difference that the line
finds."""


def names(text: str) -> tuple[str, ...]:
    """An option's NAME[,...]."""
    return tuple(name for name in text.split(",") if name)


def numbers(text: str) -> tuple[int, ...]:
    """An option's N[,...], with k for thousands: 1,1k,30k. Raises ValueError."""
    return tuple(int(number.replace("k", "000")) for number in names(text))


def register(actions: Any) -> None:
    """Add the action's parser."""
    parser = actions.add_parser(
        "cluster",
        help="measure between pods of a real cluster, whatever Service proxy runs there",
        description="Makes a namespace with four pods and Services in front of one of them, measures between the pods "
        "straight, through a clusterIP, through a node port and with the nodes' own network, and removes it again. "
        "Needs kubectl. Not for clusters that serve others at the same time: docs/bench-cluster.md says what it does "
        "to one.",
    )
    _add_cluster(parser)
    _add_extent(parser)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the cluster").add_argument
    add("--kubeconfig", type=Path, default=None, metavar="FILE", help="as kubectl takes it (default: kubectl's own)")
    add("--context", default="", metavar="NAME", help="of the kubeconfig (default: its current one)")
    add("--image", required=True, metavar="REF", help="of the pods; python3 is all that it must hold")
    add("--image-pull-policy", default="IfNotPresent", choices=("IfNotPresent", "Always", "Never"))
    add("--namespace", default="hotplane-bench", metavar="NAME", help="made and removed (default: hotplane-bench)")
    add("--keep", action="store_true", help="leave the namespace with its pods and Services")
    add("--client-node", default="", metavar="NAME", help="default: a node that is Ready and schedulable")
    add("--server-node", default="", metavar="NAME", help="default: another one, if there is one")
    add("--port", type=int, default=29310, metavar="N", help="the server's, TCP and UDP (default: 29310)")
    add("--timeout", type=float, default=120.0, metavar="S", help="for pods, Services, removal each (default: 120)")


def _add_extent(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is measured").add_argument
    add("--scenario", default=(), type=names, metavar="NAME[,...]", help="only these")
    add("--modes", default=(), type=names, metavar="WAY[,...]", help="only these ways, and direct")
    add("--services", default=(), type=numbers, metavar="N[,...]", help="how many there are, e.g. 1,1k (default: 1)")
    add("--family", default="", choices=("ipv4", "ipv6"), help="default: the first of the cluster's pods")
    add("--rounds", default=9, type=int, metavar="N", help="default: 9, and one to warm up")
    add("--seconds", default=1.0, type=float, metavar="S", help="of one measurement (default: 1)")
    add("--seed", default=1, type=int, metavar="N", help="of the order (default: 1)")
    add("--python-load", action="store_true", help="the load generator in Python, even where the compiled one fits")
    add("--results", default=RESULTS, type=Path, metavar="FILE", help=f"default: {RESULTS}")
    add("--overwrite", action="store_true", help="although FILE or its journal exists")
    add(
        "-o", "--output", default="table", choices=("table", "json", "yaml"), metavar="FORMAT",
        help="table | json | yaml (default: table)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure, write the results file, print the figures. Raises HotplaneError."""
    from dataplane.bench.cluster.settings import settings
    from dataplane.bench.figures.results import journal_path

    path = args.results
    for present in (path, journal_path(path)):
        if present.exists() and not args.overwrite:
            raise UsageError(f"{present} exists: give another --results FILE, or --overwrite it")
    wanted = settings(args.modes, args.scenario, args.services, args.rounds, args.seconds, args.seed)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that the namespace goes then too
    results = _measured(args, wanted)
    _print(results, args.output)
    failed = sum(bool(cell.error) for cell in results.cells)
    notify(f"{len(results.cells)} measurements, {failed} without figures -> {path}")
    notify(f"Next: hotplane bench report {path} draws them as a page; hotplane bench compare {path} OTHER.json")
    return 1 if failed == len(results.cells) else 0


def _measured(args: argparse.Namespace, wanted: "Settings") -> "Results":
    """The whole run. Nothing but results is left of it, unless the namespace is to be kept."""
    from dataplane.bench.cluster.run import Runner
    from dataplane.bench.cluster.site import Site
    from dataplane.bench.figures.results import Journal, Results, journal_path, write

    started, path = time.monotonic(), args.results
    with Site(_site_options(args), wanted.modes, notify) as site:
        wanted = site.settled(wanted)
        results = Results(site.machine(), wanted, _command(args), skipped=list(site.skipped))
        with Journal(journal_path(path), results, append=False) as journal:
            try:
                Runner(site, results, journal, _progress()).run()
            except BaseException:
                if results.cells:
                    notify(f"{len(results.cells)} measurements are kept: hotplane bench report {journal_path(path)}")
                else:
                    journal_path(path).unlink()
                raise
        results.seconds, results.complete = time.monotonic() - started, True
        write(path, results)  # before the namespace goes, which may fail
        journal_path(path).unlink()
    return results


def _site_options(args: argparse.Namespace) -> "SiteOptions":
    from dataplane.bench.cluster.settings import SiteOptions

    if not 1024 <= args.port <= 65535:
        raise UsageError(f"--port {args.port}: from 1024 to 65535, since the pods are nobody's")
    if args.timeout <= 0:
        raise UsageError(f"--timeout {args.timeout:g}: seconds above 0")
    return SiteOptions(
        image=args.image, kubeconfig=args.kubeconfig, context=args.context, namespace=args.namespace,
        client_node=args.client_node, server_node=args.server_node, pull_policy=args.image_pull_policy,
        port=args.port, timeout=args.timeout, family=args.family, python=args.python_load, keep=args.keep,
    )  # fmt: skip


def _command(args: argparse.Namespace) -> str:
    """Return the command line that repeats this run, without the name of the cluster."""
    command = ["hotplane", "bench", "cluster", "--image", args.image]
    for flag, value in (("--scenario", args.scenario), ("--modes", args.modes), ("--services", args.services)):
        command += [flag, ",".join(map(str, value))] if value else []
    nodes = (("--client-node", args.client_node), ("--server-node", args.server_node))
    for flag, text in (("--family", args.family), *nodes):
        command += [flag, text] if text else []
    command += ["--rounds", str(args.rounds), "--seconds", f"{args.seconds:g}"]
    return shlex.join([*command, *(["--python-load"] if args.python_load else []), "--seed", str(args.seed)])


def _progress() -> Callable[[int, int, float, str], None]:
    """A line every ten seconds."""
    from dataplane.bench.pace import duration

    last = 0.0

    def show(done: int, total: int, remaining: float, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= 10.0:
            last = time.monotonic()
            notify(f"{done}/{total}, about {duration(remaining)} left: {what}")

    return show


def _print(results: "Results", output: str) -> None:
    from dataplane.bench.figures.analyse import analyse, as_records

    analysis = analyse(results)
    if output != "table":
        print_object({"rows": analysis.rows, "warnings": analysis.warnings}, output)
        return
    records = [{name: record[name] for name in _COLUMNS} for record in as_records(analysis)]
    if records:
        print_records(records, "table", _COLUMNS)
        print(_READING)
    for text in analysis.warnings:
        print(f"- {text}")
