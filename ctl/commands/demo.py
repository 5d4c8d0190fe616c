"""`hotplane demo`: build the lab, prove the example Services with real traffic in every mode, compare the modes."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctl.lab.planes import maker
from ctl.output import add_output_option, print_object, print_records
from dataplane.planes.registry import MODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dataplane.lab.scenarios.compare import Row
    from dataplane.lab.scenarios.showcase import Result

LAB_NAME = "demo"
DEFAULT_SERVICES = 3000
_INSTANCES = "lab-demo-"


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "demo",
        help="build the lab, prove the example Services with real traffic, print the table",
        description="Build a cluster of network namespaces (3 nodes, 9 pods, an outside client), load the example "
        "Services in each mode in turn, prove every one with real connections, and compare connection times. "
        "Everything is removed afterwards. Needs root.",
    )
    parser.add_argument(
        "--services",
        type=int,
        default=DEFAULT_SERVICES,
        metavar="N",
        help=f"Services loaded for the comparison (default: {DEFAULT_SERVICES}; 0: no comparison)",
    )
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """0 when every scenario shows what it must in every mode, else 1."""
    from msgspec.structs import replace

    from ctl.store.stale import lab_cookies, sweep_lab
    from dataplane.errors import UsageError
    from dataplane.lab.lab import Lab, need_root
    from dataplane.lab.proxy import LabProxy
    from dataplane.lab.scenarios import showcase
    from dataplane.lab.scenarios.compare import compare
    from dataplane.planes.options import PlaneOptions
    from dataplane.planes.registry import mode_of
    from dataplane.planes.registry import modes as every_mode
    from dataplane.policy.forwarding import LbMode

    modes = (args.mode,) if args.mode else MODES
    if args.services < 0:
        raise UsageError(f"--services {args.services}: give a number of Services, or 0 for no comparison")
    need_root()
    results: dict[str, dict[str, Result]] = {}
    for each in every_mode():
        each.remove_instances(_INSTANCES)  # of a demo that was killed
    before = lab_cookies(LAB_NAME)
    with Lab.up(replace(showcase.SPEC, name=LAB_NAME)) as lab:
        sweep_lab(before, Path(args.state_dir))
        _say(f"lab: {len(lab.nodes)} nodes, {len(lab.pods)} pods and an outside client, each a network namespace")
        lab.start_echo(lab.pods, [8080])
        for mode in modes:
            _say(f"{mode}: {len(showcase.SCENARIOS)} scenarios with real traffic")
            keeps = mode_of(mode).keeps(PlaneOptions())
            with LabProxy(lab, mode, maker(mode, _INSTANCES), keeps, LbMode.SNAT) as proxy:
                results[mode] = {scenario.name: result for scenario, result in showcase.run_all(lab, proxy)}
        rows = []
        if args.services:
            _say(f"comparison: new connections through the last of {args.services} Services, modes side by side")
            rows = compare(lab, {mode: maker(mode, _INSTANCES) for mode in modes}, args.services)
    _print(args.output, modes, results, rows)
    return 0 if all(result.passed for by_name in results.values() for result in by_name.values()) else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(output: str, modes: tuple[str, ...], results: "dict[str, dict[str, Result]]", rows: "list[Row]") -> None:
    from dataplane.lab.scenarios.showcase import SCENARIOS

    if output != "table":
        value: dict[str, object] = {
            "scenarios": [
                {
                    "name": scenario.name,
                    "proves": scenario.proves,
                    "modes": {
                        m: {"passed": r.passed, "able": r.able, "seen": r.seen}
                        for m, r in _by_mode(results, scenario.name)
                    },
                }
                for scenario in SCENARIOS
            ],
            "comparison": rows,
        }
        print_object(value, output)
        return
    table = [
        {"scenario": scenario.name, "what it proves": scenario.proves}
        | {mode: result.word for mode, result in _by_mode(results, scenario.name)}
        | {f"seen in {modes[-1]} mode": results[modes[-1]][scenario.name].seen}
        for scenario in SCENARIOS
    ]
    print_records(table, "table", ("scenario", "what it proves", *modes, f"seen in {modes[-1]} mode"))
    for mode, by_name in results.items():
        for name, result in by_name.items():
            if not result.passed:
                print(f"FAILED in {mode} mode: {name}: saw {result.seen}")
    print(f"\n{_summary([result for by_name in results.values() for result in by_name.values()])}\n")
    if rows:
        print(f"New connections through the last of {rows[0].services} Services, against the same pod's own address:\n")
        records = [_record(row) | _times(row, rows) for row in rows]
        print_records(records, "table", tuple(records[0]))
        print("\nratio: median over rounds in shuffled order; on a busy machine only that can be compared.")
        print("In iptables mode what goes straight to the pod walks the rules of all Services, too.")
        print(
            "Next: `hotplane bench` compares the modes at length, `hotplane lab up` leaves you a cluster to play with."
        )


def _summary(results: "Sequence[Result]") -> str:
    """How many runs showed what they must, and how many of these that their mode lacks what the scenario is about."""
    text = f"{sum(result.passed for result in results)} of {len(results)} scenario runs passed"
    lacking = sum(result.passed and not result.able for result in results)
    more = f"; {lacking} of them, marked cannot, show what clients and pods see in a mode without it" if lacking else ""
    return text + more


def _by_mode(results: "dict[str, dict[str, Result]]", name: str) -> "list[tuple[str, Result]]":
    return [(mode, by_name[name]) for mode, by_name in results.items()]


def _times(row: "Row", rows: "list[Row]") -> dict[str, object]:
    """How many times iptables' connections a mode makes, where iptables was measured, too."""
    base = next((each.rate for each in rows if each.mode == "iptables"), 0.0)
    return {"times iptables'": f"{row.rate / base:.2f}"} if base else {}


def _record(row: "Row") -> dict[str, object]:
    return {
        "mode": row.mode,
        "Services": row.services,
        "load": f"{row.load_seconds:.2f} s",
        "connections/s": f"{row.rate:,.0f}",
        "straight to the pod": f"{row.direct_rate:,.0f}",
        "ratio": f"{row.ratio:.2f}",
        "p50": f"{row.p50:.0f} µs (direct {row.direct_p50:.0f})",
        "p99": f"{row.p99:.0f} µs (direct {row.direct_p99:.0f})",
    }
