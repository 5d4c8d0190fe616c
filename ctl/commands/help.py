"""`hotplane help`: the page of a command or of one of its actions; with --man, the manual page of all."""

import argparse
from typing import Any

from ctl.command_table import overview
from dataplane.errors import UsageError


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser("help", help="the page of a command: help COMMAND [ACTION]")
    parser.add_argument("topic", nargs="*", metavar="COMMAND [ACTION]", help="without any: the overview")


def run(args: argparse.Namespace) -> int:
    """Print the page. Raises UsageError for what is no command."""
    from ctl.parser import parse

    if not args.topic:
        print(overview())
        return 0
    if any(word.startswith("-") for word in args.topic):
        raise UsageError(f"help {' '.join(args.topic)}: name a command, and no options")
    try:
        parse([*args.topic, "--help"])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0
