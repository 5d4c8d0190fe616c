"""What a cluster refuses, or does not bring about in time, is named, and nothing is left of it."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from ctl.main import main
from dataplane.bench.cluster import room as room_module
from dataplane.bench.cluster.kubectl import ClusterError
from dataplane.bench.cluster.settings import CLUSTER_IP, WAYS, SiteOptions
from dataplane.bench.cluster.site import Site
from dataplane.bench.figures.results import Machine
from tests.cluster_kubectl import Object, StandIn


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn() as found:
        monkeypatch.setenv("PATH", found.env["PATH"])
        yield found


def failure(timeout: float = 1.0, modes: tuple[str, ...] = WAYS, **options: Any) -> str:
    """Why a site does not come up."""
    with pytest.raises(ClusterError) as caught:
        Site(SiteOptions("python:3", timeout=timeout, **options), modes, lambda text: None)
    return str(caught.value)


def waiting(reason: str, message: str) -> Object:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [{"state": state}]}


def warning(reason: str, message: str) -> Object:
    return {"metadata": {"name": "e"}, "reason": reason, "message": message, "lastTimestamp": "2026-01-01T00:00:00Z"}


def test_an_image_that_cannot_be_pulled_is_told_at_once(cluster: StandIn) -> None:
    cluster.behave(
        status={"server": waiting("ImagePullBackOff", 'Back-off pulling image "python:3"')},
        objects={"events": [warning("Failed", "access denied")]},
    )
    started = time.monotonic()
    expected = 'pod server cannot start: ImagePullBackOff: Back-off pulling image "python:3"; Failed: access denied'
    assert failure(timeout=900) == expected
    assert time.monotonic() - started < 600
    assert cluster.left() == []


def test_a_pod_that_cannot_start_is_told_so_however_late(cluster: StandIn) -> None:
    cluster.behave(status={"client": waiting("InvalidImageName", "no")})
    assert failure(timeout=0.0) == "pod client cannot start: InvalidImageName: no"


def test_a_pod_that_does_not_come_up_is_told_within_the_time(cluster: StandIn) -> None:
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes available"}
    cluster.behave(status={"client": {"phase": "Pending", "conditions": [unplaced]}})
    assert failure() == "pod client is not ready after 1 s (--timeout): Unschedulable: 0/2 nodes available"
    cluster.behave(
        status={"client": {"phase": "Pending"}}, objects={"events": [warning("FailedCreatePodSandBox", "no CNI")]}
    )
    assert "FailedCreatePodSandBox: no CNI" in failure()
    cluster.behave(status={"client": {"phase": "Pending"}}, unreadable=("events",))
    assert "nothing is told of why; is its kubelet alive?" in failure()
    assert cluster.left() == []


@pytest.mark.parametrize(
    ("what", "refusal", "expected"),
    [
        ("Namespace hotplane-bench", 'User "jane" cannot create resource "namespaces"', "lists the permissions"),
        ("Pod client", 'pods "client" is forbidden: exceeded quota: small', "ask for more quota"),
        ("Pod server", 'pods "server" is forbidden: violates PodSecurity "restricted"', "Pod Security level forbids"),
    ],
)
def test_refusals_are_named(cluster: StandIn, what: str, refusal: str, expected: str) -> None:
    cluster.behave(refuse={what: refusal})
    found = failure()
    assert refusal in found
    assert expected in found
    assert cluster.left() == []


def test_nodes_that_may_not_be_listed_are_told(cluster: StandIn) -> None:
    cluster.behave(unreadable=("nodes",))
    assert "nodes: Error from server (Forbidden)" in failure()
    assert not [call for call in cluster.calls if "create" in call]


def test_somebody_elses_namespace_is_left_alone(cluster: StandIn) -> None:
    theirs = {"metadata": {"name": "prod", "uid": "1", "labels": {"app": "shop"}}}
    cluster.behave(objects={"namespaces": [theirs]})
    assert "namespace prod exists and is not the benchmark's" in failure(namespace="prod")
    assert "kept" not in failure(namespace="prod", keep=True)
    assert not [call for call in cluster.calls if "create" in call or "delete" in call]


def test_what_an_earlier_run_left_goes_first(cluster: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.behave(status={"client": waiting("InvalidImageName", "no")})
    said: list[str] = []
    for keep in (True, False):
        with pytest.raises(ClusterError, match="InvalidImageName"):
            Site(SiteOptions("python:3", keep=keep), (CLUSTER_IP,), said.append)
        assert bool(cluster.left()) is keep
    assert "kept: kubectl delete namespace hotplane-bench removes everything" in said
    assert "namespace hotplane-bench is left from an earlier run, and goes first" in said


def test_a_namespace_that_does_not_go_is_told_beside_what_went_wrong(
    cluster: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_module, "_PAUSE_SECONDS", 0.05)
    cluster.behave(status={"client": waiting("InvalidImageName", "no")}, stuck=True)
    said: list[str] = []
    with pytest.raises(ClusterError, match="InvalidImageName"):
        Site(SiteOptions("python:3", timeout=0.3), (CLUSTER_IP,), said.append)
    assert any("is not gone after 0 s: Some content in the namespace has finalizers" in text for text in said), said


def test_the_command_ends_with_one_sentence(
    cluster: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.behave(status={"client": waiting("InvalidImageName", "no")})
    words = ["bench", "cluster", "--image", "UPPER", "--results", str(tmp_path / "r.json")]
    assert main(words) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("pod client cannot start: InvalidImageName: no")
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "--port", "80"]) == 2
    assert main([*words, "--modes", "ipvs"]) == 2
    (tmp_path / "r.json").touch()
    assert main(words) == 2
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*words, "--overwrite"]) == 1
    assert "kubectl is not in PATH: install it" in capsys.readouterr().err


def test_a_journal_that_cannot_be_opened_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "r.json.journal")

    site = MagicMock(skipped=())
    site.__enter__.return_value = site
    site.settled.side_effect = lambda wanted: wanted
    site.machine.return_value = Machine()
    monkeypatch.setattr("dataplane.bench.cluster.site.Site", lambda *_: site)
    monkeypatch.setattr("dataplane.bench.figures.results.Journal", refused)
    assert main(["bench", "cluster", "--image", "python:3", "--results", "/nowhere/r.json"]) == 1
    assert "r.json.journal: Permission denied" in capsys.readouterr().err
    assert site.__exit__.called
