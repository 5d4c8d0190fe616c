"""Exports are what other tools read: their formats, units and figures."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dataplane.bench.figures import export
from dataplane.bench.figures.results import Results
from tests.unit.bench_runs import made_up


def parsed(text: str) -> Iterator[Any]:
    families: Iterator[Any] = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return families


@pytest.fixture(scope="module")
def run() -> Results:
    return made_up(services=(10000,), rounds=3, noise=0.001)


def test_k8s_netperfs_csv(run: Results) -> None:
    lines = list(csv.DictReader(io.StringIO(export.k8s_netperf(run))))
    head = ["Driver", "Profile", "Same node", "Host Network", "Service", "Duration", "Parallelism", "# of Samples",
            "Message Size", "Avg Throughput", "Throughput Metric", "99%tile Observed Latency",
            "Latency Metric"]  # fmt: skip
    assert list(lines[0]) == head
    [crr] = [line for line in lines if (line["Driver"], line["Profile"]) == ("nftables", "TCP_CRR/10000/last")]
    assert float(crr["Avg Throughput"]) == pytest.approx(18000, rel=0.01)
    assert float(crr["99%tile Observed Latency"]) == pytest.approx(80 / 0.9, rel=0.01)
    wanted = ("true", "true", "OP/s", "3", "1", "usec")
    names = ("Service", "Same node", "Throughput Metric", "# of Samples", "Message Size", "Latency Metric")
    assert tuple(crr[name] for name in names) == wanted
    [stream] = [line for line in lines if (line["Driver"], line["Profile"]) == ("direct", "TCP_STREAM-4/10000/last")]
    assert (stream["Service"], stream["Throughput Metric"], stream["Parallelism"]) == ("false", "Mb/s", "4")
    assert {line["Same node"] for line in lines if line["Profile"].startswith("north-remote")} == {"false"}


def test_perf_dashs_json(run: Results) -> None:
    found = msgspec.json.decode(export.perf_dash(run))
    assert found["version"] == "v1"
    labels = {"Scenario": "connect", "Mode": "nftables", "Services": "10000", "Position": "last"}
    labels |= {"Sli": "first packet latency", "Metric": "latency"}
    [item] = [item for item in found["dataItems"] if item["labels"] == labels]
    assert (item["unit"], sorted(item["data"])) == ("ms", ["Perc50", "Perc90", "Perc99"])
    assert item["data"]["Perc99"] == pytest.approx(0.08 / 0.9, rel=0.01)
    by_labels: dict[str, set[tuple[str, ...]]] = {}
    for item in found["dataItems"]:  # perf-dash wants the same buckets wherever the labels' names and the unit are
        key = msgspec.json.encode(item["labels"]).decode()
        by_labels.setdefault(key, set()).add((item["unit"], *sorted(item["data"])))
    assert all(len(kinds) == 1 for kinds in by_labels.values())


def test_benchstats_text(run: Results) -> None:
    lines = export.benchstat(run).splitlines()
    assert {"goos: linux", "cpu: Test CPU"} <= set(lines)
    rounds = [line for line in lines if line.startswith("BenchmarkTCP_CRR/mode=nftables/services=10000/")]
    assert len(rounds) == 3
    for line in (line for line in lines if line.startswith("Benchmark")):
        assert re.fullmatch(r"Benchmark[^a-z\s]\S*-2\t\d+(\t[-+.e\d]+ \S+)+", line), line
    assert float(rounds[0].split("\t")[2].split()[0]) == pytest.approx(1e9 / 18000, rel=0.01)
    assert any("MB/s" in line for line in lines if line.startswith("BenchmarkTCP_STREAM/"))


def test_openmetrics(run: Results) -> None:
    families = {family.name: family for family in parsed(export.openmetrics(run))}
    latency = families["hotplane_bench_latency_seconds"]
    wanted = {"scenario": "connect", "mode": "nftables", "services": "10000", "position": "last", "quantile": "0.99"}
    [sample] = [s for s in latency.samples if wanted.items() <= s.labels.items()]
    assert sample.value == pytest.approx(80e-6 / 0.9, rel=0.01)
    floors = families["hotplane_bench_noise_floor_ratio"].samples
    assert floors
    assert all(0 < s.value < 1 for s in floors)
    assert {"hotplane_bench_operations_per_second", "hotplane_bench_memory_bytes"} <= set(families)


@pytest.mark.parametrize("name", export.FORMATS)
def test_a_run_without_anything_is_exported_too(name: str) -> None:
    run = made_up(services=(1,))
    run.cells.clear()
    assert export.FORMATS[name](run)
