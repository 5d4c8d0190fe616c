"""Figures over runs: in their order, against direct, from whatever results files a directory holds."""

from pathlib import Path

import msgspec
import pytest

from ctl.main import main
from dataplane.bench.figures.history import as_records, column_names, runs, series
from dataplane.bench.figures.results import ResultsError, write
from tests.unit.bench_runs import made_up


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, the newest with a slower nftables; a file that is none."""
    found = tmp_path_factory.mktemp("runs")
    (found / "below").mkdir()
    for name, day, commit, speed in (("c", 3, "ccc", 0.45), ("below/a", 1, "aaa", 0.9), ("b", 2, "aaa", 0.9)):
        run = made_up(services=(1, 10000), noise=0.005, seed=day, speed={"nftables": speed})
        versions = {"commit": commit}
        run.machine = msgspec.structs.replace(run.machine, started=f"2024-05-0{day}T00:00:00", versions=versions)
        write(found / f"{name}.json", run)
    (found / "other.json").write_text("[]")
    return found


def test_runs_are_in_the_order_in_which_they_were_measured(directory: Path) -> None:
    found, said = runs(directory)
    assert column_names(found) == ["aaa", "aaa#2", "ccc"]
    assert len(said) == 1
    assert "other.json" in said[0]


def test_packets_are_told_against_direct_and_a_change_is_named(directory: Path) -> None:
    found, _ = runs(directory)
    records = as_records(found, series(found))
    [line] = [r for r in records if (r["scenario"], r["services"], r["mode"]) == ("connect", 10000, "nftables")]
    assert line["unit"] == "x direct"
    assert [float(str(line[name])) for name in ("aaa", "aaa#2", "ccc")] == pytest.approx([0.9, 0.9, 0.45], abs=0.02)
    assert line["change"] in ("-49%", "-50%", "-51%")
    [same] = [r for r in records if (r["scenario"], r["services"], r["mode"]) == ("connect", 10000, "ebpf-connect")]
    assert same["change"] == ""
    assert {r["unit"] for r in records if r["scenario"] == "coldstart"} <= {"ms", "s"}
    assert not any(r["mode"] == "direct" for r in records)


def test_the_command_prints_a_table_and_draws_a_page(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "history", str(directory), "--page", str(tmp_path / "h.html")]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split() == ["SCENARIO", "SERVICES", "MODE", "UNIT", "AAA", "AAA#2", "CCC", "CHANGE"]
    assert "left out: " in said.err
    page = (tmp_path / "h.html").read_text()
    assert "connect, 10,000 Services" in page
    assert "nftables, ccc: 0.4" in page


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="nowhere: there is no such directory"):
        runs(tmp_path / "nowhere")


def test_a_directory_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="name the directory"):
        runs(tmp_path)


@pytest.mark.parametrize("name", ["k8s-netperf", "perf-dash", "benchstat", "openmetrics", "hdr"])
def test_exports_are_printed(directory: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "export", str(directory / "b.json"), "--format", name]) == 0
    assert len(capsys.readouterr().out) > 100


def test_compare_ends_in_sentences(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", str(directory / "b.json"), str(directory / "c.json")]) == 0
    said = capsys.readouterr().out
    assert "UNIT" in said
    assert " P " in said
    told = [line for line in said.splitlines() if line.startswith("- nftables, ")]
    assert told
    assert all(", worse (p = " in line for line in told)
