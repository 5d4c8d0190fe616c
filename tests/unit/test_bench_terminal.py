"""What a run prints: at the end what wins where, every row only when asked for; how to go on after Ctrl-C."""

from collections.abc import Callable

import pytest

from ctl.commands import bench
from ctl.parser import parse
from dataplane.bench.figures.analyse import analyse
from dataplane.bench.report.summary import places
from tests.unit.bench_runs import made_up


@pytest.fixture(scope="module")
def shown() -> Callable[..., None]:
    run = made_up(rounds=5, speed={"nftables": 0.5})
    return lambda **options: bench._print(run, **options)


def test_a_run_ends_with_the_table_of_what_wins_where(
    shown: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    shown(output="table", every_row=False)
    lines = capsys.readouterr().out.splitlines()
    found = places(analyse(made_up(rounds=5, speed={"nftables": 0.5})))
    head, table = lines[-len(found) - 1], lines[-len(found) :]
    assert head.split()[:5] == ["SCENARIO", "SERVICES", "WINS", "UNIT", "ROUNDS"]
    assert "NOISE FLOOR" in head
    assert [line.split()[:2] for line in table] == [[p.key.scenario, str(p.key.services)] for p in found]
    [best] = [line for line in table if line.split()[:2] == ["connect", "10000"]]
    assert best.split()[2] == "ebpf-connect"
    assert best.count("*") == 1
    assert len(lines) < len(found) + 15
    assert any(line.startswith("What wins where.") for line in lines)


def test_every_row_comes_before_it_when_asked_for(
    shown: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    shown(output="table", every_row=False)
    short = capsys.readouterr().out.splitlines()
    shown(output="table", every_row=True)
    long = capsys.readouterr().out.splitlines()
    assert long[-len(short) :] == short
    assert len(long) - len(short) > 150


def test_a_run_of_which_nothing_can_win_prints_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    run = made_up(rounds=5, speed={"nftables": 0.5})
    run.cells = [cell for cell in run.cells if cell.key.mode in ("direct", "direct-again", "nftables")]
    assert not places(analyse(run))
    bench._print(run, "table", every_row=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["SCENARIO", "SERVICES", "POSITION", "MODE"]
    assert any(line.split()[:2] == ["connect", "10000"] and "nftables" in line for line in lines)


@pytest.mark.parametrize("given", [[], ["--all"], ["--python-load"], ["-o", "json"], ["--all", "-o", "wide"]])
def test_the_command_that_goes_on_has_the_options_that_count(given: list[str]) -> None:
    words = bench._resuming(parse(["bench", "--results", "a b.json", "--profile", "full", *given]))
    again = parse(words[1:])
    assert again.resume
    assert str(again.results) == "a b.json"
    wanted = parse(["bench", *given])
    assert (again.all, again.python_load, again.output) == (wanted.all, wanted.python_load, wanted.output)
