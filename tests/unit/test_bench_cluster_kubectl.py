"""kubectl as the benchmark calls it: what is missing, late or refused is told in a sentence, and no secret is."""

import time
from pathlib import Path

import pytest

from dataplane.bench.cluster.kubectl import ClusterError, Kubectl, KubectlError, sentence, without_secrets
from dataplane.bench.cluster.session import Session


def stand_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    """A kubectl that is a shell script."""
    program = folder / "kubectl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Kubectl(namespace="n")


def test_without_kubectl_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"kubectl is not in PATH: install it.*kubernetes-client"):
        Kubectl()


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "exit 0", monkeypatch)
    with pytest.raises(ClusterError, match="--kubeconfig /nowhere/config: there is no such file"):
        Kubectl(Path("/nowhere/config"))


def test_options_come_before_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, 'echo "$@"', monkeypatch)
    (tmp_path / "config").touch()
    found = Kubectl(tmp_path / "config", "lab", "room").run("pods", "get", "pods", seconds=7)
    options = f"--kubeconfig {tmp_path}/config --context lab --namespace room --request-timeout=7s"
    assert found.decode() == f"{options} get pods\n"


def test_a_call_that_hangs_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.bench.cluster.kubectl._GRACE_SECONDS", 0.2)
    kubectl, started = stand_in(tmp_path, "exec sleep 600", monkeypatch), time.monotonic()
    with pytest.raises(KubectlError, match="pods: kubectl get gives no answer in 0 s; is the API server reachable"):
        kubectl.run("pods", "get", "pods", seconds=0.1)
    assert time.monotonic() - started < 300


def test_what_is_no_json_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl = stand_in(tmp_path, "echo surprise", monkeypatch)
    with pytest.raises(KubectlError, match="pods: kubectl get prints no JSON"):
        kubectl.items("pods", "pods")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            'Error from server (Forbidden): namespaces is forbidden: User "jane" cannot create resource "namespaces"',
            'cannot create resource "namespaces"; docs/bench-cluster.md lists the permissions',
        ),
        (
            'Error from server (Forbidden): pods "client" is forbidden: exceeded quota: small',
            "exceeded quota: small; ask for more quota",
        ),
        (
            'Error from server (Forbidden): pods "host-client" is forbidden: violates PodSecurity "restricted:latest"',
            '"restricted:latest"; the namespace\'s Pod Security level forbids it',
        ),
        ("error: You must be logged in to the server (Unauthorized)", "credentials are not accepted"),
        (
            "E1128 15:00:00.1 1 memcache.go:265] couldn't get current server API group list\n"
            "The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?",
            "x: The connection to the server 10.0.0.1:6443 was refused",
        ),
        ('error: context "moon" does not exist', "kubectl config get-contexts names those"),
        ("Error in configuration: context was not found for specified context: moon", "get-contexts names those"),
        ("", "x: it says nothing"),
    ],
)
def test_failures_become_sentences(said: str, expected: str) -> None:
    found = sentence("x", said)
    assert expected in found
    assert "\n" not in found


def test_secrets_are_never_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "error: Authorization: Bearer abc.def at https://joe:hunter2@10.0.0.1/ token=s3cr3t password: opensesame"
    assert not [word for word in ("abc.def", "hunter2", "s3cr3t", "opensesame") if word in without_secrets(said)]
    kubectl = stand_in(tmp_path, f"echo '{said}' >&2; exit 1", monkeypatch)
    with pytest.raises(KubectlError) as caught:
        kubectl.run("pods", "get", "pods")
    for text in (str(caught.value), caught.value.said):
        assert not [word for word in ("abc.def", "hunter2", "s3cr3t", "opensesame") if word in text]


def test_a_session_that_ends_tells_why_and_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"echo x >>{tmp_path}/starts; read line; echo 'error: the pod is gone' >&2; exit 1"
    with Session(stand_in(tmp_path, script, monkeypatch), "client", ["load", "run"]) as session:
        for _ in range(2):
            with pytest.raises(ClusterError, match="pod client: the connection to it has ended: the pod is gone"):
                session.ask("connect", 120)
    assert (tmp_path / "starts").read_text() == "x\nx\n"


def test_a_session_that_is_late_or_talks_nonsense_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(stand_in(tmp_path, "exec sleep 600", monkeypatch), "client", ["load"]) as session:
        with pytest.raises(ClusterError, match="pod client: no answer in 0 s"):
            session.ask("connect", 0.2)
    with Session(stand_in(tmp_path, "read line; echo tea; read line", monkeypatch), "client", ["load"]) as session:
        with pytest.raises(ClusterError, match=r"tea.* is no answer"):
            session.ask("connect", 120)
    with Session(stand_in(tmp_path, """read l; echo '{"error": "no"}'""", monkeypatch), "client", ["load"]) as session:
        with pytest.raises(ClusterError, match="pod client: no"):
            session.ask("connect", 120)
