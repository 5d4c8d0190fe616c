"""Who stays on the node's stack, as the daemon learns it: from an API server, from manifests, from settings."""

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ctl.config import ConfigError, parse_config
from ctl.daemon.host_routing.groups import PolicyGroups
from ctl.daemon.host_routing.keeper import GROUPS_UNKNOWN, NOT_LOOKED, RouteKeeper
from ctl.daemon.host_routing.router import HostRouter
from ctl.daemon.jobs import Jobs
from ctl.daemon.log import Log
from ctl.daemon.settings import settings_of
from ctl.daemon.sync.inbox import Inbox
from ctl.parser import parse
from ctl.sources.api import Api
from ctl.sources.directory import DirectorySource
from ctl.sources.kubeconfig import Cluster
from ctl.sources.watch import Reflector, policy_resources
from dataplane.backoff import Backoff
from dataplane.errors import HotplaneError
from dataplane.lab.apiserver.server import ApiServer
from dataplane.planes.base import PlaneError
from dataplane.planes.exclusions import UNKNOWN, Exclusions
from tests.apiserver.objects import network_policy, pod

NODE = "n1"
WEB, DB, NOBODY = "10.0.0.1", "10.0.0.2", "10.0.0.9"


class Bench:
    """A keeper with an inbox before it and a plane behind it. told: all that the plane was told, in order."""

    def __init__(self, choice: str = "auto", *, api: bool = True) -> None:
        self.told: list[Exclusions] = []
        self.fails = False
        self.out = io.StringIO()
        self.log = Log("debug", out=self.out)
        self.keeper = RouteKeeper(NODE, choice, self._tell, self.log, api=api)
        self.inbox = Inbox(("Service",), self.keeper.listener.kinds, self.keeper.listener)

    def _tell(self, exclusions: Exclusions) -> None:
        if self.fails:
            raise PlaneError("the kernel refused")
        self.told.append(exclusions)

    def ready(self) -> None:
        """Everything but the objects is known, and nothing speaks against it."""
        self.keeper.found_chains(None)
        self.keeper.found_groups(None)
        self.keeper.begin()

    @property
    def now(self) -> Exclusions:
        return self.told[-1]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.apply(
            pod("web", NODE, WEB, labels={"app": "web"}), pod("db", NODE, DB, labels={"app": "db"}),
            pod("far", "n2", NOBODY),
        )  # fmt: skip
        yield running


def follow(server: ApiServer, bench: Bench, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario while Pods and NetworkPolicies are followed."""

    async def run() -> None:
        api = Api(Cluster(server.url))
        tasks = [
            asyncio.create_task(Reflector(api, each, bench.inbox, bench.log, backoff=Backoff(0.02, 0.05)).run())
            for each in policy_resources(NODE)
        ]
        try:
            await scenario()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await api.close()

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_nothing_goes_before_all_is_known(server: ApiServer) -> None:
    bench = Bench()

    async def scenario() -> None:
        assert bench.told == []
        bench.keeper.begin()
        assert bench.now.node == NOT_LOOKED
        bench.keeper.found_chains(None)
        assert bench.now.node == GROUPS_UNKNOWN
        bench.keeper.found_groups(None)
        assert bench.now.node == "the NetworkPolicies are not known yet"
        await until(lambda: bench.now == Exclusions())

    follow(server, bench, scenario)


def test_policies_come_and_go(server: ApiServer) -> None:
    bench = Bench()
    reason = "NetworkPolicy default/db selects Pod default/db"

    async def scenario() -> None:
        bench.ready()
        await until(lambda: bench.now == Exclusions())
        server.apply(network_policy("db", matchLabels={"app": "db"}))
        await until(lambda: bench.now.node is None and bool(bench.now.addresses))
        assert [bench.now.reason(address) for address in (WEB, DB, NOBODY)] == [None, reason, UNKNOWN]
        server.apply(pod("web", NODE, WEB, labels={"app": "web"}, deletionTimestamp="2026-01-01T00:00:00Z"))
        await until(lambda: bench.now.reason(WEB) == UNKNOWN)
        server.delete("NetworkPolicy", "default", "db")
        await until(lambda: bench.now == Exclusions())

    follow(server, bench, scenario)
    assert len(bench.told) <= 6, "it is told what changes, not each event"


def test_a_policy_that_cannot_be_read_is_reported_and_takes_its_namespace(server: ApiServer) -> None:
    bench = Bench()
    server.apply(network_policy("bad", matchExpressions=[{"key": "a", "operator": "Like", "values": ["b"]}]))
    server.apply(pod("other", NODE, "10.0.0.3", namespace="shop"))

    async def scenario() -> None:
        bench.ready()
        await until(lambda: bool(bench.now.addresses))
        assert bench.now.reason(WEB) == "NetworkPolicy default/bad cannot be read, and may select it"
        assert bench.now.reason("10.0.0.3") is None

    follow(server, bench, scenario)
    assert [str(ref) for ref in bench.inbox.problems] == ["NetworkPolicy default/bad"]


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ({"refuse": 403}, "the NetworkPolicies cannot be listed (403 Test: told to refuse); grant it"),
        ({"missing": ("NetworkPolicy",)}, None),
        ({"missing": ("Pod",)}, "there are NetworkPolicies, and this node's Pods cannot be listed (404"),
    ],
)
def test_what_may_not_be_listed(server: ApiServer, behaviour: dict[str, object], expected: str | None) -> None:
    """A server that has no policies leaves none unseen; one that hides them, or Pods, might."""
    bench = Bench()
    server.apply(network_policy("db", matchLabels={"app": "db"}))
    server.behave(**behaviour)

    async def scenario() -> None:
        bench.ready()
        await until(lambda: "yet" not in (bench.now.node or ""))
        assert (bench.now.node or "").startswith(expected or "")
        assert bool(bench.now.node) == bool(expected)

    follow(server, bench, scenario)


def test_kinds_of_policies_that_are_not_watched(server: ApiServer) -> None:
    found: list[str | None] = []

    async def run() -> None:
        api = Api(Cluster(server.url))
        groups = PolicyGroups(api, found.append)
        server.behave(refuse=403)
        with pytest.raises(HotplaneError):
            await groups.look()
        server.behave(refuse=0)
        await groups.look()
        server.behave(groups=("policy.networking.k8s.io", "metrics.k8s.io"))
        await groups.look()
        server.behave(refuse=500)
        with pytest.raises(HotplaneError):
            await groups.look()
        await api.close()

    asyncio.run(run())
    assert found == [
        "the API server does not say which kinds of policies it has (403 Test: told to refuse)", None,
        "the API server has AdminNetworkPolicy or ClusterNetworkPolicy (policy.networking.k8s.io), which are not "
        "watched",
    ]  # fmt: skip


def test_the_choice_and_what_it_goes_over() -> None:
    bench = Bench("off")
    bench.keeper.begin()
    assert bench.now == Exclusions("--host-routing is off")
    bench.keeper.found_chains("nftables chain ip filter FORWARD (forward) has rules")
    bench.keeper.choose("on")
    assert bench.now == Exclusions(), "who says on vouches for policies and chains"
    bench.keeper.choose("auto")
    assert bench.now.node == "nftables chain ip filter FORWARD (forward) has rules"
    bench.keeper.end("no daemon runs")
    assert bench.now == Exclusions("no daemon runs")
    bench.keeper.choose("on")
    assert bench.now == Exclusions("no daemon runs"), "until it begins again"


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_a_kernel_that_refuses_the_program_is_the_last_word(choice: str) -> None:
    bench = Bench(choice)
    bench.ready()
    bench.keeper.found_refusal("the kernel refuses tc_host: too many instructions")
    assert bench.now == Exclusions("the kernel refuses tc_host: too many instructions")
    *_, last = bench.out.getvalue().splitlines()
    assert "all packets go by the node's stack" in last
    assert "too many instructions" in last
    bench.keeper.begin()
    assert "tc_host" not in (bench.now.node or ""), "another plane has programs of its own"


def test_a_plane_that_could_not_be_told_is_told_again() -> None:
    bench = Bench("on")
    bench.fails = True
    bench.keeper.begin()
    assert bench.told == []
    assert "could not be told" in bench.out.getvalue()
    bench.fails = False
    asyncio.run(bench.keeper.tell_again())
    assert bench.told == [Exclusions()]
    bench.keeper.update()
    assert len(bench.told) == 1, "nothing has changed"
    asyncio.run(bench.keeper.tell_again())
    assert bench.told == [Exclusions()] * 2, "it hears that somebody still looks"
    bench.keeper.end("no daemon runs")
    asyncio.run(bench.keeper.tell_again())
    assert bench.now == Exclusions("no daemon runs")
    assert len(bench.told) == 3


def test_manifests_with_policies(tmp_path: Path) -> None:
    """Without an API server no other policies are known than those in the files."""
    bench = Bench(api=False)
    bench.keeper.found_chains(None)
    bench.keeper.begin()
    file = tmp_path / "all.yaml"
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\n"
    file.write_text(text + f"spec: {{nodeName: {NODE}}}\nstatus: {{podIP: {WEB}}}\n")
    source = DirectorySource([str(tmp_path)], bench.inbox, bench.log)
    source.read()
    assert bench.now == Exclusions()
    policy = tmp_path / "policy.yaml"
    head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n"
    policy.write_text(f"{head}spec: {{podSelector: {{matchLabels: {{app: web}}}}}}\n")
    source.read()
    assert bench.now.reason(WEB) == "NetworkPolicy default/p selects Pod default/web"
    policy.write_text(f"{head}spec: {{podSelector: [wrong]}}\n")
    source.read()
    assert bench.now.reason(WEB) == "NetworkPolicy default/p cannot be read, and may select it"
    policy.unlink()
    source.read()
    assert bench.now == Exclusions()
    assert bench.inbox.take().upserts == [], "nobody else hears of them"


def test_kinds_beside_are_followed_and_not_handed_out(server: ApiServer) -> None:
    bench = Bench()
    assert not bench.inbox.complete_once
    bench.inbox.complete("Service", ())
    assert bench.inbox.complete_once, "the plan does not wait for policies"

    async def scenario() -> None:
        await until(lambda: bench.inbox.synced >= {"Pod", "NetworkPolicy"})

    follow(server, bench, scenario)
    assert bench.inbox.take().upserts == []


def test_settings(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"

    def choice(*options: str, text: str = "") -> str:
        kind = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        config.write_text(kind + text)
        return settings_of(parse(["--mode", "ebpf", "--config", str(config), *options, "run"])).options.host_routing

    assert choice() == "auto"
    assert choice(text="hostRouting: off\n") == "off"
    assert choice(text="hostRouting: auto\n") == "auto"
    assert choice(text="hostRouting: on\n") == "on"
    assert choice("--host-routing", "off", text="hostRouting: on\n") == "off"
    with pytest.raises(ConfigError, match="hostRouting: is 'yes'; choose one of auto, on, off"):
        choice(text="hostRouting: yes\n")
    with pytest.raises(SystemExit):
        parse(["--host-routing", "maybe", "run"])


@pytest.mark.parametrize(
    ("options", "able"),
    [
        (("--mode", "ebpf"), True),
        (("--mode", "ebpf", "--host-routing", "auto"), True),
        (("--mode", "ebpf", "--host-routing", "auto", "--hooks", "xdp"), True),
        (("--mode", "ebpf", "--host-routing", "auto", "--hooks", "connect"), False),
        (("--mode", "ebpf", "--host-routing", "on"), True),
        (("--mode", "ebpf", "--host-routing", "off"), False),
        (("--mode", "nftables", "--host-routing", "auto"), False),
    ],
)
def test_which_daemons_route_past_the_stack(options: tuple[str, ...], able: bool) -> None:
    assert settings_of(parse([*options, "run"])).routes_past_stack == able
    assert not settings_of(parse([*options, "run", "--once"])).routes_past_stack


def test_a_daemon_that_did_not_watch_waits_for_a_restart() -> None:
    out = io.StringIO()
    log = Log("debug", out=out)
    off, auto = (settings_of(parse(["--mode", "ebpf", "--host-routing", word, "run"])) for word in ("off", "auto"))
    for first, kinds in ((off, set[str]()), (auto, {"Pod", "NetworkPolicy"})):
        router = HostRouter(first, lambda _: None, Jobs(log), log)
        assert router.kinds == kinds
        router.use(auto)
        assert ("wait for a restart of hotplane fields=hostRouting" in out.getvalue()) == (first is off)
        out.truncate(0)


def test_a_config_without_the_field_is_kube_proxys() -> None:
    text = b"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
    assert parse_config(text, "x").config.host_routing == ""
