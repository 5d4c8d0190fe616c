"""The schemas of what `-o json` prints: as they are in the package and on the page, for every command; and outputs."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ctl.command_table import COMMANDS
from ctl.commands import bench, demo
from ctl.commands.show import VIEWS as SHOWN
from ctl.output import API_VERSION, NotCounted, print_line, print_not_counted, print_reading
from ctl.parser import build_parser
from ctl.schema import document
from ctl.schema.views import VIEWS, View
from dataplane.lab.scenarios.compare import Row
from dataplane.lab.scenarios.showcase import SCENARIOS, Result
from tests.json_views import check_output, check_view, view_of
from tests.unit.bench_runs import made_up

ROOT = Path(__file__).resolve().parents[2]
NAMES = {view.name for view in VIEWS}
AGAIN = "python -m ctl.schema makes it again"


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_the_package_has_the_schema_of_each_view(view: View) -> None:
    assert (document.FOLDER / f"{view.name}.json").read_text() == document.text(view), AGAIN


def test_the_page_and_no_schema_is_left_over() -> None:
    assert (ROOT / "docs/json.md").read_text() == document.page(), AGAIN
    assert {path.stem for path in document.FOLDER.glob("*.json")} == NAMES


def with_json(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every command and action that takes `-o json`."""
    for action in parser._actions:
        if action.dest == "output" and action.choices and "json" in action.choices:
            yield words
        if isinstance(action, argparse._SubParsersAction):
            for name, of_action in action.choices.items():
                yield from with_json(of_action, (*words, name))


def test_every_command_that_prints_json_has_a_view() -> None:
    found = {words for words in with_json(build_parser(COMMANDS), ()) if words != ("show",)}
    found |= {("show", what) for what in SHOWN}
    assert {view_of(words) for words in found} <= NAMES
    assert {view.name for view in VIEWS} - {view_of(words) for words in found} == {
        "show-watch", "monitor-reasons", "cleanup-stale", "bench-list",  # options of theirs
    }  # fmt: skip


@pytest.mark.parametrize("words", [("version",), ("bench", "--list"), ("doctor",)], ids=" ".join)
def test_outputs_that_need_no_node(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ctl.main", *words, "-o", "json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert check_output(words, done.stdout)


def test_a_run_of_the_benchmark_and_two_compared(capsys: pytest.CaptureFixture[str]) -> None:
    bench._print(made_up(rounds=3), "json", every_row=False)
    check_view("bench", json.loads(capsys.readouterr().out))
    run = str(ROOT / "docs/bench/results.json")
    for words in (("bench", "compare", run, run), ("bench", "history", str(ROOT / "docs/bench"))):
        done = subprocess.run(
            [sys.executable, "-m", "ctl.main", *words, "-o", "json"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert check_output(words, done.stdout)


def test_a_demo(capsys: pytest.CaptureFixture[str]) -> None:
    seen = {"ebpf": {scenario.name: Result(True, "4 x pod1-1") for scenario in SCENARIOS}}
    row = Row("ebpf", 1000, 0.5, 9000.0, 10000.0, 0.9, 80.0, 200.0, 70.0, 180.0)
    demo._print("json", ("ebpf",), seen, [row])
    check_view("demo", json.loads(capsys.readouterr().out))


def test_an_object_of_a_stream_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_reading("top", [{"service": "default/web", "what": "two\nlines"}], "json")
    print_line({"a": 1}, "json")
    first, second, end = capsys.readouterr().out.split("\n")
    assert (json.loads(first)["view"], json.loads(second), end) == ("top", {"apiVersion": API_VERSION, "a": 1}, "")


@pytest.mark.parametrize("view", [view.name for view in VIEWS if view.may_not_count])
def test_what_is_not_counted_is_no_empty_list(view: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_not_counted(NotCounted("the toy mode counts nothing"), "json")
    shown = json.loads(capsys.readouterr().out)
    check_view(view, shown)
    assert (shown["counted"], shown["why"]) == (False, "the toy mode counts nothing")


def test_a_field_that_nobody_was_told_of_is_a_fault() -> None:
    record = {"apiVersion": API_VERSION, "cleaned": ["ebpf"], "state": True}
    check_view("cleanup", [record])
    for wrong in (record | {"more": 1}, record | {"state": "yes"}, {"cleaned": [], "state": True}):
        with pytest.raises(AssertionError, match="cleanup"):
            check_view("cleanup", [wrong])
    assert msgspec.json.decode(document.text(VIEWS[0]))["$id"] == "urn:hotplane:v1:explain"
