"""Every command line that the documentation shows exists: hotplane's are parsed, the scripts are there."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ctl.command_table import COMMANDS
from ctl.parser import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("docs/deploy/*.service")]
)
UNFINISHED = ("…", "...", "<")
"""Marks of a line that leaves something out."""


class Line(NamedTuple):
    """A command line as shown, and where: page and line number."""

    where: str
    words: tuple[str, ...]


def _candidates(text: str) -> Iterator[tuple[int, str]]:
    """Lines of code blocks (indented or fenced), of units' Exec settings, and inline code."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield number, line
        elif match := re.match(r"#?\s*Exec\w+=\+?(.*)", line):
            yield number, match[1]
        else:
            yield from ((number, code) for code in re.findall(r"`([^`]+)`", line))


def _commands(page: Path) -> Iterator[Line]:
    for number, text in _candidates(page.read_text(encoding="utf-8")):
        if any(mark in text for mark in UNFINISHED):
            continue
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # a drawing or a sentence with an apostrophe, not a command line
            continue
        while words and re.fullmatch(r"[A-Z_]+=\S*|timeout|sudo|\d+|\|", words[0]):
            words.pop(0)
        for at, word in enumerate(words):
            if (Path(word).name == "hotplane" and at + 1 < len(words)) or (at == 0 and _is_script(word)):
                yield Line(f"{page.relative_to(ROOT)}:{number}", tuple(words[at:]))


def _is_script(word: str) -> bool:
    return bool(re.fullmatch(r"(tests|vagrant)/[a-z0-9/-]+", word))


LINES = [line for page in PAGES for line in _commands(page)]
OURS = [line for line in LINES if Path(line.words[0]).name == "hotplane" and line.words[1] != "-t"]


@pytest.mark.parametrize("line", OURS, ids=lambda line: line.where)
def test_every_hotplane_command_line_parses(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.words[1 : line.words.index("|")] if "|" in line.words else line.words[1:]
    if len(words) == 1:  # a command may be named without what it needs
        assert words[0] in COMMANDS, line.where
        return
    try:
        command = parse(words).command
    except SystemExit:
        pytest.fail(f"{line.where}: {shlex.join(line.words)}: {capsys.readouterr().err}")
    assert command in words


@pytest.mark.parametrize("line", [line for line in LINES if _is_script(line.words[0])], ids=lambda line: line.where)
def test_every_script_is_there_and_can_be_run(line: Line) -> None:
    path = ROOT / line.words[0]
    assert path.exists(), line.where
    assert path.is_dir() or path.suffix or os.access(path, os.X_OK), f"{line.where}: {path} is not executable"


def test_the_main_commands_are_shown_at_all() -> None:
    assert len(OURS) > 25
    shown = {word for line in OURS for word in line.words[1:]}
    assert {"demo", "apply", "run", "explain", "show", "check", "cleanup", "lab", "bench", "doctor"} <= shown
