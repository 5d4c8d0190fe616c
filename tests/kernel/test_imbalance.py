"""The page on the dilemma of external traffic: what each setup does to shares and to clients' addresses."""

import json
import os

import pytest

from ctl import bench_imbalance
from ctl.bench_imbalance import record
from ctl.main import main
from dataplane.lab.scenarios import imbalance
from dataplane.lab.scenarios.imbalance import Row


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imbalance, "REQUESTS", 240)
    monkeypatch.setattr(imbalance, "CONNECTIONS", 20)
    monkeypatch.setattr(imbalance, "ROUNDS", 1)
    monkeypatch.setattr(bench_imbalance, "LAB_NAME", f"imb-{os.getpid()}")
    monkeypatch.setattr(bench_imbalance, "_INSTANCES", f"lab-imb-{os.getpid()}-")


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "imbalance", "--modes", "nftables,ebpf", "-o", "json"]) == 0
    rows = {(row["mode"], row["setup"]): row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 2 * len(imbalance.SETUPS)
    for name in ("tunnel", "dsr"):
        cannot = rows["nftables", f"Cluster, {name}"]
        assert cannot["cannot"] == "the nftables mode can only do SNAT towards other nodes"
        kept = rows["ebpf", f"Cluster, {name}"]
        assert kept["clientSeen"] == 1
        assert _fair(kept["requests"])
    for mode in ("nftables", "ebpf"):
        hidden, local, weighted = (rows[mode, setup.name] for setup in imbalance.SETUPS[:3])
        assert _fair(hidden["requests"])
        assert hidden["clientSeen"] < 1
        assert local["clientSeen"] == weighted["clientSeen"] == 1
        assert (local["requests"][0], local["most"]) == (120, 1.5)
        assert weighted["requests"][0] == 80
        assert all(row["connections"] > 0 and row["wireBytes"] > 100 for row in (hidden, local, weighted))


def _fair(requests: list[int]) -> bool:
    """Of 240 requests to three pods, a fair choice gives one of them fewer than 45 once in 10,000 runs."""
    return sum(requests) == 240 and min(requests) >= 45


def test_a_mode_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "imbalance", "--modes", "nftables,ipvs"]) == 2
    assert "there is no mode 'ipvs'" in capsys.readouterr().err


def test_a_row_is_readable() -> None:
    row = Row("ebpf", "x", "", {"a": 1, "b": 2}, 1.333, 0.5, ("10.0.0.1",), 1234.5, 10.4, 99.9, 700.2)
    assert record(row) == {
        "mode": "ebpf", "setup": "x", "requests": [1, 2], "most": 1.333, "clientSeen": 0.5, "seenAs": ["10.0.0.1"],
        "connections": 1234, "p50": 10.4, "p99": 99.9, "wireBytes": 700, "cannot": None,
    }  # fmt: skip
