"""`hotplane cleanup`: remove every trace from this network namespace."""

import argparse
import sys
from typing import Any

from ctl.output import Table, add_output_option, print_records

_COLUMNS = Table(
    ("cleaned", "state"), texts={"state": lambda existed: "forgotten" if existed else "nothing was applied here"}
)


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    from ctl.store.lock import add_takeover_option

    parser = subparsers.add_parser(
        "cleanup",
        help="remove every trace from this network namespace",
        description="Remove the rules of every mode from this network namespace and forget what was applied there. "
        "The iptables mode's chains have kube-proxy's names: those of a kube-proxy that runs here go too.",
    )
    parser.add_argument(
        "--stale",
        action="store_true",
        help="instead, remove what network namespaces that are gone left on this machine: pinned programs and maps, "
        "programs on control groups, files in the state directory",
    )
    add_takeover_option(parser)
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """Remove everything; fine when there is nothing."""
    if args.stale:
        return _stale(args)
    from ctl.store.lock import hold
    from dataplane.planes.registry import MODES

    with hold(args.command, takeover=args.takeover):
        announced = _announced(args.state_dir)
        existed = _clean_up(args.state_dir)
    if announced:
        print(f"hotplane: {announced}", file=sys.stderr)
    print_records([{"cleaned": list(MODES), "state": existed}], args.output, _COLUMNS)
    return 0


def _announced(state_dir: str) -> str:
    """Return what to do about other nodes that may still forward to this one, "" if none does."""
    from pathlib import Path

    from ctl.store import state
    from dataplane.model.forwarding import NODE_ANNOTATION

    try:
        saved = state.load(Path(state_dir))
    except state.StateError:  # it will be removed all the same
        return ""
    if saved is None or not saved.tunnel_peers:
        return ""
    return (
        f"other nodes may still forward to this one: kubectl annotate node {saved.node.name} {NODE_ANNOTATION}- "
        "unless hotplane will run here again"
    )


def _clean_up(state_dir: str) -> bool:
    """Remove the rules of all modes and the state; whether there was any."""
    from pathlib import Path

    from ctl.store import state, unfinished_loads
    from dataplane.kernel.nft.trace import remove_stale
    from dataplane.planes.base import PlaneError
    from dataplane.planes.mode import Making
    from dataplane.planes.options import LOOKING
    from dataplane.planes.registry import modes

    failed = []
    for mode in reversed([*modes()]):  # first what stands on others
        try:
            mode.make(Making(LOOKING)).cleanup()
        except PlaneError as error:  # the others go nevertheless
            failed.append(str(error))
    if failed:
        raise PlaneError("; ".join(failed))
    remove_stale()
    unfinished_loads.clear(Path(state_dir))
    return state.forget(Path(state_dir))


def _stale(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ctl.store.stale import sweep

    print_records(sweep(Path(args.state_dir)), args.output, ("kind", "name"), empty="nothing is stale")
    return 0
