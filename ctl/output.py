"""Printing for people and for scripts: `-o table|wide|name|json|yaml`.

A command makes plain records (dicts of text, numbers, booleans, lists); this prints them. A table is aligned text with
one record a line. On a terminal it fits the width: columns that matter less are left out, what is long is folded, and
names are never cut. In a pipe it is whole, so that grep and awk always get the same.
"""

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple, TextIO

import msgspec

from ctl.global_options import FORMATS, WHOLE_FORMATS
from dataplane.errors import HotplaneError

API_VERSION = "hotplane/v1"
"""Of what `-o json` and `-o yaml` print: each object names it (see docs/json.md)."""

Record = Mapping[str, object]
GAP = "  "
NARROWEST = 16
"""A column is not folded to fewer characters."""


class Table(NamedTuple):
    """How records become a table.

    columns: keys of the records, the first of which names one. secondary: those of them that a terminal too narrow
    does without, the least important first. folded: those that may be folded at spaces, never a name. texts: of columns
    whose values read otherwise than `cell` writes them.
    """

    columns: Sequence[str]
    secondary: Sequence[str] = ()
    folded: Sequence[str] = ()
    texts: Mapping[str, Callable[[object], str]] = MappingProxyType({})

    def text(self, column: str, record: Record) -> str:
        """A record's value in a column."""
        return self.texts.get(column, cell)(record.get(column))


class NotCounted(HotplaneError):
    """A question after something that the loaded mode does not count or report: which, and what there is instead."""


def add_output_option(parser: argparse.ArgumentParser, *, of_many: bool = False) -> None:
    """Add `-o/--output` to a command that prints. of_many: it prints a list of things that have names and may have more
    columns than a terminal."""
    more = "table (fits the terminal) | wide (all columns) | name | " if of_many else "table | "
    parser.add_argument(
        "-o",
        "--output",
        choices=FORMATS if of_many else WHOLE_FORMATS,
        default="table",
        metavar="FORMAT",
        help=f"{more}json | yaml (default: table)",
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


def versioned(record: Record) -> dict[str, object]:
    """An object as scripts get it."""
    return {"apiVersion": API_VERSION, **record}


def print_object(value: Record, output: str) -> None:
    """Print one object as JSON or YAML."""
    whole = versioned(value)
    sys.stdout.write(f"{to_json(whole)}\n" if output == "json" else to_yaml(whole))


def print_line(value: Record, output: str) -> None:
    """Print an object of a stream: a line of JSON, or a YAML document."""
    if output == "json":
        print(msgspec.json.encode(versioned(value)).decode(), flush=True)
    else:
        sys.stdout.write(f"---\n{to_yaml(versioned(value))}")
        sys.stdout.flush()


def time_text(when: datetime) -> str:
    """A time, with its zone, as text: RFC 3339 in UTC, with microseconds."""
    return when.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def print_reading(view: str, records: Sequence[Record], output: str) -> None:
    """Print one reading of a view that is read again and again, with its time: an object of a stream."""
    print_line({"time": time_text(datetime.now(UTC)), "view": view, "records": list(records)}, output)


def print_not_counted(error: NotCounted, output: str) -> None:
    """Say that nothing can be said: to scripts by an object, since an empty list would be an answer; to people on
    standard error."""
    if output in ("json", "yaml"):
        print_object({"counted": False, "why": str(error)}, output)
    else:
        notify(str(error))


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


def heading(column: str) -> str:
    """A record's key as a table's heading, in words: replyPackets is REPLY PACKETS."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).upper()


def terminal_width(out: TextIO) -> int | None:
    """Columns of the terminal behind `out`, which COLUMNS overrides; None if there is none."""
    return shutil.get_terminal_size().columns if out.isatty() else None


def clear_screen() -> None:
    """Clear the terminal behind stdout, if there is one, before a view is printed again."""
    if sys.stdout.isatty():
        print("\033[H\033[2J", end="")


def print_table(records: Sequence[Record], table: Table, out: TextIO, width: int | None) -> Sequence[str]:
    """Print a table no wider than `width` if that can be done; None prints it whole. Returns the columns left out."""
    texts = {column: [table.text(column, record) for record in records] for column in table.columns}
    needs = {column: max(len(heading(column)), *map(len, texts[column])) for column in table.columns}
    shown = list(table.columns)
    left_out: list[str] = []
    if width is not None:
        narrow = {column: min(need, _least(column, table, texts)) for column, need in needs.items()}
        for column in table.secondary:
            if _total(narrow, shown) <= width:
                break
            shown.remove(column)
            left_out.append(column)
        _fold(needs, narrow, shown, width)
    _print_line({column: heading(column) for column in shown}, needs, shown, out)
    for number in range(len(records)):
        _print_line({column: texts[column][number] for column in shown}, needs, shown, out)
    return [column for column in table.columns if column in left_out]


def _least(column: str, table: Table, texts: Mapping[str, Sequence[str]]) -> int:
    """How narrow a column may become: its longest word, if it may be folded."""
    if column not in table.folded:
        return sys.maxsize
    words = (len(word) for text in (heading(column), *texts[column]) for word in text.split())
    return max(NARROWEST, *words)


def _total(widths: Mapping[str, int], shown: Sequence[str]) -> int:
    return sum(widths[column] for column in shown) + len(GAP) * (len(shown) - 1)


def _fold(needs: dict[str, int], narrow: Mapping[str, int], shown: Sequence[str], width: int) -> None:
    """Make columns that may be folded narrower, the widest first, until a line fits or nothing more can be done."""
    while (excess := _total(needs, shown) - width) > 0:
        widest = max(shown, key=lambda column: needs[column] - narrow[column])
        room = needs[widest] - narrow[widest]
        if room <= 0:
            return
        needs[widest] -= min(room, excess)


def _print_line(line: Mapping[str, str], widths: Mapping[str, int], shown: Sequence[str], out: TextIO) -> None:
    folded = [
        textwrap.wrap(line[column], widths[column], break_long_words=False, break_on_hyphens=False)
        if len(line[column]) > widths[column]
        else [line[column]]
        for column in shown
    ]
    for number in range(max(map(len, folded))):
        parts = [lines[number] if number < len(lines) else "" for lines in folded]
        padded = (part.ljust(widths[column]) for part, column in zip(parts, shown, strict=True))
        print(GAP.join(padded).rstrip(), file=out)


def print_records(
    records: Sequence[Record],
    output: str,
    columns: Sequence[str] | Table,
    *,
    empty: str = "",
    out: TextIO | None = None,
) -> None:
    """Print records in the chosen format.

    columns: the table's columns, keys of the records; JSON and YAML print every key, and the version. empty: what a
    table says on stderr when there is nothing to show (stdout then stays empty).
    """
    out = out or sys.stdout
    table = columns if isinstance(columns, Table) else Table(columns)
    if output in ("json", "yaml"):
        whole = [versioned(record) for record in records]
        out.write(f"{to_json(whole)}\n" if output == "json" else to_yaml(whole))
    elif not records:
        print(empty or "nothing to show", file=sys.stderr)
    elif output == "name":
        for name in dict.fromkeys(cell(record.get(table.columns[0])) for record in records):
            print(name, file=out)
    else:
        left_out = print_table(records, table, out, terminal_width(out) if output == "table" else None)
        if left_out:
            notify(f"not shown, the terminal is too narrow: {', '.join(map(heading, left_out))} (-o wide shows all)")
