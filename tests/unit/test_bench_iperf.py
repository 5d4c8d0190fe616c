"""What is made of iperf3's words."""

import json
import subprocess
from collections.abc import Callable

import pytest

from dataplane.bench.load import iperf
from dataplane.lab.spec import LabError

BUSY = json.dumps({"error": "the server is busy running a test. try again later"})
DONE = json.dumps(
    {"end": {"sum_sent": {"seconds": 1.0}, "sum_received": {"bits_per_second": 8e9, "seconds": 1.0, "bytes": 1e9}}}
)


def says(*answers: str) -> Callable[[list[str]], "subprocess.CompletedProcess[str]"]:
    left = iter(answers)
    return lambda argv: subprocess.CompletedProcess(argv, 0, next(left, answers[-1]), "")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iperf, "_PAUSE_SECONDS", 0.001)


def test_a_server_that_is_busy_with_the_run_before_is_waited_for() -> None:
    found = iperf.bulk(says(*[BUSY] * 20, DONE), ("10.0.0.1", 5201), ["-t", "1"], "bulk")
    assert (found["rate"], found["operations"], found["retransmits"]) == (8e9, 1.0, 0.0)


def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iperf, "_BUSY_SECONDS", 0.05)
    with pytest.raises(LabError, match="bulk: the server is busy"):
        iperf.bulk(says(BUSY), ("10.0.0.1", 5201), [], "bulk")


def test_any_other_error_is_told_at_once() -> None:
    with pytest.raises(LabError, match="bulk: it says nothing"):
        iperf.bulk(says("", DONE), ("10.0.0.1", 5201), [], "bulk")
