"""Following this node's Pods, and Namespaces: only where somebody asks, and without the right to it all goes on."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ctl.daemon.log import Log
from ctl.daemon.settings import settings_of
from ctl.daemon.sync.inbox import Inbox
from ctl.parser import parse
from ctl.sources.api import Api
from ctl.sources.directory import DirectorySource
from ctl.sources.kubeconfig import Cluster
from ctl.sources.watch import Reflector, Resource, pod_resources, policy_resources
from dataplane.backoff import Backoff
from dataplane.lab.apiserver.server import ApiServer
from dataplane.model.objects import Namespace, ObjectRef, Pod
from tests.apiserver.objects import namespace, pod

KEY = "service.hotplane.io/connect-time"
DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


def test_who_asks_for_what() -> None:
    def kinds(host_ports: bool, connect_time: bool) -> list[tuple[str, bool]]:
        found = pod_resources("n1", host_ports=host_ports, connect_time=connect_time)
        return [(resource.kind, resource.optional) for resource in found]

    assert kinds(host_ports=False, connect_time=False) == []
    assert kinds(host_ports=True, connect_time=False) == [("Pod", False)]
    assert kinds(host_ports=False, connect_time=True) == [("Pod", True), ("Namespace", True)]
    assert kinds(host_ports=True, connect_time=True) == [("Pod", False), ("Namespace", True)]


@pytest.mark.parametrize(
    ("options", "balances"),
    [
        ((), False),
        (("--mode", "ebpf"), True),
        (("--mode", "ebpf", "--hooks", "tc"), False),
        (("--mode", "ebpf", "--cgroup", "none"), False),
        (("--mode", "iptables"), False),
    ],
)
def test_which_daemons_care_for_connect_time(options: tuple[str, ...], balances: bool) -> None:
    assert settings_of(parse([*options, "run"])).balances_at_connect_time == balances


def test_the_extra_role_allows_what_is_watched() -> None:
    documents: dict[str, Any] = {
        item["kind"]: item for item in yaml.safe_load_all((DEPLOY / "pods-role.yaml").read_text())
    }
    watched = (*pod_resources("n", host_ports=True, connect_time=True), *policy_resources("n"))
    paths = {resource.path.removeprefix("/api/v1").removeprefix("/apis").removesuffix("/") for resource in watched}
    allowed = set()
    for rule in documents["ClusterRole"]["rules"]:
        assert rule["verbs"] == ["get", "list", "watch"]
        for group in rule["apiGroups"]:
            allowed |= {f"/{group}/v1/{name}" if group else f"/{name}" for name in rule["resources"]}
    assert allowed == paths
    assert documents["ClusterRoleBinding"]["roleRef"]["name"] == documents["ClusterRole"]["metadata"]["name"]


def follow(server: ApiServer, resources: tuple[Resource, ...], seconds: float = 60) -> tuple[Inbox, str]:
    """Follow until everything is known; the inbox, and the log."""
    inbox, out = Inbox(resource.kind for resource in resources), io.StringIO()

    async def run() -> None:
        api = Api(Cluster(server.url))
        log = Log("debug", out=out)
        tasks = [
            asyncio.create_task(Reflector(api, resource, inbox, log, backoff=Backoff(0.02, 0.05)).run())
            for resource in resources
        ]
        try:
            async with asyncio.timeout(seconds):
                while not inbox.complete_once:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await api.close()

    asyncio.run(run())
    return inbox, out.getvalue()


def test_pods_of_this_node_and_all_namespaces(server: ApiServer) -> None:
    server.apply(
        pod("a", "n1", "10.0.0.1", annotations={KEY: "off"}), pod("b", "n2", "10.0.0.2"),
        pod("c", "n1", "10.0.0.3", ports=[{"containerPort": 80, "hostPort": 8080}]),
        namespace("shop", **{KEY: "off"}), namespace("odd", **{KEY: "maybe"}),
    )  # fmt: skip
    inbox, _ = follow(server, pod_resources("n1", host_ports=True, connect_time=True))
    found = {str(item.ref): item for item in inbox.take().upserts}
    assert sorted(found) == ["Namespace odd", "Namespace shop", "Pod default/a", "Pod default/c"]
    first, second = found["Pod default/a"], found["Pod default/c"]
    assert isinstance(first, Pod)
    assert isinstance(second, Pod)
    assert (first.connect_time, first.uid) == (False, "uid-default-a")
    assert [port.port for port in second.host_ports] == [8080]
    assert found["Namespace shop"] == Namespace("shop", False, "label")
    [problem] = inbox.problems[ObjectRef("Namespace", "", "odd")]
    assert str(problem).startswith(f"Namespace odd: metadata.labels[{KEY}]: is 'maybe'; write")


def test_without_the_right_to_it_connect_time_is_on_and_nobody_shouts(server: ApiServer) -> None:
    server.behave(refuse=403)
    inbox, log_text = follow(server, pod_resources("n1", host_ports=False, connect_time=True))
    assert inbox.take().upserts == []
    assert log_text.count("kind is not served") == 2
    assert "cannot watch" not in log_text


def test_host_ports_wait_for_the_right_to_it(server: ApiServer) -> None:
    server.behave(refuse=403)
    with pytest.raises(TimeoutError):
        follow(server, pod_resources("n1", host_ports=True, connect_time=False), seconds=0.5)


def test_a_directory_of_manifests_tells_of_pods_only_who_asks(tmp_path: Path) -> None:
    (tmp_path / "pods.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {service.hotplane.io/connect-time: 'off'}}\n"
        "spec: {nodeName: n1}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
    )
    plain, asked = Inbox(("Service",)), Inbox(("Service", "Pod"))
    for inbox in (plain, asked):
        DirectorySource([str(tmp_path)], inbox, Log("error", out=io.StringIO())).read()
        assert inbox.complete_once
    assert plain.take().upserts == []
    assert [str(item.ref) for item in asked.take().upserts] == ["Pod default/a"]
