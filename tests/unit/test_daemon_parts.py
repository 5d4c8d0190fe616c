"""The daemon's small parts as tables: pace, retry, ledger, groups, merged changes, health, tally, logs."""

import io
import json
import re

import msgspec
import pytest

from ctl.daemon.http.health import TO_BE_DELETED, Health, eligible
from ctl.daemon.http.tally import Tally
from ctl.daemon.log import Log
from ctl.daemon.sync.inbox import Inbox
from ctl.daemon.sync.ledger import Ledger, groups
from ctl.daemon.sync.pace import Pace
from dataplane.backoff import Backoff
from dataplane.model.decode import DecodedObject
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import ObjectRef, Service, ServiceType
from dataplane.plan.change import EntryChange, PlanChange, merged
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, HealthCheck, Plan, PlanEntry
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodeConfig
from dataplane.policy.routes import cluster_ip_routes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def entry(name: str, *backends: str, address: str = "10.96.0.1", port: int = 80, local: bool = False) -> PlanEntry:
    routes = cluster_ip_routes(
        has_cluster=bool(backends), has_local=False, internal_local=local, detects_pods=False, masquerade_all=False
    )
    frontend = Frontend(FrontendKind.CLUSTER_IP, FrontendKey(Family.IPV4, address, Protocol.TCP, port), routes)
    key = EntryKey("default", name, "", Protocol.TCP, Family.IPV4)
    return PlanEntry(key, tuple(Backend(b, 8080, False) for b in backends), (), (frontend,), internal_local=local)


def test_pace_lets_a_burst_through_and_then_one_each_interval() -> None:
    clock = Clock()
    pace = Pace(1.0, clock=clock)
    assert pace.delay() == 0
    pace.spend()
    assert pace.delay() == 0
    pace.spend()
    assert pace.delay() == pytest.approx(1.0)
    clock.now += 0.75
    assert pace.delay() == pytest.approx(0.25)
    clock.now += 10
    assert pace.delay() == 0
    pace.spend()
    pace.spend()
    assert pace.delay() == pytest.approx(1.0), "quiet time is not saved up beyond the burst"


def test_pace_without_an_interval_never_waits() -> None:
    pace = Pace(0.0, clock=Clock())
    for _ in range(10):
        assert pace.delay() == 0
        pace.spend()


def test_retry_doubles_to_a_minute_and_forgets_after_success() -> None:
    clock = Clock()
    retry = Backoff(clock=clock)
    assert retry.due_in() is None
    assert [retry.failed() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    clock.now += 45
    assert retry.due_in() == pytest.approx(15)
    clock.now += 100
    assert retry.due_in() == 0
    retry.worked()
    assert retry.due_in() is None
    assert retry.failed() == 1


def test_a_change_that_failed_is_part_of_the_next_one() -> None:
    ledger = Ledger()
    first, second, third = entry("a"), entry("a", "10.0.0.1"), entry("a", "10.0.0.2")
    plan = Plan(NodeConfig(), {second.key: second})
    change = PlanChange(entries=(EntryChange(first, second),))
    assert ledger.due(change, plan) is change
    ledger.behind([change])
    assert len(ledger) == 1
    assert ledger.services() == ["default/a"]
    plan.entries[third.key] = third
    due = ledger.due(PlanChange(entries=(EntryChange(second, third),)), plan)
    assert due.entries == (EntryChange(first, third),), "from what the kernel holds to what the plan says"


def test_a_failed_change_that_is_undone_needs_no_work() -> None:
    ledger = Ledger()
    first, second = entry("a"), entry("a", "10.0.0.1")
    ledger.behind([PlanChange(entries=(EntryChange(first, second),))])
    plan = Plan(NodeConfig(), {first.key: first})
    assert not ledger.due(PlanChange(entries=(EntryChange(second, first),)), plan)


def test_failed_settings_are_asked_for_again() -> None:
    ledger = Ledger()
    node = NodeConfig(name="n")
    ledger.behind([PlanChange(node=node, service_cidrs=("10.96.0.0/16",))])
    due = ledger.due(PlanChange(), Plan(NodeConfig(name="later"), service_cidrs=("10.97.0.0/16",)))
    assert (due.node, due.service_cidrs) == (NodeConfig(name="later"), ("10.97.0.0/16",))
    ledger.clear()
    assert len(ledger) == 0
    assert not ledger.due(PlanChange(), Plan(NodeConfig()))


def test_entries_that_share_a_frontend_stay_together() -> None:
    moved_from, moved_to = entry("a", address="10.96.0.9"), entry("b", address="10.96.0.9")
    alone = entry("c", address="10.96.0.7")
    changes = [EntryChange(moved_from, None), EntryChange(None, alone), EntryChange(None, moved_to)]
    found = groups(changes)
    assert sorted(len(group) for group in found) == [1, 2]
    assert (changes[1],) in found


def test_two_changes_in_a_row_become_one() -> None:
    one, two, three = entry("a"), entry("a", "10.0.0.1"), entry("a", "10.0.0.2")
    check = HealthCheck("default", "a", 30000, 1)
    change = merged(
        PlanChange(entries=(EntryChange(one, two),), health_checks={("default", "a"): check}),
        PlanChange(entries=(EntryChange(two, three),), node=NodeConfig(name="n")),
    )
    assert change.entries == (EntryChange(one, three),)
    assert (change.node, change.health_checks) == (NodeConfig(name="n"), {("default", "a"): check})
    back = merged(PlanChange(entries=(EntryChange(one, two),)), PlanChange(entries=(EntryChange(two, one),)))
    assert not back


def test_healthy_until_a_change_waits_too_long() -> None:
    clock = Clock()
    health = Health(60, clock)
    assert health.healthy(), "starting counts as healthy"
    assert not health.started
    health.queued()
    clock.now += 59
    health.queued()
    assert health.livez()[0] == 200
    clock.now += 2
    status, body = health.healthz()
    assert status == 503
    assert json.loads(body) | {"currentTime": ""} == {
        "lastUpdated": "0001-01-01T00:00:00Z", "currentTime": "", "nodeEligible": True, "healthy": False,
    }  # fmt: skip
    health.updated()
    status, body = health.healthz()
    assert status == 200
    assert list(json.loads(body)) == ["lastUpdated", "currentTime", "nodeEligible", "healthy", "status"]
    status, body = health.livez()
    assert list(json.loads(body)) == ["lastUpdated", "currentTime", "healthy", "status"]
    assert re.fullmatch(
        r'{"lastUpdated":"TIME","currentTime":"TIME","healthy":true,"status":'
        r'{"IPv4":{"lastUpdated":"TIME","healthy":true},"IPv6":{"lastUpdated":"TIME","healthy":true}}}'.replace(
            "TIME", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d*[1-9])?Z"
        ),
        body,
    ), body
    health.queued()
    clock.now += 61
    found = json.loads(health.livez()[1])
    assert [found["healthy"], *(family["healthy"] for family in found["status"].values())] == [False] * 3
    assert found["lastUpdated"] == found["status"]["IPv4"]["lastUpdated"]


def test_a_node_that_goes_fails_healthz_and_not_livez() -> None:
    health = Health(60, Clock())
    health.node_eligible = False
    assert (health.healthz()[0], health.livez()[0]) == (503, 200)
    reply = json.loads(health.healthz()[1])
    assert (reply["nodeEligible"], reply["healthy"]) == (False, True)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"metadata": {"name": "n"}, "spec": {}}, True),
        ({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}}, True),
        ({"metadata": {"name": "n"}, "spec": {"taints": [{"key": TO_BE_DELETED}]}}, False),
        ({"metadata": {"name": "n", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}}, False),
    ],
)
def test_which_nodes_load_balancers_may_use(node: dict[str, object], expected: bool) -> None:
    assert eligible(msgspec.Raw(msgspec.json.encode(node))) is expected


def test_what_is_put_back_does_not_undo_what_was_heard_since() -> None:
    """A batch that could not be used: of one of its objects something newer is known, one is gone by now."""

    def service(name: str, number: int) -> Service:
        return Service("default", name, ServiceType.CLUSTER_IP, cluster_ips=(f"10.96.0.{number}",))

    inbox = Inbox(["Service"])
    for name in ("stays", "changes", "goes"):
        inbox.put(DecodedObject(service(name, 1)))
    batch = inbox.take()
    inbox.put(DecodedObject(service("changes", 2)))
    inbox.remove(ObjectRef("Service", "default", "goes"))
    inbox.put_back(batch)
    again = inbox.take()
    assert {item.ref.name: item for item in again.upserts} == {
        "stays": service("stays", 1), "changes": service("changes", 2),
    }  # fmt: skip
    assert again.deletes == [ObjectRef("Service", "default", "goes")]


def test_tally_follows_changes() -> None:
    tally = Tally()
    local, empty = entry("a", "10.0.0.1", local=True), entry("a", local=True)
    tally.count(PlanChange(entries=(EntryChange(None, local), EntryChange(None, entry("b", port=81)))))
    assert (tally.entries, tally.frontends, sum(tally.internal.values()), sum(tally.external.values())) == (2, 2, 1, 0)
    tally.count(PlanChange(entries=(EntryChange(local, empty),)))
    assert (tally.entries, sum(tally.internal.values())) == (2, 0)
    tally.count(PlanChange(entries=(EntryChange(empty, None),)))
    assert (tally.entries, tally.frontends) == (1, 1)


def test_log_lines_are_one_line_each_and_read_back() -> None:
    out = io.StringIO()
    log = Log("info", "text", out)
    log.debug("not shown")
    log.info("synced", service="ns/a", reason='two words\nand "more"', ms=1.5, empty="")
    [line] = out.getvalue().splitlines()
    assert line.split(" ", 1)[1] == 'INFO synced service=ns/a reason="two words\\nand \\"more\\"" ms=1.5 empty=""'
    out = io.StringIO()
    Log("error", "json", out).error("x", n=1, service="a b")
    assert json.loads(out.getvalue()).items() >= {"level": "error", "msg": "x", "n": 1, "service": "a b"}.items()
