"""What the daemon announces of this node, when, and how it follows the other nodes: against an API server."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from msgspec.structs import replace

from ctl.daemon import forwarding
from ctl.daemon.forwarding import ForwardingKeeper, unknown_source
from ctl.daemon.jobs import Jobs
from ctl.daemon.log import Log
from ctl.daemon.settings import settings_of
from ctl.daemon.sync.inbox import Inbox
from ctl.parser import parse
from ctl.probes.forwarding import of_nodes
from ctl.sources.api import Api
from ctl.sources.kubeconfig import Cluster
from ctl.sources.watch import Reflector, Resource, other_nodes, resources
from ctl.store.forwarding import SUFFIX, OtherNode, SavedForwarding
from ctl.store.reports import report_path
from dataplane.backoff import Backoff
from dataplane.lab.apiserver.server import ApiServer
from dataplane.model.forwarding import NODE_ANNOTATION, SERVICE_ANNOTATION
from dataplane.model.net import Family
from dataplane.model.objects import Node, ObjectRef
from dataplane.plan.planner import Planner
from dataplane.policy.forwarding import LbMode
from dataplane.policy.node import NodeConfig
from tests.apiserver.objects import node, service

NODE = NodeConfig(name="n1", addresses=("192.0.2.1",), lb_mode=LbMode.DSR)
OFFER = str(NODE.offer)
DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.apply(node("n1", "192.0.2.1"), node("n2", "192.0.2.2"), node("n3", "192.0.2.3"))
        yield running


class Plane:
    """Stands for a plane whose programs are attached, or not."""

    why = ""

    def why_not_forwarding(self) -> str:
        return self.why


class Bench:
    """A keeper with the API server before it; a planner, as the reconcile loop would keep it; and no kernel."""

    def __init__(self, server: ApiServer, *options: str) -> None:
        self.server, self.plane, self.out = server, Plane(), io.StringIO()
        self.log = Log("debug", out=self.out)
        self.jobs = Jobs(self.log)
        self.settings = settings_of(parse(["--node-name", "n1", "--mode", "ebpf", *options, "run"]))
        self.planner = Planner(replace(NODE, lb_mode=self.settings.lb.mode))
        self.own: Node | None = None
        self.inbox = Inbox(("Node", "Service"))
        self.api = Api(Cluster(server.url))
        self.watched: list[Resource] = []
        self.keeper = ForwardingKeeper(
            self.settings, self, self.inbox, lambda: self.own, self.jobs, self.log,  # type: ignore[arg-type]
        )  # fmt: skip

    async def call(self, function: Callable[..., str]) -> str:
        """As Kernel.call."""
        return function()

    def watch(self, api: Api, resource: Resource) -> Reflector:
        reflector = Reflector(api, resource, self.inbox, self.log, backoff=Backoff(0.02, 0.05))
        self.watched.append(resource)
        self.jobs.start(f"watch {len(self.watched)}", reflector.run)
        return reflector

    async def start(self) -> None:
        for resource in resources("n1"):
            if resource.kind in ("Node", "Service"):
                self.watch(self.api, resource)
        self.keeper.connect(self.api, self.watch)
        await self.until(lambda: self.inbox.complete_once)
        await self.keeper.before_load()
        self.take()
        self.keeper.begin(self.planner)

    def take(self) -> None:
        """Plan what waits, as the reconcile loop does."""
        batch = self.inbox.take()
        self.planner.update(batch.upserts, batch.deletes)
        self.own = next((i for i in batch.upserts if isinstance(i, Node) and i.name == "n1"), self.own)
        self.keeper.look()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.01)
                if self.inbox.pending and self.keeper._planner is not None:
                    self.take()

    @property
    def announced(self) -> str:
        return str((self.server.object("Node", "", "n1")["metadata"].get("annotations") or {}).get(NODE_ANNOTATION, ""))


@asynccontextmanager
async def started(server: ApiServer, *options: str) -> AsyncIterator[Bench]:
    bench = Bench(server, *options)
    try:
        await bench.start()
        yield bench
    finally:
        await bench.jobs.close()
        await bench.api.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 300))


def announcing(name: str, address: str, text: str = OFFER) -> dict[str, Any]:
    made = node(name, address)
    made["metadata"]["annotations"] = {NODE_ANNOTATION: text}
    return made


def test_a_node_announces_what_it_speaks_and_learns_it_of_others(server: ApiServer) -> None:
    server.apply(announcing("n2", "192.0.2.2"), announcing("n3", "192.0.2.3", "nonsense!"))

    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            assert bench.planner.plan.tunnel_peers == {"192.0.2.2"}, "they are known before the first load"
            await bench.until(lambda: bench.announced == OFFER)
            await bench.until(lambda: bench.keeper.announced)
            assert bench.planner.tunnels.ways(Family.IPV4) == {"n2": "192.0.2.2"}
            server.apply(announcing("n3", "192.0.2.3"))
            await bench.until(lambda: "192.0.2.3" in bench.planner.plan.tunnel_peers)
            server.delete("Node", "", "n2")
            await bench.until(lambda: bench.planner.plan.tunnel_peers == {"192.0.2.3"})
            assert [each.field for each in bench.inbox.problems.get(ObjectRef("Node", "", "n3"), ())] == []

    run(test)
    assert server.object("Node", "", "n1")["metadata"]["annotations"] == {NODE_ANNOTATION: OFFER}, (
        "it outlives the daemon"
    )
    assert server.object("Node", "", "n1")["status"] == node("n1", "192.0.2.1")["status"], "nothing else was changed"


def test_by_default_nobody_is_followed_and_nothing_announced(server: ApiServer) -> None:
    async def test() -> None:
        async with started(server) as bench:
            await asyncio.sleep(0.3)
            assert [resource.field_selector for resource in bench.watched] == ["", "metadata.name=n1"]
            assert bench.announced == ""
            assert not any(path == "/api/v1/nodes/n1" for path in server.seen.paths)

    run(test)


def test_a_service_that_asks_for_it_is_enough_and_one_that_does_no_more_ends_it(server: ApiServer) -> None:
    server.apply(announcing("n2", "192.0.2.2"))
    ports = [{"port": 80, "protocol": "TCP", "targetPort": 8080, "nodePort": 30080}]
    asking = service("web", "10.96.0.1", type="NodePort", ports=ports)
    asking["metadata"]["annotations"] = {SERVICE_ANNOTATION: "tunnel"}

    async def test() -> None:
        async with started(server) as bench:
            server.apply(asking)
            await bench.until(lambda: bench.announced == OFFER)
            await bench.until(lambda: bench.planner.plan.tunnel_peers == {"192.0.2.2"})
            server.delete("Service", "default", "web")
            await bench.until(lambda: bench.announced == "")
            assert bench.planner.plan.tunnel_peers == {"192.0.2.2"}, "flows of before go on"
        server.apply(asking)
        async with started(server) as bench:
            assert bench.planner.plan.tunnel_peers == {"192.0.2.2"}, "known before the first load, as the Service asks"

    run(test)


def test_a_list_of_the_others_leaves_this_node_alone(server: ApiServer) -> None:
    """Both watches bring Nodes; each says only of its own which are gone."""
    server.apply(announcing("n2", "192.0.2.2"))

    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            await bench.until(lambda: bench.keeper.announced)
            deleted: list[ObjectRef] = []
            take = bench.inbox.take

            def noted() -> Any:
                batch = take()
                deleted.extend(batch.deletes)
                return batch

            bench.inbox.take = noted  # type: ignore[method-assign]
            server.forget()
            server.delete("Node", "", "n3")
            server.cut()
            await bench.until(lambda: ObjectRef("Node", "", "n3") in deleted)
            await asyncio.sleep(0.3)
            assert deleted == [ObjectRef("Node", "", "n3")]
            assert bench.planner.plan.tunnel_peers == {"192.0.2.2"}

    run(test)


def test_nothing_is_loaded_before_this_nodes_own_object_is_listed(server: ApiServer) -> None:
    """Which of two lists of one kind comes first is up to the API server."""

    async def test() -> None:
        bench = Bench(server)
        try:
            others = bench.watch(bench.api, other_nodes("n1"))
            bench.inbox.complete("Service", set())
            await bench.until(lambda: others.lists == 1)
            assert not bench.inbox.complete_once
            assert bench.inbox.unlisted == ["Node"]
            bench.watch(bench.api, next(each for each in resources("n1") if each.kind == "Node"))
            await bench.until(lambda: bench.inbox.complete_once)
            assert {item.name for item in bench.inbox.take().upserts} == {"n1", "n2", "n3"}
        finally:
            await bench.jobs.close()
            await bench.api.close()

    run(test)


def test_which_names_a_watch_covers() -> None:
    own = next(resource for resource in resources("n1") if resource.kind == "Node")
    assert [own.covers(name) for name in ("n1", "n2")] == [True, False]
    assert [other_nodes("n1").covers(name) for name in ("n1", "n2")] == [False, True]
    assert all(resource.covers("n2") for resource in resources("n1") if resource.kind != "Node")


def test_without_the_right_it_is_said_and_tried_again(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "REFUSED_SECONDS", 0.05)
    server.behave(forbidden=("PATCH",))
    server.apply(announcing("n2", "192.0.2.2"))

    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            await bench.until(lambda: "forwarding-role.yaml" in bench.out.getvalue())
            await asyncio.sleep(0.3)
            assert bench.out.getvalue().count("use SNAT towards this one") == 1, "it is said once"
            assert bench.planner.tunnels.ways(Family.IPV4) == {}, "nor does it forward, for nobody would take it"
            server.behave(forbidden=())
            await bench.until(lambda: bench.announced == OFFER)

    run(test)


def test_an_api_server_that_is_away_is_tried_again(server: ApiServer) -> None:
    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            await bench.until(lambda: bench.announced == OFFER)
            server.behave(down=True)
            bench.plane.why = "no uplink has packet programs"
            bench.keeper.look()
            await bench.until(lambda: "job failed job=announcement" in bench.out.getvalue())
            server.behave(down=False)
            await bench.until(lambda: bench.announced == "")

    run(test)


def test_what_is_announced_follows_the_programs(server: ApiServer) -> None:
    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            await bench.until(lambda: bench.announced == OFFER)
            bench.plane.why = "no uplink has packet programs"
            bench.keeper.look()
            await bench.until(lambda: bench.announced == "")
            assert "reason='no uplink has packet programs'" in bench.out.getvalue().replace('"', "'")
            bench.plane.why = ""
            bench.keeper.look()
            await bench.until(lambda: bench.announced == OFFER)

    run(test)


def test_it_is_taken_back_before_a_mode_without_it_takes_over(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "HEARD_SECONDS", 0.0)
    monkeypatch.setattr(forwarding, "RETRACT_SECONDS", 60.0)

    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            await bench.until(lambda: bench.keeper.announced)
            await bench.keeper.retract()
            assert bench.announced == "", "when it returns"
            bench.planner.set_node(replace(bench.planner.plan.node, lb_mode=LbMode.SNAT, snat_only=True))
            bench.keeper.look()
            await asyncio.sleep(0.2)
            assert bench.announced == ""

    run(test)


def test_another_port_is_another_language(server: ApiServer) -> None:
    server.apply(announcing("n1", "192.0.2.1"), announcing("n2", "192.0.2.2"))

    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            assert bench.planner.tunnels.ways(Family.IPV4) == {"n2": "192.0.2.2"}, "as it announced before"
            bench.planner.set_node(replace(bench.planner.plan.node, lb_port=9999))
            bench.keeper.look()
            await bench.until(lambda: "port=9999" in bench.announced)
            assert bench.planner.plan.tunnel_peers == frozenset()

    run(test)


def test_a_node_that_sends_from_an_address_that_its_object_lacks_announces_nothing(server: ApiServer) -> None:
    server.apply(node("n1", "198.51.100.1"))

    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            await bench.until(lambda: "none of its Node object's addresses" in bench.out.getvalue())
            assert bench.announced == ""
            server.apply(node("n1", "198.51.100.1", "192.0.2.1"))
            await bench.until(lambda: bench.announced == OFFER)

    run(test)
    assert unknown_source(NODE, Node("n1")) != ""
    assert unknown_source(replace(NODE, addresses=()), Node("n1")).startswith("no address, from which")


def test_a_node_without_a_node_object_says_so(server: ApiServer) -> None:
    server.delete("Node", "", "n1")

    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            await bench.until(lambda: "there is no Node object n1" in bench.out.getvalue())

    run(test)


def test_what_others_may_know_is_saved(server: ApiServer, tmp_path: Path) -> None:
    server.apply(announcing("n2", "192.0.2.2"), announcing("n3", "192.0.2.3", "vxlan,port=1,vni=1"))

    async def test() -> None:
        async with started(server, "--lb-mode", "dsr") as bench:
            await bench.until(lambda: bench.keeper.announced)
            bench.keeper.save(tmp_path)

    run(test)
    saved = msgspec.msgpack.decode(report_path(tmp_path, SUFFIX).read_bytes(), type=SavedForwarding)
    assert (saved.mode, saved.announced, saved.why, saved.asked) == ("dsr", OFFER, "", True)
    why = f"announces vxlan,port=1,vni=1, where this node speaks {OFFER}"
    assert saved.nodes == (OtherNode("n2", ("192.0.2.2",), dispatch="VXLAN"), OtherNode("n3", (), why))
    told = {finding.check: finding for finding in of_nodes("ebpf", saved)}
    assert [finding.status.value for finding in told.values()] == ["ok", "ok", "limited"]
    assert told["forwarding, this node"].detail == f"announces {OFFER}"
    assert told["forwarding, node n2"].detail == "forwarded to, and from, by 192.0.2.2, in VXLAN"
    assert told["forwarding, node n3"].detail == f"gets SNAT: {why}"
    [own, *_] = of_nodes("ebpf", replace(saved, announced="", why="403 Forbidden"))
    assert (own.status.value, own.detail) == ("limited", "other nodes use SNAT towards it: 403 Forbidden")


def test_the_extra_role_allows_what_is_written_and_nothing_more() -> None:
    documents = {item["kind"]: item for item in yaml.safe_load_all((DEPLOY / "forwarding-role.yaml").read_text())}
    assert documents["ClusterRole"]["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}]
    assert documents["ClusterRoleBinding"]["roleRef"]["name"] == documents["ClusterRole"]["metadata"]["name"]
    policy = documents["ValidatingAdmissionPolicy"]
    assert documents["ValidatingAdmissionPolicyBinding"]["spec"]["policyName"] == policy["metadata"]["name"]
    [account] = documents["ClusterRoleBinding"]["subjects"]
    assert f"system:serviceaccount:{account['namespace']}:{account['name']}" in str(policy["spec"]["matchConditions"])
