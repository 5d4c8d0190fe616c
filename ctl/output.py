"""Printing for people and for scripts: `-o table|json|yaml`.

A command makes plain records (dicts of text, numbers, booleans, lists); this prints them. A table is aligned text with
one record a line and nothing cut, on a terminal as in a pipe, so that what a person saw is what grep and awk get.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

import msgspec

FORMATS = ("table", "json", "yaml")
Record = Mapping[str, object]


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add `-o/--output` to a command that prints."""
    parser.add_argument(
        "-o",
        "--output",
        choices=FORMATS,
        default="table",
        metavar="FORMAT",
        help="table | json | yaml (default: table)",
    )


def notify(text: str) -> None:
    """Say on standard error how a long command is getting on, at once."""
    print(text, file=sys.stderr, flush=True)


def to_json(value: object) -> str:
    """A value as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def to_yaml(value: object) -> str:
    """A value as YAML, keys in their own order."""
    import yaml  # costs 20 ms, and most calls print no YAML

    return yaml.safe_dump(msgspec.to_builtins(value), sort_keys=False, allow_unicode=True)


def cell(value: object) -> str:
    """One value as table text."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case list() | tuple() | set() | frozenset():
            return ", ".join(cell(item) for item in value)
        case dict():
            return ", ".join(f"{key}={cell(item)}" for key, item in value.items())
    return str(value)


def _print_table(columns: Sequence[str], lines: Sequence[Sequence[str]], out: TextIO) -> None:
    head = [column.upper() for column in columns]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(columns))]
    for line in (head, *lines):
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip(), file=out)


def print_records(
    records: Sequence[Record], output: str, columns: Sequence[str], *, empty: str = "", out: TextIO | None = None
) -> None:
    """Print records in the chosen format.

    columns: the table's columns, keys of the records; JSON and YAML print every key. empty: what a table says on
    stderr when there is nothing to show (stdout then stays empty).
    """
    out = out or sys.stdout
    if output == "json":
        print(to_json(records), file=out)
    elif output == "yaml":
        out.write(to_yaml(list(records)))
    elif not records:
        print(empty or "nothing to show", file=sys.stderr)
    else:
        lines = [[cell(record.get(column)) for column in columns] for record in records]
        _print_table(columns, lines, out)
