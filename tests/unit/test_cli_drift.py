"""Differences between plan and kernel, in words; and what is remembered between calls."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from ctl.store import state
from ctl.store.drift import differences
from dataplane.model.net import Family, Protocol
from dataplane.plan.types import (
    EntryKey,
    Frontend,
    FrontendKey,
    FrontendKind,
    HealthCheck,
    Plan,
    PlanEntry,
    Row,
    SourceRanges,
)
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import LocalDetector, NodeConfig
from dataplane.policy.routes import REJECT_ALL, Action, Route, Routes, Scope

KEY = FrontendKey(Family.IPV4, "10.96.0.1", Protocol.TCP, 80)
FORWARD = Route(Action.FORWARD)
MASQUERADE = Route(Action.FORWARD, Scope.CLUSTER, True)
ROW = Row("default/echo", Routes(FORWARD, MASQUERADE, MASQUERADE), cluster=(("10.0.0.1", 8080),))


def _with(**changes: object) -> Row:
    return msgspec.structs.replace(ROW, **changes)


@dataclass
class Case:
    """A row as planned, as the kernel holds it, and the words for the difference."""

    want: Row | None
    have: Row | None
    words: list[str]


CASES = {
    "equal": Case(ROW, ROW, []),
    "missing": Case(ROW, None, ["is missing in the kernel"]),
    "surplus": Case(None, ROW, ["is in the kernel and not in the plan"]),
    "endpoint": Case(
        ROW,
        _with(cluster=(("10.0.0.2", 8080),)),
        [
            "endpoint 10.0.0.1:8080 is missing from the cluster set",
            "endpoint 10.0.0.2:8080 is in the cluster set and not in the plan",
        ],
    ),
    "twice": Case(
        ROW,
        _with(cluster=ROW.cluster * 2),
        ["endpoint 10.0.0.1:8080 is drawn 2 of 2 times from the cluster set instead of 1 of 1"],
    ),
    "algorithm": Case(
        _with(algorithm=Algorithm.MAGLEV), ROW, ["clients from outside are led by random instead of maglev"]
    ),
    "order is no difference": Case(
        _with(local=(("10.0.0.1", 1), ("10.0.0.2", 1))), _with(local=(("10.0.0.2", 1), ("10.0.0.1", 1))), []
    ),
    "affinity": Case(_with(affinity_seconds=60), ROW, ["session affinity is 0 s instead of 60 s"]),
    "ranges": Case(
        _with(source_ranges=SourceRanges(("192.0.2.0/24", "192.0.2.9/32"))),
        _with(source_ranges=SourceRanges(())),
        ["lets in nobody instead of 192.0.2.0/24, 192.0.2.9/32"],
    ),
    "ranges removed": Case(_with(source_ranges=SourceRanges(())), ROW, ["lets in everyone instead of nobody"]),
    "service": Case(ROW, _with(service="default/other"), ["belongs to Service default/other in the kernel"]),
    "routes": Case(
        _with(routes=REJECT_ALL, cluster=()),
        _with(routes=Routes(REJECT_ALL.pod, REJECT_ALL.node, MASQUERADE), cluster=()),
        ["traffic from outside: forward cluster masquerade instead of reject"],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_differences(case: Case) -> None:
    want = {} if case.want is None else {KEY: case.want}
    have = {} if case.have is None else {KEY: case.have}
    assert [d.difference for d in differences(want, have)] == case.words


def test_a_remembered_plan_comes_back_equal(tmp_path: Path) -> None:
    key = EntryKey("default", "echo", "http", Protocol.TCP, Family.IPV4)
    entry = PlanEntry(
        key,
        cluster=(Backend("10.0.0.1", 8080, True),),
        frontends=(Frontend(FrontendKind.CLUSTER_IP, KEY, ROW.routes, SourceRanges(("192.0.2.0/24",))),),
        affinity_seconds=60,
    )
    plan = Plan(
        node=NodeConfig(name="n1", addresses=("192.0.2.1",), detector=LocalDetector(("10.0.0.0/8",))),
        entries={key: entry},
        service_cidrs=("10.96.0.0/12",),
        health_checks={("default", "echo"): HealthCheck("default", "echo", 30000, 1)},
    )
    state.save(tmp_path / "state", state.Saved.of("nftables", plan))
    saved = state.load(tmp_path / "state")
    assert saved is not None
    assert (saved.mode, saved.plan()) == ("nftables", plan)
    assert state.forget(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    assert state.load(tmp_path / "state") is None
    assert not state.forget(tmp_path / "state")


def test_a_state_file_that_is_not_ours_is_reported(tmp_path: Path) -> None:
    state.save(tmp_path, state.Saved("nftables", NodeConfig()))
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"\xc1")
    with pytest.raises(state.StateError, match="apply the manifests again"):
        state.load(tmp_path)


def test_a_state_directory_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(state.StateError, match="--state-dir"):
        state.save(tmp_path / "file", state.Saved("nftables", NodeConfig()))
