"""`hotplane doctor`: what this kernel can and cannot do for each mode, and what to install."""

import argparse
import os
from pathlib import Path
from typing import Any

from ctl.output import add_output_option, print_records


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this kernel can and cannot do, and what to install",
        description="Try everything that hotplane uses, in throwaway network namespaces. Nothing is changed. "
        "Exit 0 if the nftables mode can run.",
    )
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print one record a check; 0 if the nftables mode can run, else 1."""
    from ctl.ebpf import ebpf_options
    from ctl.probes.bpf import probe_bpf
    from ctl.probes.finding import Status
    from ctl.probes.hooks import probe_hooks
    from ctl.probes.nft import probe_nft
    from ctl.probes.off import probe_off
    from ctl.probes.system import probe_system
    from ctl.probes.xtables import probe_xtables

    options = ebpf_options(args)
    findings = [*probe_system()]
    if os.geteuid() == 0:
        findings += [
            *probe_nft(),
            *probe_xtables(),
            *probe_bpf(),
            *probe_hooks(options),
            *probe_off(Path(args.state_dir)),
        ]
    records = [
        {"area": f.area, "check": f.check, "status": f.status.value, "detail": f.detail, "advice": f.advice}
        for f in findings
    ]
    print_records(records, args.output, ("area", "check", "status", "detail", "advice"))
    needed = [f for f in findings if f.area == "nftables" or f.check == "root"]
    return int(any(f.status is Status.MISSING for f in needed))
