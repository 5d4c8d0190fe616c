"""`hotplane bench` end to end, as small as can be: every mode and scenario really runs, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dataplane.bench.figures.results import Journal, Results, journal_path, read
from dataplane.bench.profiles import settings
from dataplane.bench.rig import remove_abandoned
from dataplane.bench.run import all_keys
from dataplane.kernel.namespaces import netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec

PATIENCE = 900.0


def bench(*arguments: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """The command to its end; nothing of it is left. Others may be under way, and what they leave goes later."""
    words = [sys.executable, "-m", "ctl.main", "bench", *arguments]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == status, said
    name = f"bench-{process.pid}"
    assert name not in Lab.names()
    assert not [each for each in netns.names() if each.startswith(f"hp-{name}-")]
    assert not [*Path(tempfile.gettempdir()).glob(f"hotplane-peer-{name}-*")]
    return subprocess.CompletedProcess(words, process.returncode, out, said)


def without_figures(results: Results) -> list[str]:
    return [f"{cell.key}: {cell.error}" for cell in results.cells if cell.error]


def test_every_mode_and_scenario_gives_figures(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = ("--profile", "tiny", "--services", "20", "--results", str(path), "-o", "json")
    printed: dict[str, Any] = json.loads(bench(*words).stdout)
    results = read(path)
    assert without_figures(results) == []
    assert {cell.key for cell in results.cells} == set(all_keys(results.settings))
    profile = all_keys(settings("tiny"))  # of more sizes
    assert {key[:2] for key in all_keys(results.settings)} == {key[:2] for key in profile}
    assert {"direct", "conntrack", "iptables", "nftables", "ebpf-connect"} <= set(results.settings.modes)
    for cell in results.cells:
        assert all(value >= 0 for value in cell.figures.values()), cell
        if "rate" in cell.figures:
            assert cell.figures["rate"] > 0, cell
    assert results.complete
    assert results.machine.kernel
    assert not journal_path(path).exists()
    assert {row["key"][0] for row in printed["rows"]} == set(results.settings.modes)
    assert printed["bars"]
    files = bench("report", str(path), "-o", str(tmp_path / "report")).stdout.split()
    assert all(Path(file).stat().st_size > 1000 for file in files)
    assert "figures in common: 0 better, 0 worse" in bench("compare", str(path), str(path)).stdout


SMALL = ("--profile", "tiny", "--modes", "nftables", "--scenario", "connect,change", "--results")


def test_a_run_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    bench(*SMALL, str(path))
    whole = read(path)
    half = len(whole.cells) // 2
    with Journal(journal_path(path), whole, append=False) as journal:
        for cell in whole.cells[:half]:
            journal.add(cell)
    path.unlink()
    assert "exists: give another --results" in bench(*SMALL, str(path), status=2).stderr
    bench("--resume", "--results", str(path))
    resumed = read(path)
    assert resumed.cells[:half] == whole.cells[:half]
    assert {cell.key for cell in resumed.cells} == {cell.key for cell in whole.cells}
    assert len(resumed.cells) == len(whole.cells)
    assert msgspec.structs.replace(resumed.settings, seed=1) == whole.settings
    assert "no unfinished run" in bench("--resume", "--results", str(path), status=2).stderr


def test_a_run_that_is_interrupted_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = [sys.executable, "-m", "ctl.main", "bench", *SMALL, str(path), "--rounds", "500"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + PATIENCE
    while not (journal_path(path).exists() and len(journal_path(path).read_bytes().splitlines()) > 5):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert f"Go on with: hotplane bench --resume --results {path}" in said
    assert len(read(path).cells) >= 5
    assert f"bench-{process.pid}" not in Lab.names()


def test_the_other_family_over_a_tunnel_with_other_numbers_of_endpoints(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    names = [name for name in settings("tiny").scenarios if not name.startswith("during-")]
    names += ["during-restart", "during-syn-flood"]
    done = bench("--profile", "tiny", "--modes", "nftables,ebpf-xdp", "--family", "ipv6", "--routing", "vxlan",
                 "--endpoints", "2", "--services", "5", "--rounds", "1", "--scenario", ",".join(names), "--results",
                 str(path))  # fmt: skip
    results = read(path)
    assert without_figures(results) == []
    scenarios = {cell.key.scenario for cell in results.cells}
    assert {"connect", "dns", "north-remote", "north-remote-udp", "change", "during-restart"} <= scenarios
    assert not {"xdp-cost", "north-remote-pps", "during-syn-flood"} & scenarios
    assert len([text for text in results.skipped if text.startswith("left out: ")]) == 3
    assert "measurements, about" in done.stderr
    assert "--endpoints 2 --family ipv6 --routing vxlan" in results.command


def test_without_a_compiler_the_load_generator_runs_in_python(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    scenarios = "connect,TCP_CRR@80,UDP_RR,dns,TCP_RR,UDP_STREAM,north-remote"
    bench("--profile", "tiny", "--modes", "nftables", "--scenario", scenarios, "--services", "5", "--rounds", "1",
          "--python-load", "--results", str(path))  # fmt: skip
    results = read(path)
    assert without_figures(results) == []
    assert results.settings.load_tool == "python"
    assert {cell.key.scenario for cell in results.cells} == {*scenarios.split(","), "TCP_CRR"}


def test_labs_of_killed_benchmarks_are_removed_and_no_others() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine, dead = f"bench-{os.getpid()}", f"bench-{ended.pid}"
    try:
        for name in (mine, dead):
            Lab.up(LabSpec(name=name, nodes=1, pods=0)).close()
        remove_abandoned()
        assert mine in Lab.names()
        assert dead not in Lab.names()
    finally:
        for name in (mine, dead):
            Lab.remove(name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--modes", "ipvs"), "there is no such mode"),
        (("--services", "0"), "numbers from 1 to 30000"),
        (("report", "nothing.json"), "nothing.json"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    results = ("--results", str(tmp_path / "r.json")) if arguments[0] != "report" else ()
    assert says in bench(*arguments, *results, status=1 if arguments[0] == "report" else 2).stderr
