"""Pods in manifests that are applied: what they add, and that alone they are nothing to apply."""

from pathlib import Path

import pytest

from ctl.manifests import plan_manifests
from ctl.parser import parse
from dataplane.errors import HotplaneError

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u-1, labels: {service.hotplane.io/connect-time: "off"}}
spec: {nodeName: n1, containers: [{ports: [{containerPort: 80, hostPort: 8080}]}]}
status: {podIP: 10.244.0.9}
"""
SERVICE = """---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
"""
NODE = ["--node-name", "n1", "--node-ip", "192.0.2.1"]


def test_host_ports_where_asked(tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text(POD)
    words = [*NODE, "apply", "-f", str(tmp_path)]
    planned = plan_manifests(parse([*words, "--host-ports"]))
    assert [key.service for key in planned.plan.entries] == ["shop/web:8080"]
    with pytest.raises(HotplaneError, match=r"nothing to use in .* \(found 1 Pod\); to remove what is loaded"):
        plan_manifests(parse(words))


def test_a_pod_beside_services(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(POD + SERVICE)
    plan = plan_manifests(parse([*NODE, "apply", "-f", str(tmp_path)])).plan
    assert [key.service for key in plan.entries] == ["shop/web"]
    assert [pod.why for pod in plan.connect_off.values()] == ["label of the Pod"]
    elsewhere = plan_manifests(parse(["--node-name", "n2", *NODE[2:], "apply", "-f", str(tmp_path)])).plan
    assert elsewhere.connect_off == {}


def test_a_service_that_has_the_port_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = SERVICE.replace("spec: {", "spec: {type: NodePort, ").replace("{port: 80}", "{port: 80, nodePort: 30080}")
    (tmp_path / "all.yaml").write_text(POD.replace("8080", "30080") + taken)
    planned = plan_manifests(parse([*NODE, "apply", "-f", str(tmp_path), "--host-ports"]))
    assert (planned.problems, planned.refused) == (1, 0), "a conflict is no fault of the manifests"
    said = capsys.readouterr().err
    assert "Pod shop/web: hostPort 192.0.2.1:30080/tcp: already taken by Service shop/web" in said
