"""Results on disk: the journal, the finished file, and what is said about files that are none."""

import resource
from pathlib import Path

import msgspec
import pytest

from dataplane.bench.figures.analyse import analyse
from dataplane.bench.figures.results import Journal, Results, ResultsError, journal_path, read, read_journal, write
from tests.unit.bench_runs import made_up


def test_a_journal_says_what_the_run_had_so_far(tmp_path: Path) -> None:
    run = made_up(services=(1,), rounds=2)
    path = tmp_path / "r.json"
    with Journal(journal_path(path), run, append=False) as journal:
        for cell in run.cells[:5]:
            journal.add(cell)
    found = read(path)
    assert found.settings == run.settings
    assert found.machine == run.machine
    assert found.cells == run.cells[:5]
    with Journal(journal_path(path), found, append=True) as journal:
        journal.add(run.cells[5])
    assert read_journal(journal_path(path)).cells == run.cells[:6]


def cut_off(directory: Path) -> tuple[Results, Path]:
    """A run, and a journal of its first three cells whose last line a crash cut off."""
    run, path = made_up(services=(1,), rounds=2), directory / "r.json.journal"
    with Journal(path, run, append=False) as journal:
        for cell in run.cells[:3]:
            journal.add(cell)
    path.write_bytes(path.read_bytes()[:-20])
    return run, path


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    run, path = cut_off(tmp_path)
    assert read_journal(path).cells == run.cells[:2]


def test_a_run_goes_on_behind_a_line_that_was_cut_off(tmp_path: Path) -> None:
    run, path = cut_off(tmp_path)
    with Journal(path, run, append=True) as journal:
        for cell in run.cells[3:5]:
            journal.add(cell)
    assert read_journal(path).cells == [*run.cells[:2], *run.cells[3:5]]


def test_what_cannot_be_written_is_named_and_leaves_nothing_half(tmp_path: Path) -> None:
    run = made_up(services=(1,), rounds=2)
    with pytest.raises(ResultsError, match=r"^/dev/full: cannot be written: No space left on device; see --results$"):
        Journal(Path("/dev/full"), run, append=False)
    with pytest.raises(ResultsError, match=r"^/nowhere/r.json: cannot be written: No such file or directory"):
        write(Path("/nowhere/r.json"), run)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(ResultsError, match="cannot be written: File too large"):
            write(tmp_path / "r.json", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]


def test_a_finished_file_comes_back_as_it_was(tmp_path: Path) -> None:
    run = made_up(services=(1,), rounds=2)
    write(tmp_path / "r.json", run)
    assert read(tmp_path / "r.json") == run
    assert msgspec.json.decode((tmp_path / "r.json").read_bytes())["settings"]["profile"] == "full"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_file_of_version_1_has_todays_names(tmp_path: Path) -> None:
    run = made_up(services=(1,), rounds=2)
    write(tmp_path / "r.json", run)
    text = (tmp_path / "r.json").read_text().replace('"TCP_RR"', '"rr"').replace("TCP_STREAM-4", "bulk4")
    text = text.replace("TCP_STREAM", "bulk1").replace("UDP_STREAM", "udp")
    (tmp_path / "old.json").write_text(text.replace('"version":2', '"version":1'))
    found = read(tmp_path / "old.json")
    assert (found.version, found.settings, found.cells) == (1, run.settings, run.cells)
    assert any("64 bytes" in text for text in analyse(found).warnings)


def test_files_that_are_no_results_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(ResultsError, match=r"r\.json: No such file"):
        read(path)
    path.write_text('{"cells": 5}')
    with pytest.raises(ResultsError, match="no results of hotplane bench"):
        read(path)
    journal_path(path).write_text("nonsense\n")
    with pytest.raises(ResultsError, match="start the benchmark anew"):
        read_journal(journal_path(path))
