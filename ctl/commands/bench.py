"""`hotplane bench`: compare Service data planes side by side; report what was measured; compare two runs."""

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctl import bench_cluster, bench_imbalance, bench_peers
from ctl.bench_cluster import names, numbers
from ctl.extras import require
from ctl.output import Table, add_output_option, notify, print_object, print_records
from ctl.progress import drawn_line
from dataplane.errors import HotplaneError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dataplane.bench.figures.results import Results
    from dataplane.bench.profiles import Settings
    from dataplane.bench.run import Progress

DEFAULT_RESULTS = Path("hotplane-bench.json")
PROFILES = ("quick", "full", "tiny", "stress")
SHAPES = ("plain", "shared", "large", "affinity")
EXPORTS = ("k8s-netperf", "perf-dash", "benchstat", "openmetrics", "hdr")


class ReportError(HotplaneError):
    """The report cannot be written."""


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "bench",
        help="compare Service data planes: run, cluster, imbalance, report, compare, export, history",
        description="Without an action: measure all modes side by side in a lab of network namespaces, each mode on a "
        "node of its own, in rounds of shuffled order. Needs root. Everything is removed afterwards.",
    )
    _add_run_options(parser, defaults=True)
    bench_peers.add_options(parser, defaults=True)
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=False)
    run_parser = actions.add_parser("run", help="measure (the default)")
    _add_run_options(run_parser, defaults=False)
    bench_peers.add_options(run_parser, defaults=False)
    bench_cluster.register(actions)
    bench_imbalance.register(actions)
    report = actions.add_parser("report", help="make charts and one HTML page of a results file")
    report.add_argument("results_file", type=Path, metavar="RESULTS.json", help="a results file, or a run's journal")
    report.add_argument(
        "-o",
        "--directory",
        type=Path,
        default=Path("bench-report"),
        metavar="DIR",
        help="where (default: bench-report)",
    )
    report.add_argument(
        "--markdown", action="store_true", help="print the tables as Markdown instead, write no files of its own"
    )
    report.add_argument(
        "--into",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.md",
        help="also write the run between that page's `hotplane bench` comments (may be given again): `<!-- hotplane "
        "bench: begin -->` and `end` for the tables; `picture`, `figures` or `wins` after `bench` for a README",
    )
    compare = actions.add_parser("compare", help="tell real differences between two runs from noise")
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    compare.add_argument("--all", action="store_true", help="also what is the same or cannot be told")
    add_output_option(compare)
    export = actions.add_parser("export", help="print a run in a format that other tools read")
    export.add_argument("results_file", type=Path, metavar="RESULTS.json", help="a results file, or a run's journal")
    export.add_argument("--format", required=True, choices=EXPORTS, help="of what tool")
    history = actions.add_parser("history", help="the same figures over all runs in a directory, oldest first")
    history.add_argument("runs", type=Path, metavar="DIR", help="where results files are, folders below it included")
    history.add_argument("--page", type=Path, metavar="FILE.html", help="draw them as a page too, a line for each mode")
    add_output_option(history)
    pack = actions.add_parser(
        "pack",
        help="make one archive that runs the benchmark on a machine without network or packages",
        description="Make an archive with a small Debian, hotplane and all that the benchmark needs: `tar xf` it as "
        "root anywhere, then ./run [options of bench]; results.json is left beside it. Needs root and mmdebstrap.",
    )
    pack.add_argument("archive", type=Path, metavar="OUT.tar.xz", help="the archive to make")


def _add_run_options(parser: argparse.ArgumentParser, *, defaults: bool) -> None:
    """The options of a run: of `bench` itself with their defaults, of `bench run` only where given."""

    def add(*flags: str, default: Any, **options: Any) -> None:
        parser.add_argument(*flags, default=default if defaults else argparse.SUPPRESS, **options)

    add("--profile", default="quick", choices=PROFILES, help="how much (default: quick, about four minutes)")
    add("--scenario", default=None, type=names, metavar="NAME[,...]", help="only these (`--list` names all)")
    add("--modes", default=None, type=names, metavar="MODE[,...]", help="only these, and direct (`--list` names all)")
    add(
        "--services",
        default=None,
        type=numbers,
        metavar="N[,...]",
        help="how many, one stage each, e.g. 1,1k,30k",
    )
    add(
        "--endpoints", default=None, type=int, metavar="N", help="of each Service (default: 5; profile stress: its own)"
    )
    add(
        "--shape",
        default="plain",
        choices=SHAPES,
        help="shared: all Services lead to the same endpoints; large: load through one with 3000; affinity: all have "
        "sessionAffinity (default: plain)",
    )
    add("--family", default="ipv4", choices=("ipv4", "ipv6"), help="of everything (default: ipv4)")
    add("--routing", default="direct", choices=("direct", "vxlan"), help="between nodes (default: direct)")
    add(
        "--processors",
        default=None,
        type=numbers,
        metavar="N[,...]",
        help="also how rates grow with processors: clients, servers and packet generators on so many, e.g. 1,2,4,8",
    )
    add("--rounds", default=None, type=int, metavar="N", help="rounds of measurement instead of the profile's")
    add(
        "--iptables-max",
        default=None,
        type=int,
        metavar="N",
        help="leave iptables out above so many Services: its rules take a minute to load at 30000",
    )
    add("--seed", default=1, type=int, metavar="N", help="of the order (default: 1)")
    add("--python-load", default=False, action="store_true", help="the load generator in Python, even with a compiler")
    add("--results", default=DEFAULT_RESULTS, type=Path, metavar="FILE", help=f"default: {DEFAULT_RESULTS}")
    add("--resume", default=False, action="store_true", help="go on with the run that FILE's journal is of")
    add("--overwrite", default=False, action="store_true", help="start anew although FILE or its journal exists")
    add("--all", default=False, action="store_true", help="print every row at the end, before what wins where")
    add("--list", default=False, action="store_true", help="list modes, scenarios and profiles, measure nothing")
    add(
        "-o",
        "--output",
        default="table",
        choices=("table", "wide", "json", "yaml"),
        metavar="FORMAT",
        help="table (fits the terminal) | wide (all columns) | json | yaml (default: table)",
    )


def run(args: argparse.Namespace) -> int:
    """Do one action. Raises HotplaneError."""
    if args.action in (None, "run") and args.list:
        return _list(args.output)
    require("hotplane bench", ("numpy",))  # now, not after an hour of measuring
    match args.action:
        case "cluster":
            return bench_cluster.run(args)
        case "imbalance":
            return bench_imbalance.run(args)
        case "report":
            return _report(args)
        case "compare":
            return _compare(args)
        case "export":
            return _export(args)
        case "history":
            return _history(args)
        case "pack":
            return _pack(args)
        case _:
            return _run(args)


def _list(output: str) -> int:
    from dataplane.bench.modes import KNOWN_MODES, MODES
    from dataplane.bench.scenarios import SCENARIOS

    records = [{"kind": "mode", "name": name, "what": MODES[name].title} for name in KNOWN_MODES]
    records += bench_peers.records()
    records += [
        {"kind": "scenario", "name": s.name, "what": s.title + (f" (SLI: {s.sli})" if s.sli else "")}
        for s in SCENARIOS.values()
    ]
    print_records(records, output, ("kind", "name", "what"))
    return 0


def _settings(args: argparse.Namespace) -> "Settings":
    from dataplane.bench.objects import Form
    from dataplane.bench.processors import present, refuse_missing
    from dataplane.bench.profiles import Overrides, settings
    from dataplane.lab.spec import Routing
    from dataplane.model.net import Family

    refuse_missing(args.processors or (), len(present()))
    overrides = Overrides(
        modes=args.modes or (),
        scenarios=args.scenario or (),
        services=args.services or (),
        rounds=args.rounds,
        iptables_max=args.iptables_max,
        endpoints=args.endpoints,
        family=Family.IPV6 if args.family == "ipv6" else Family.IPV4,
        routing=Routing(args.routing),
        seed=args.seed,
        processors=args.processors or (),
        peers=bench_peers.peers_of(args),
        form=Form(args.shape),
    )
    return settings(args.profile, overrides)


def _run(args: argparse.Namespace) -> int:
    from dataplane.bench.figures.results import Journal, ResultsError, journal_path, write
    from dataplane.bench.pace import duration
    from dataplane.bench.rig import Rig, lab_name, remove_abandoned
    from dataplane.bench.run import Runner
    from dataplane.lab.lab import need_root

    path = args.results
    results, tool = _begin(args)
    need_root()  # behind what is wrong with the command line, and before anything is written
    remove_abandoned()
    notify(_plan(results))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the lab goes then too
    started = time.monotonic()
    try:
        with Journal(journal_path(path), results, append=args.resume) as journal:
            with Rig(lab_name(), results.settings, tool) as rig:
                with drawn_line() as draw:
                    Runner(rig, results, journal, _progress(draw)).run()
            results.skipped += rig.notes
    except KeyboardInterrupt:
        notify(f"Stopped; {len(results.cells)} measurements are kept, nothing else is left. {_go_on(args)}")
        raise
    results.seconds += time.monotonic() - started
    results.complete = True
    try:
        write(path, results)
    except ResultsError as error:
        raise ResultsError(f"{error}; the measurements are in {journal_path(path)}. {_go_on(args)}") from error
    journal_path(path).unlink()
    notify(f"{len(results.cells)} measurements in {duration(results.seconds)} min -> {path}")
    notify(f"Next: hotplane bench report {path} draws it as a page; hotplane bench compare {path} OTHER.json")
    _print(results, args.output, every_row=args.all)
    return 0


def _go_on(args: argparse.Namespace) -> str:
    return f"Go on with: {shlex.join(_resuming(args))}"


def _resuming(args: argparse.Namespace) -> list[str]:
    """The command line that goes on with a run that was stopped."""
    given = ["--python-load"] if args.python_load else []
    given += ["--all"] if args.all else []
    given += [] if args.output == "table" else ["-o", args.output]
    return ["hotplane", "bench", "--resume", "--results", str(args.results), *given]


def _begin(args: argparse.Namespace) -> "tuple[Results, Any]":
    """The run to do: a new one, or the one of the journal with what it has already; and its load generator."""
    import msgspec

    from dataplane.bench.figures.results import Results, journal_path, read_journal
    from dataplane.bench.load.native import load_tool, python_tool
    from dataplane.bench.machine.facts import facts
    from dataplane.bench.processors import present, refuse_missing

    path, journal = args.results, journal_path(args.results)
    tool = python_tool("the load generator in Python was asked for") if args.python_load else load_tool()
    if tool.note:
        notify(tool.note)
    if args.resume:
        if not journal.exists():
            raise UsageError(f"--resume: there is no {journal}, so no unfinished run of {path}")
        results = read_journal(journal)
        if results.settings.load_tool != tool.kind:
            raise UsageError(
                f"--resume: {journal} was measured with another load generator ({results.settings.load_tool})"
            )
        refuse_missing(results.settings.processors, len(present()))
        return results, tool
    for old in (path, journal):
        if old.exists() and not args.overwrite:
            raise UsageError(f"{old} exists: give another --results FILE, --overwrite it, or --resume its run")
    settings = msgspec.structs.replace(_settings(args), load_tool=tool.kind)
    settings, skipped = _without_missing(settings)
    for text in skipped:
        notify(text)
    results = Results(facts([tool.note] if tool.note else []), settings, _command(args), skipped=skipped)
    return results, tool


def _without_missing(settings: "Settings") -> "tuple[Settings, list[str]]":
    """The settings without what this machine, this size or these networks cannot do, and sentences about it."""
    import shutil

    import msgspec

    from dataplane.bench.load.native import watch_tool
    from dataplane.bench.scenarios import SCENARIOS, Kind
    from dataplane.lab.spec import Routing
    from dataplane.model.net import Family

    settings, skipped = bench_peers.without_impossible(settings)

    def leave_out(scenarios: set[str], why: str) -> None:
        nonlocal settings
        kept = tuple(name for name in settings.scenarios if name not in scenarios)
        if kept != settings.scenarios:
            skipped.append(f"left out: {', '.join(n for n in settings.scenarios if n not in kept)}: {why}")
            settings = msgspec.structs.replace(settings, scenarios=kept)

    if shutil.which("iperf3") is None:
        leave_out({"TCP_STREAM", "TCP_STREAM-4"}, "there is no iperf3; apt-get install iperf3")
    if watch_tool() is None:
        names = {name for name, found in SCENARIOS.items() if found.kind is Kind.EVENT or found.at_once}
        leave_out(names, "their load needs a C compiler; apt-get install gcc libc6-dev")
    if settings.family is Family.IPV6:
        leave_out({"during-syn-flood"}, "the flood is of IPv4 packets")
        leave_out({"north-remote-pps", "forward-processors"}, "the kernel's own packets are IPv4")
    if settings.routing is Routing.VXLAN:
        leave_out({"xdp-cost"}, "packets to another node leave by the tunnel, which XDP leaves to the stack")
    large = [count for count in settings.services if count > settings.iptables_max]
    if "iptables" in settings.modes and large:
        skipped.append(f"iptables is left out at {', '.join(map(str, large))} Services: see --iptables-max")
    return settings, skipped


def _plan(results: "Results") -> str:
    """Return a line with the planned measurements and their duration."""
    from dataplane.bench.pace import duration, run_seconds
    from dataplane.bench.run import all_keys

    settings, known = results.settings, {cell.key for cell in results.cells}
    left = [key for key in all_keys(settings) if key not in known]
    sizes = ", ".join(f"{count:,}" for count in settings.services)
    return (
        f"{settings.profile}: {len(settings.modes)} modes, {len(settings.scenarios)} scenarios, {sizes} Services with "
        f"{settings.endpoints} endpoints each; {len(left)} measurements, about {duration(run_seconds(settings, left))} "
        "min on two quiet processors"
    )


def _command(args: argparse.Namespace) -> str:
    """Return the command line that repeats this run."""
    command = ["hotplane", "bench", "--profile", args.profile]
    for flag, value in (
        ("--scenario", args.scenario),
        ("--modes", args.modes),
        ("--services", args.services),
        ("--processors", args.processors),
    ):
        command += [flag, ",".join(map(str, value))] if value else []
    for flag, number in (
        ("--rounds", args.rounds), ("--iptables-max", args.iptables_max), ("--endpoints", args.endpoints),
    ):  # fmt: skip
        command += [] if number is None else [flag, str(number)]
    for flag, text, usual in (
        ("--shape", args.shape, "plain"),
        ("--family", args.family, "ipv4"),
        ("--routing", args.routing, "direct"),
    ):
        command += [] if text == usual else [flag, text]
    command += bench_peers.command_of(args)
    return shlex.join([*command, *(["--python-load"] if args.python_load else []), "--seed", str(args.seed)])


def _progress(draw: "Callable[[str], None]") -> "Progress":
    """On a terminal one line that changes; otherwise a line every ten seconds."""
    from dataplane.bench.pace import duration

    started = last = time.monotonic()
    pause = 0.2 if sys.stderr.isatty() else 10.0

    def show(done: int, total: int, remaining: float, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= pause:
            last = now
            draw(f"{done}/{total}, {duration(now - started)} gone, about {duration(remaining)} left: {what}")

    return show


_ROW_COLUMNS = (
    "scenario", "services", "position", "mode", "median", "unit", "spread", "rounds", "against direct", "noise floor",
    "p50 µs", "p99 µs", "note",
)  # fmt: skip
_READING = (
    "What wins where. *: the best mode, and those that cannot be told from it. Medians (spread of the rounds); noise "
    "floor: the smallest difference that the line finds, median {}."
)


def _print(results: "Results", output: str, *, every_row: bool) -> None:
    """The figures: warnings and bars, and at the end what wins where."""
    from dataplane.bench.figures import bars, events, scaling
    from dataplane.bench.figures.analyse import analyse, as_records, floor_text
    from dataplane.bench.modes import MODES
    from dataplane.bench.report.markdown import place_records
    from dataplane.bench.report.summary import places

    analysis = analyse(results)
    judged = bars.bars(results, analysis)
    if output in ("json", "yaml"):
        print_object({"rows": analysis.rows, "bars": judged, "warnings": analysis.warnings}, output)
        return
    found = places(analysis)
    if every_row or not found:  # else a short run would end without a figure
        less = ("note", "p50 µs", "p99 µs", "position", "rounds", "spread", "noise floor")
        print_records(as_records(analysis), "wide" if every_row else output, Table(_ROW_COLUMNS, less))
    scaled = scaling.records(analysis)
    if scaled:
        print_records(scaled, "wide", tuple(scaled[0]))
        print(scaling.NOTE)
    happened = events.records(results, analysis)
    if happened and every_row:
        print_records(happened, "wide", tuple(happened[0]))
        print(events.NOTE)
    for text in (*analysis.warnings, *events.sentences(happened), *bars.sentences(judged)):
        print(f"- {text}")
    modes = [mode for mode in MODES if any(mode in place.figures for place in found)]
    if found:
        print(_READING.format(floor_text(analysis.median_floor())))
        records = place_records(found, modes, "*")
        columns = Table(tuple(records[0]), secondary=("rounds", *reversed(modes)), folded=("wins",))
        print_records(records, output, columns)


def _report(args: argparse.Namespace) -> int:
    from dataplane.bench.figures.results import read
    from dataplane.bench.report.markdown import insert, markdown

    results = read(args.results_file)
    for page in args.into:
        directory = os.path.relpath(args.directory, page.parent)
        _write(page, insert(_read(page), results, str(page), directory))
        print(page)
    if args.markdown:
        print(markdown(results), end="")
        return 0
    from dataplane.bench.report.page import write_report

    try:
        for path in write_report(results, args.directory):
            print(path)
    except OSError as error:
        raise ReportError(f"{args.directory}: {error.strerror}: choose a directory that can be written to") from error
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"--into {path}: {error.strerror}") from error
    except UnicodeError as error:
        raise ReportError(f"--into {path}: is not UTF-8 text: {error}") from error


def _write(path: Path, text: str, option: str = "--into") -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{option} {path}: {error.strerror}") from error


def _compare(args: argparse.Namespace) -> int:
    from dataplane.bench.figures.compare import compare
    from dataplane.bench.figures.results import read

    comparison = compare(read(args.before), read(args.after))
    differences = [d for d in comparison.differences if args.all or d.verdict in ("better", "worse")]
    records = [d.record() for d in differences]
    columns = (
        "mode", "scenario", "services", "position", "figure", "unit", "before", "after", "ratio", "interval", "p",
        "verdict",
    )  # fmt: skip
    if args.output != "table":
        names = ("differences", "machine", "unmatched")
        print_object({name: getattr(comparison, name) for name in names}, args.output)
        return 0
    if records:
        print_records(records, "table", columns)
    for text in comparison.sentences():
        print(f"- {text}")
    print(comparison.summary())
    return 0


def _export(args: argparse.Namespace) -> int:
    from dataplane.bench.figures.export import FORMATS
    from dataplane.bench.figures.results import read

    print(FORMATS[args.format](read(args.results_file)), end="")
    return 0


def _pack(args: argparse.Namespace) -> int:
    from dataplane.bench.pack import TOP, digest, pack

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what is half made goes then too
    size = pack(args.archive, notify)
    notify(f"{args.archive}: {size / 1e6:.0f} MB, sha256 {digest(args.archive)}")
    notify(f"Next, as root on any machine: tar xf {args.archive.name} && {TOP}/run")
    return 0


def _history(args: argparse.Namespace) -> int:
    from dataplane.bench.figures.history import as_records, runs, series
    from dataplane.bench.report.charts import over_runs, style
    from dataplane.bench.report.html import document, table

    found, said = runs(args.runs)
    for text in said:
        notify(f"left out: {text}")
    lines = series(found)
    records = as_records(found, lines)
    columns = tuple(records[0]) if records else ()
    older = [column for column in columns if column not in ("scenario", "services", "mode", "unit", "change")][:-1]
    print_records(records, args.output, Table(columns, (*older, "unit")))
    if args.page:
        charts = "".join(f"<figure>{chart}</figure>" for chart in over_runs(found, lines).values())
        title = "Service data planes over time"
        body = f'<h1>{title}</h1><div class="pictures">{charts}</div>{table(records)}'
        _write(args.page, document(title, body, style()), "--page")
        notify(str(args.page))
    return 0
