"""`hotplane completion`: a script that completes command lines in a shell."""

import argparse
from typing import Any

SHELLS = ("bash", "zsh", "fish")


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script that completes command lines in bash, zsh or fish",
        description="Print a script for a shell, made of the same parsers that read the command line. Nothing runs "
        "when a line is completed.",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" | ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from ctl.command_table import COMMANDS
    from ctl.parser import build_parser

    print(shtab.complete(build_parser(COMMANDS), args.shell))
    return 0
