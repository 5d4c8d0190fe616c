"""`hotplane bench imbalance`: how external traffic is balanced and whom the pods see, under each policy and mode."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ctl.bench_cluster import names
from ctl.lab.planes import maker
from ctl.output import Record, Table, add_output_option, notify, print_records
from dataplane.errors import UsageError
from dataplane.planes.registry import MODES

if TYPE_CHECKING:
    from dataplane.lab.lab import Lab
    from dataplane.lab.scenarios.imbalance import Row

LAB_NAME = "imbalance"
_INSTANCES = f"lab-{LAB_NAME}-"
COLUMNS = Table(
    ("mode", "setup", "requests", "most", "clientSeen", "seenAs", "connections", "p50", "p99", "wireBytes", "cannot"),
    ("p50", "wireBytes", "p99", "seenAs"),
    ("seenAs", "cannot"),
    {
        "requests": lambda each: "/".join(map(str, each)) if isinstance(each, list) else "cannot",
        "most": lambda most: "" if most is None else f"{most:.2f}",
        "clientSeen": lambda share: "" if share is None else f"{share:.0%}",
        **dict.fromkeys(("p50", "p99"), lambda micros: "" if micros is None else f"{micros:.0f} µs"),
    },
)


def register(actions: Any) -> None:
    """Add the action's parser."""
    parser = actions.add_parser(
        "imbalance",
        help="requests of each pod and the clients that they see, under Cluster, Local, weights, tunnel and dsr",
        description="Three pods on two nodes behind an outer balancer that gives both nodes the same share. For each "
        "mode and setup: requests of each pod, the most of one over the mean, the share of requests whose pod saw the "
        "client's own address, new connections a second, and bytes on the nodes' uplinks for each. Needs root.",
    )
    parser.add_argument(
        "--modes", dest="measured", type=names, default=MODES, metavar="MODE[,...]", help="only these (default: all)"
    )
    add_output_option(parser, of_many=True)


def run(args: argparse.Namespace) -> int:
    """Measure and print. Raises HotplaneError."""
    from dataplane.lab.lab import need_root

    if unknown := [name for name in args.measured if name not in MODES]:
        raise UsageError(f"--modes: there is no mode {unknown[0]!r}; choose of {', '.join(MODES)}")
    need_root()
    rows: list[Row] = []
    with _lab() as lab:
        for mode in args.measured:
            notify(f"{mode}: measuring")
            rows += _measured(lab, mode)
    print_records([record(row) for row in rows], args.output, COLUMNS)
    if args.output == "table":
        print("\nmost: the busiest pod's requests over the mean, 1.00 being fair. Compare figures of one run alone.")
    return 0


@contextmanager
def _lab() -> "Iterator[Lab]":
    """The lab, with servers in its pods; whatever one that was killed left is removed first."""
    from msgspec.structs import replace

    from dataplane.lab.lab import Lab
    from dataplane.lab.scenarios import imbalance
    from dataplane.lab.traffic.connects import start_servers
    from dataplane.planes.registry import modes

    for each in modes():
        each.remove_instances(_INSTANCES)
    with Lab.up(replace(imbalance.SPEC, name=LAB_NAME)) as lab:
        lab.start_echo(lab.pods, [imbalance.TARGET_PORT])
        start_servers(lab, lab.pods, imbalance.SERVER_PORT)
        yield lab


def _measured(lab: "Lab", mode: str) -> "list[Row]":
    from dataplane.lab.proxy import LabProxy
    from dataplane.lab.scenarios import imbalance
    from dataplane.policy.forwarding import LbMode

    with LabProxy(lab, mode, maker(mode, _INSTANCES), lb_mode=LbMode.SNAT) as proxy:
        return imbalance.run(lab, proxy)


def record(row: "Row") -> Record:
    """A row as it is printed."""
    if row.cannot:
        return {"mode": row.mode, "setup": row.setup, "cannot": row.cannot}
    return {
        "mode": row.mode,
        "setup": row.setup,
        "requests": list(row.requests.values()),
        "most": round(row.most, 3),
        "clientSeen": round(row.kept, 4),
        "seenAs": list(row.seen),
        "connections": round(row.rate),
        "p50": round(row.p50, 1),
        "p99": round(row.p99, 1),
        "wireBytes": round(row.wire),
        "cannot": None,
    }
