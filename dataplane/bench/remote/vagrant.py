"""The benchmark between the machines of the Vagrant lab, into its one report: `vagrant/lab bench` calls this.

Beside report.md and report.json it leaves bench.json, which `hotplane bench report` and `compare` read.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import msgspec
from msgspec.structs import replace

from dataplane.bench.figures.analyse import analyse, as_records
from dataplane.bench.figures.bars import LEAST_ROUNDS
from dataplane.bench.figures.results import Journal, Results, journal_path, write
from dataplane.bench.modes import MODES
from dataplane.bench.pace import duration
from dataplane.bench.profiles import Settings
from dataplane.bench.remote.between import BETWEEN, EXTENTS, Between, settings
from dataplane.bench.remote.site import Site
from dataplane.bench.report.markdown import place_records, table
from dataplane.bench.report.summary import places
from dataplane.errors import HotplaneError
from dataplane.lab.vagrant import report
from dataplane.lab.vagrant.machines import Machines
from dataplane.lab.vagrant.run import facts
from dataplane.lab.vagrant.settings import Settings as LabSettings
from dataplane.lab.vagrant.settings import settings as lab_settings
from dataplane.model.net import Family

EMULATED = "SOFTWARE EMULATION: these processors are emulated, so every figure and every ratio is the emulator's own."
SHARED = "The machines share one host's processors, and the network between them is that host's virtual switch."
_ABOUT = """A pod of node 1 connects to clusterIPs, the outside client to a node port of node 1; all lead to one pod of
node 2, and `direct` goes to that pod's own address on the same way, with no rules anywhere. Clients use the last
Service. Every round loads each mode on all nodes anew, in shuffled order."""
_READING = """Medians over rounds; spread: distance of their quartiles; against direct: median of the rounds' ratios,
with its 95 % confidence interval; noise floor: the smallest difference that the line finds, by direct measured twice
and by how much rounds disagree. What wins where (bold: the best mode, and those not told from it):
"""
_COLUMNS = (
    "scenario", "services", "mode", "median", "unit", "spread", "rounds", "against direct", "noise floor",
    "p50 µs", "p99 µs", "note",
)  # fmt: skip


def page(results: Results) -> str:
    """The benchmark's part of the report, in Markdown."""
    analysis, settings = analyse(results), results.settings
    found = places(analysis)
    modes = [mode for mode in MODES if any(mode in place.figures for place in found)]
    records = [{name: record[name] for name in _COLUMNS} for record in as_records(analysis)]
    parts = [
        "## Data planes between the machines\n",
        f"Made by `{results.command}` in {duration(results.seconds)} minutes. {_ABOUT} Pods' routing is "
        f"{settings.routing}, the family IPv{settings.family.value}.\n",
        *(f"> {text}\n" for text in (*_few_rounds(settings), *analysis.warnings)),
        table(records),
        _READING,
        table(place_records(found, modes)),
    ]
    return "\n".join(parts)


def _few_rounds(settings: Settings) -> list[str]:
    if settings.rounds >= LEAST_ROUNDS:
        return []
    return [f"FEW ROUNDS: {settings.rounds} of at least {LEAST_ROUNDS}; intervals, and who wins, mean nothing yet."]


def run(site: Site, wanted: Settings, directory: Path, command: str, emulated: bool) -> Results:
    """Measure; the results are in `directory` too, cell by cell while it lasts. Raises LabError."""
    machine, started = site.facts(), time.monotonic()
    notes = [EMULATED] if emulated else []
    machine = replace(machine, notes=(*notes, SHARED, *filter(None, [site.tool.note])))
    results = Results(machine, replace(wanted, load_tool=site.tool.kind), command)
    path = directory / "bench.json"
    with Journal(journal_path(path), results, append=False) as journal:
        Between(site, results, journal, lambda text: print(text, flush=True)).run()
    results.seconds, results.complete = round(time.monotonic() - started, 1), True
    write(path, results)
    journal_path(path).unlink()
    return results


def bench(args: argparse.Namespace, machines: Machines, found: LabSettings) -> int:
    """The whole command on machines that are up. Returns its exit status: 1 when something has no figures."""
    base = EXTENTS[args.profile]
    family = Family.IPV6 if args.family == "ipv6" else Family.IPV4
    base = replace(base, family=family, rounds=args.rounds or base.rounds, seed=args.seed)
    wanted = settings(base, found.spec, args.modes, args.services)
    whole = report.earlier(args.report, facts(machines, found))
    with Site(machines, family, found.slowness) as site:
        results = run(site, wanted, args.report, _command(args), found.driver == "qemu")
    whole.benchmark = report.BenchRun(page(results), msgspec.Raw(msgspec.json.encode(results)))
    report.write(whole, args.report)
    failed = [cell for cell in results.cells if cell.error]
    print(f"bench: {len(results.cells)} measurements, {len(failed)} without figures; {args.report}/report.md")
    return 1 if failed else 0


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _command(args: argparse.Namespace) -> str:
    """Return the command that repeats the run in the same lab."""
    given = {"modes": ",".join(args.modes), "services": ",".join(map(str, args.services)), "rounds": args.rounds or ""}
    given |= {"seed": args.seed}
    command = [f"vagrant/lab bench --profile {args.profile} --family {args.family}"]
    return " ".join([*command, *(f"--{name} {value}" for name, value in given.items() if value)])


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="vagrant/lab bench", description="Data planes compared between the machines.")
    parser.add_argument("--ssh-config", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, default=Path("vagrant-report"), metavar="DIR")
    parser.add_argument("--profile", choices=EXTENTS, default="standard", help="how much is measured")
    parser.add_argument("--modes", type=_names, default=[], metavar="A,B", help=", ".join(BETWEEN))
    parser.add_argument("--services", type=_numbers, default=[], metavar="N,N")
    parser.add_argument("--rounds", type=int, default=0, metavar="N")
    parser.add_argument("--family", choices=("ipv4", "ipv6"), default="ipv4")
    parser.add_argument("--seed", type=int, default=1, help="of the order in which modes take turns")
    return parser


def main(argv: list[str]) -> int:
    """Command line: 0 done, 1 failed, or something has no figures."""
    args = arguments().parse_args(argv)
    try:
        found = lab_settings(os.environ)
        with Machines(found.spec, args.ssh_config) as machines:
            return bench(args, machines, found)
    except (HotplaneError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
