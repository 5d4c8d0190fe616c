"""`hotplane bench cluster` as a whole: its pods in places of a lab, real packets, Services programmed by hotplane."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.main import main
from dataplane.bench.figures.results import Results, read
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from tests.cluster_kubectl import ROOT, StandIn, end
from tests.kernel.daemon_lab import until

PATIENCE = 600.0
WAYS = {"direct", "direct-again", "host-network", "cluster-ip", "node-port"}
SCENARIOS = {"connect", "TCP_CRR", "TCP_RR", "TCP_STREAM", "UDP_RR"}


def command(path: Path, *words: str) -> list[str]:
    common = ["--image", "python:3", "--results", str(path), "--seconds", "0.05", "--timeout", "60"]
    return [sys.executable, "-m", "ctl.main", "bench", "cluster", *common, *words]


def start(cluster: StandIn, path: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(path, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cluster.env, cwd=ROOT
    )


def bench(cluster: StandIn, path: Path, *words: str) -> tuple[Results, str, str]:
    """The command to its end; what it measured, printed and said."""
    process = start(cluster, path, *words)
    out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    return read(path), out, said


@pytest.fixture(scope="module")
def standing() -> Iterator[StandIn]:
    spec = LabSpec(name=f"k{os.getpid()}", nodes=2, pods=2, ipv6=True)
    with Lab.up(spec), StandIn(spec) as cluster:
        yield cluster


@pytest.fixture
def cluster(standing: StandIn) -> Iterator[StandIn]:
    standing.behave()
    yield standing
    assert standing.left() == []


def without_figures(results: Results) -> list[str]:
    return [f"{cell.key}: {cell.error}" for cell in results.cells if cell.error]


def test_every_way_and_scenario_gives_figures_that_other_commands_read(cluster: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    results, out, _ = bench(cluster, path, "--services", "3,5", "--rounds", "1")
    assert without_figures(results) == []
    assert {cell.key.mode for cell in results.cells} == WAYS
    assert {cell.key.scenario for cell in results.cells} == SCENARIOS
    assert len(results.cells) == 2 * 5 * 5
    assert {cell.key.services for cell in results.cells} == {3, 5}
    assert all(cell.figures["rate"] > 0 for cell in results.cells)
    assert results.complete
    assert (results.settings.load_tool, results.settings.profile) == ("c", "cluster")
    assert results.machine.versions["kubernetes"] == "v1.34.1"
    assert "cluster-ip" in out
    for words in (
        ["report", str(path), "-o", str(tmp_path / "report")],
        ["compare", str(path), str(path)],
        ["history", str(tmp_path)],
        *(["export", str(path), "--format", name] for name in ("k8s-netperf", "perf-dash", "benchstat", "openmetrics")),
    ):
        assert main(["bench", *words]) == 0


def test_a_way_that_nobody_programs_is_left_out(cluster: StandIn, tmp_path: Path) -> None:
    cluster.behave(unanswered=True)
    results, _, said = bench(cluster, tmp_path / "r.json", "--rounds", "1", "--scenario", "connect", "--timeout", "8")
    assert {cell.key.mode for cell in results.cells} == WAYS - {"node-port"}
    assert "left out: node-port: no answer from 172.18.0.1:30100 in 8 s" in said
    assert any("node-port" in text for text in results.skipped)


def test_one_node_ipv6_and_load_in_python(cluster: StandIn, tmp_path: Path) -> None:
    cluster.behave(architecture="riscv64")
    words = ("--family", "ipv6", "--client-node", "node1", "--server-node", "node1", "--rounds", "1")
    results, _, _ = bench(cluster, tmp_path / "r.json", *words)
    assert without_figures(results) == []
    assert (results.settings.load_tool, results.settings.family) == ("python", 6)
    notes = " ".join(results.machine.notes)
    assert "no network was between them" in notes
    assert "node node1 is riscv64" in notes


def test_without_the_nodes_network_the_rest_is_measured(cluster: StandIn, tmp_path: Path) -> None:
    refusal = 'pods "host-client" is forbidden: violates PodSecurity "baseline:latest": host namespaces'
    cluster.behave(refuse={"Pod host-client": refusal})
    results, _, said = bench(cluster, tmp_path / "r.json", "--rounds", "1", "--scenario", "TCP_RR")
    assert without_figures(results) == []
    assert {cell.key.mode for cell in results.cells} == WAYS - {"host-network"}
    assert 'left out: host-network: pod host-client: Error from server (Forbidden): pods "host-client"' in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_but_its_figures(
    cluster: StandIn, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(cluster, tmp_path / "r.json", "--rounds", "1000", "--scenario", "connect")
    journal = tmp_path / "r.json.journal"
    until(lambda: process.poll() is not None or (journal.exists() and journal.read_text().count("\n") > 5), "cells")
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert len(read(journal).cells) > 4
    assert "Traceback" not in said


def test_a_client_that_dies_costs_a_measurement_and_no_more(cluster: StandIn, tmp_path: Path) -> None:
    path, words = tmp_path / "r.json", ("--rounds", "24", "--scenario", "connect", "--modes", "cluster-ip")
    process = start(cluster, path, *words)
    journal = tmp_path / "r.json.journal"
    until(lambda: process.poll() is not None or (journal.exists() and journal.read_text().count("\n") > 5), "cells")
    end("client/load\0run")
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    results = read(path)
    assert 1 <= len(without_figures(results)) <= 2
    assert len(results.cells) == 3 * 24


def test_results_are_kept_though_the_namespace_does_not_go(cluster: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    cluster.behave(stuck=True)
    process = start(cluster, path, "--rounds", "1", "--scenario", "TCP_RR", "--modes", "cluster-ip", "--timeout", "8")
    _, said = process.communicate(timeout=PATIENCE)
    cluster.behave()
    cluster.delete_namespace("hotplane-bench")
    assert process.returncode == 1
    assert "namespace hotplane-bench is not gone after 8 s: Some content" in said
    assert without_figures(read(path)) == []
