"""netperf's own words, as it said them on Debian 12 (2.7.0), become the bench's figures."""

import subprocess
from collections.abc import Callable

import pytest

from dataplane.bench import netperf
from dataplane.lab.spec import LabError

SAID = """MIGRATED TCP Connect/Request/Response TEST from 0.0.0.0 (0.0.0.0) port 0 AF_INET to 127.0.0.1 () port 1 : demo
THROUGHPUT=1915.84
ELAPSED_TIME=1.00
P50_LATENCY=40
P90_LATENCY=1822
P99_LATENCY=7975
MAX_LATENCY=18397
"""


def run_with(said: str, status: int, asked: list[str]) -> Callable[[list[str]], "subprocess.CompletedProcess[str]"]:
    def run(words: list[str]) -> "subprocess.CompletedProcess[str]":
        asked.extend(words)
        return subprocess.CompletedProcess(words, status, said, "")

    return run


def test_a_transaction_test_gives_operations_and_latencies_in_nanoseconds() -> None:
    asked: list[str] = []
    found = netperf.measure(run_with(SAID, 0, asked), "crr", "10.0.0.9", ("10.96.0.10", 5201), 0.15)
    assert found["operations"] == pytest.approx(1915.84)
    assert (found["p50"], found["p99"], found["max"], found["failures"]) == (40e3, 7975e3, 18397e3, 0.0)
    assert " ".join(asked).startswith("netperf -t TCP_CRR -H 10.0.0.9 -p 12865 -l 1 -- -H 10.96.0.10 -P 0,5201 -k ")


def test_bulk_is_bits_a_second() -> None:
    said = "THROUGHPUT=8000.00\nELAPSED_TIME=2.00\nP50_LATENCY=-1\n"
    found = netperf.measure(run_with(said, 0, []), "iperf3 1", "10.0.0.9", ("10.96.0.10", 5201), 2.0)
    assert (found["rate"], found["operations"], found["seconds"]) == (8e9, 2.0, 2.0)


@pytest.mark.parametrize(("said", "status"), [("", 1), ("THROUGHPUT=1\n", 0), (SAID, 1)])
def test_a_failure_is_said(said: str, status: int) -> None:
    with pytest.raises(LabError, match=r"netperf TCP_RR to 10\.96\.0\.10 port 5201"):
        netperf.measure(run_with(said, status, []), "rr", "10.0.0.9", ("10.96.0.10", 5201), 1.0)
