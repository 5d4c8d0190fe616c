"""`hotplane adopt`: take a node over from kube-proxy, once, without losing a connection."""

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    from ctl.commands.run import add_parser

    add_parser(
        subparsers,
        "adopt",
        "take this node over from kube-proxy: load our rules, then remove its own",
        "Read everything once (options as for run), load our rules beside kube-proxy's, then remove kube-proxy's. "
        "Connections go on: conntrack keeps their translation. Stop kube-proxy first, or it puts its rules back; then "
        "keep hotplane run going.",
    )


def run(args: argparse.Namespace) -> int:
    """Load, remove, end."""
    from ctl.commands.run import run as run_daemon

    args.once = args.adopt = True
    return run_daemon(args)
