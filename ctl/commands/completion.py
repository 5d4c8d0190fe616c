"""`hotplane completion`: a script that completes command lines in a shell."""

import argparse
import re
from collections.abc import Iterator
from typing import Any

SHELLS = ("bash", "zsh", "fish")
_FILE = re.compile(r"\b(FILE|PATH)\b|\.(JSON|TAR)")
_DIRECTORY = re.compile(r"\bDIR\b")
"""What the names of values of options have in them whose values are files, or directories alone."""


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

    parser = build_parser(COMMANDS)
    for action in _actions(parser):
        words = action.metavar.upper() if isinstance(action.metavar, str) else ""
        if _FILE.search(words):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif _DIRECTORY.search(words):
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every option and argument of a parser and of those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _actions(each)
