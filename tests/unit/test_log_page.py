"""docs/logs.md lists every message of the daemon's log with its level and keys, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ctl.daemon.log import LEVELS

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"\| `(?P<message>[^|]+)` \| (?P<level>\w+) \| (?P<keys>[^|]*) \| (?P<meaning>[^|]*) \|")


def calls() -> Iterator[tuple[str, str, frozenset[str]]]:
    """Every call of the log: message, level, keys."""
    for path in sorted((ROOT / "ctl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            mine = name in ("log", "_log") or (name == "self" and path.name == "log.py")
            if mine and node.func.attr in LEVELS:
                (message,) = node.args
                assert isinstance(message, ast.Constant), f"{path}: a message that is not always the same"
                assert isinstance(message.value, str)
                assert all(keyword.arg for keyword in node.keywords), f"{path}: keys that are not always the same"
                yield message.value, node.func.attr, frozenset(keyword.arg or "" for keyword in node.keywords)


def test_the_page_lists_every_message_with_its_level_and_keys() -> None:
    page = [match.groupdict() for match in ROW.finditer((ROOT / "docs/logs.md").read_text())]
    listed = {
        (row["message"], row["level"], frozenset(re.findall(r"`(\w+)`", keys)))
        for row in page
        for keys in row["keys"].split(" or ")
    }
    assert listed == {*calls()}


def test_what_is_told_as_broken_is_told_as_whole_again() -> None:
    page = [match.groupdict() for match in ROW.finditer((ROOT / "docs/logs.md").read_text())]
    over = [name for row in page for name in re.findall(r"Over with `([^`]+)`", row["meaning"])]
    assert len(over) >= 15
    assert {*over} <= {row["message"] for row in page if row["level"] == "info"}
