"""`hotplane doctor`: what this kernel can and cannot do for each mode, and what to install."""

import argparse
import os
from pathlib import Path
from typing import Any

from ctl.output import Table, add_output_option, print_records

COLUMNS = Table(("area", "check", "status", "detail", "advice"), (), ("detail", "advice"))


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this kernel can and cannot do, and what to install",
        description="Try everything that hotplane uses, in throwaway network namespaces. Nothing is changed. "
        "Exit 0 if the nftables mode can run.",
    )
    add_output_option(parser, of_many=True)


def run(args: argparse.Namespace) -> int:
    """Print one record a check; 0 if the nftables mode can run, else 1."""
    from ctl.plane_options import plane_options
    from ctl.probes.forwarding import probe_forwarding
    from ctl.probes.kube_proxy import probe_kube_proxy
    from ctl.probes.off import probe_off
    from ctl.probes.system import probe_system
    from ctl.probes.ways import probe_routes
    from dataplane.planes.finding import Status
    from dataplane.planes.registry import DEFAULT_MODE, modes

    options = plane_options(args)
    findings = [*probe_system()]
    if os.geteuid() == 0:
        findings += probe_kube_proxy(Path(args.state_dir))
        for mode in sorted(modes(), key=lambda mode: mode.name != DEFAULT_MODE):
            state_dir = Path(args.state_dir)
            findings += [*mode.findings(options), *probe_off(mode, state_dir), *probe_routes(mode, state_dir)]
            findings += probe_forwarding(mode, state_dir)
    records = [
        {"area": f.area, "check": f.check, "status": f.status.value, "detail": f.detail, "advice": f.advice}
        for f in findings
    ]
    print_records(records, args.output, COLUMNS)
    needed = [f for f in findings if f.area == DEFAULT_MODE or f.check == "root"]
    return int(any(f.status is Status.MISSING for f in needed))
