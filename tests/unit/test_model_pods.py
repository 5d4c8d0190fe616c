"""Pods and Namespaces: what is read of them, and what is wrong with them."""

from typing import Any

import msgspec
import pytest

from dataplane.model.decode import decode, decode_object
from dataplane.model.net import Protocol
from dataplane.model.objects import HostPort, Namespace, Pod

KEY = "service.hotplane.io/connect-time"


def pod(metadata: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "n1", **spec}, "status": status or {},
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1", **(metadata or {})},
    }  # fmt: skip


def read(value: dict[str, Any]) -> tuple[Any, list[str]]:
    found = decode_object(msgspec.json.encode(value))
    return found.value, [str(problem) for problem in found.problems]


def test_what_is_read_of_a_pod() -> None:
    ports = [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "hostPort": 53, "protocol": "UDP"}]
    sidecar = {"restartPolicy": "Always", "ports": [{"containerPort": 1, "hostPort": 2, "hostIP": "fd00:0::1"}]}
    value, problems = read(
        pod(
            {"creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z"},
            {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
            containers=[{"name": "a", "ports": [*ports, {"containerPort": 9}]}],
            initContainers=[sidecar, {"ports": [{"containerPort": 7, "hostPort": 7}]}],
        )
    )
    assert problems == []
    assert value == Pod(
        "shop", "web", "u-1", "n1", ("10.0.0.1", "fd00::1"), False,
        (
            HostPort(Protocol.TCP, 8080, 80), HostPort(Protocol.UDP, 53, 53), HostPort(Protocol.TCP, 2, 1, "fd00::1"),
        ),
        terminating=True, created="2026-01-01T00:00:00Z",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "finished"),
    [("Pending", False), ("Running", False), ("Unknown", False), ("Succeeded", True), ("Failed", True)],
)
def test_a_pod_that_has_ended_is_finished(phase: str, finished: bool) -> None:
    value, problems = read(pod(status={"phase": phase}))
    assert (value.finished, problems) == (finished, [])


def test_a_pod_in_the_nodes_network_publishes_nothing() -> None:
    value, _ = read(pod(hostNetwork=True, containers=[{"ports": [{"containerPort": 80, "hostPort": 80}]}]))
    assert value.host_network
    assert value.host_ports == ()


def test_the_control_group_of_a_static_pod_is_named_by_its_manifest() -> None:
    value, _ = read(pod({"annotations": {"kubernetes.io/config.mirror": "0123abcd"}}))
    assert value.uid == "0123abcd"


@pytest.mark.parametrize(
    ("port", "problem"),
    [
        ({"containerPort": 80, "hostPort": 70000}, "ports[0].hostPort: is 70000; a port is a whole number"),
        ({"containerPort": 0, "hostPort": 80}, "ports[0].containerPort: is 0; a port is a whole number"),
        ({"containerPort": 1, "hostPort": 8, "protocol": "tcp"}, "ports[0].protocol: is 'tcp'; write TCP"),
        ({"containerPort": 1, "hostPort": 8, "hostIP": "node1"}, "ports[0].hostIP: 'node1' is not an IP address"),
    ],
)
def test_a_bad_port_costs_that_port(port: dict[str, Any], problem: str) -> None:
    value, problems = read(pod(containers=[{"ports": [port, {"containerPort": 5, "hostPort": 6}]}]))
    assert value.host_ports == (HostPort(Protocol.TCP, 6, 5),)
    [text] = problems
    assert text.startswith(f"Pod shop/web: spec.containers[0].{problem}")


def test_one_host_port_twice_in_a_pod() -> None:
    ports = [
        {"containerPort": 5, "hostPort": 6},
        {"containerPort": 5, "hostPort": 6},
        {"containerPort": 7, "hostPort": 6},
    ]
    value, problems = read(pod(containers=[{"ports": ports}]))
    assert value.host_ports == (HostPort(Protocol.TCP, 6, 5),)
    [text] = problems
    assert "spec.containers[0].ports[2].hostPort: 6 is published by an earlier port" in text


@pytest.mark.parametrize(
    ("metadata", "word", "by"),
    [
        ({}, None, ""),
        ({"labels": {KEY: "off"}}, False, "label"),
        ({"annotations": {KEY: "off"}}, False, "annotation"),
        ({"annotations": {KEY: "on"}, "labels": {"app": "x"}}, True, "annotation"),
        ({"annotations": {KEY: "on"}, "labels": {KEY: "off"}}, False, "label"),
    ],
)
def test_connect_time_of_pods_and_namespaces(metadata: dict[str, Any], word: bool | None, by: str) -> None:
    value, problems = read(pod(metadata))
    assert (value.connect_time, value.connect_time_by, problems) == (word, by, [])
    value, problems = read({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", **metadata}})
    assert (value, problems) == (Namespace("shop", word, by), [])


def test_an_unknown_word_is_told_with_file_and_name() -> None:
    text = f"kind: Namespace\napiVersion: v1\nmetadata:\n  name: shop\n  labels:\n    {KEY}: disabled\n"
    found = decode(text.encode(), "shop.yaml")
    assert found.objects == [Namespace("shop")]
    assert [str(problem) for problem in found.problems] == [
        f'Namespace shop: metadata.labels[{KEY}]: is \'disabled\'; write "off" or "on" (it is ignored)'
    ]
