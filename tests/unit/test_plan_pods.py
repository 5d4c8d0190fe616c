"""Pods in the plan: published ports and their conflicts, connect time off."""

from msgspec.structs import replace

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import HostPort, Namespace, ObjectRef, Pod, Service, ServicePortSpec, ServiceType
from dataplane.oracle.decide import Packet, Verdict, decide
from dataplane.plan.change import PlanChange, apply_change, diff
from dataplane.plan.planner import Planner
from dataplane.plan.types import EntryKey, OffPod, Plan
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses

NODE = NodeConfig(
    name="here",
    addresses=("172.18.0.2", "fd00::2", "10.244.0.1"),
    detector=LocalDetector(cidrs=("10.244.0.0/16", "fd00:10::/64")),
    nodeports=NodePortAddresses(addresses=("172.18.0.2", "fd00::2")),
    host_ports=True,
)
HTTP = HostPort(Protocol.TCP, 8080, 80)


def pod(name: str = "web", *ports: HostPort, **fields: object) -> Pod:
    made = Pod("shop", name, f"uid-{name}", "here", ("10.244.0.7", "fd00:10::7"), host_ports=ports or (HTTP,))
    return replace(made, **fields)


def service(name: str = "svc", port: int = 8080, **fields: object) -> Service:
    made = Service(
        "shop", name, ServiceType.NODE_PORT, ("10.96.0.1",), ports=(ServicePortSpec("", Protocol.TCP, 80, port),)
    )
    return replace(made, **fields)


def published(plan: Plan) -> dict[str, list[str]]:
    """Entry and backend -> where it answers."""
    return {
        f"{key.service} -> {entry.cluster[0]}": [str(f.key) for f in entry.frontends]
        for key, entry in plan.entries.items()
        if entry.frontends and entry.frontends[0].kind.value == "hostPort"
    }


def problems(planner: Planner) -> list[str]:
    return [str(problem) for found in planner.problems.values() for problem in found]


def test_a_port_is_published_on_all_of_the_nodes_addresses() -> None:
    planner = Planner(NODE)
    change = planner.update([pod()])
    assert [c.key.service for c in change.entries] == ["shop/web:8080"] * 2
    assert published(planner.plan) == {
        "shop/web:8080 -> 10.244.0.7:80": ["172.18.0.2:8080/tcp", "10.244.0.1:8080/tcp"],
        "shop/web:8080 -> [fd00:10::7]:80": ["[fd00::2]:8080/tcp"],
    }
    assert problems(planner) == []
    assert not planner.update([pod()])


def test_both_families_have_entries() -> None:
    planner = Planner(NODE)
    planner.update([pod()])
    keys = [EntryKey("shop", "web", "8080", Protocol.TCP, family) for family in Family]
    assert [str(planner.plan.entries[key].cluster[0]) for key in keys] == ["10.244.0.7:80", "[fd00:10::7]:80"]
    assert all(planner.plan.entries[key].cluster[0].local for key in keys)


def test_outside_clients_keep_their_address_and_a_pod_that_meets_itself_does_not() -> None:
    planner = Planner(NODE)
    planner.update([pod()])
    for source, masquerade in (
        ("203.0.113.9", False),
        ("10.244.3.3", False),
        ("172.18.0.2", False),
        ("10.244.0.7", True),
    ):
        found = decide(planner.plan, Packet(source, "172.18.0.2", 8080, Protocol.TCP))
        assert (found.verdict, [str(b) for b in found.backends]) == (Verdict.DNAT, ["10.244.0.7:80"])
        assert found.masquerade == masquerade, source
        assert "hostPort of Pod shop/web" in found.reasons[0]
        assert not any("Service" in reason or "Policy" in reason for reason in found.reasons)


def test_a_host_ip_narrows() -> None:
    planner = Planner(NODE)
    one = HostPort(Protocol.TCP, 53, 5353, "10.244.0.1")
    all_ipv6 = HostPort(Protocol.UDP, 53, 5353, "::")
    planner.update([pod("dns", one, all_ipv6)])
    assert published(planner.plan) == {
        "shop/dns:10.244.0.1:53 -> 10.244.0.7:5353": ["10.244.0.1:53/tcp"],
        "shop/dns:[::]:53 -> [fd00:10::7]:5353": ["[fd00::2]:53/udp"],
    }
    assert problems(planner) == []


def test_a_host_ip_that_is_not_the_nodes_is_told() -> None:
    planner = Planner(NODE)
    planner.update([pod("a", replace(HTTP, address="192.0.2.1")), pod("b", replace(HTTP, address="127.0.0.1"))])
    assert published(planner.plan) == {}
    advice = "; name another address, or none"
    assert problems(planner) == [
        f"Pod shop/a: hostPort 8080: hostIP 192.0.2.1 is left out: no address of this node{advice}",
        f"Pod shop/b: hostPort 8080: hostIP 127.0.0.1 is left out: this mode serves no loopback address{advice}",
    ]
    planner.set_node(replace(NODE, addresses=("192.0.2.1",)))
    assert published(planner.plan) == {"shop/a:192.0.2.1:8080 -> 10.244.0.7:80": ["192.0.2.1:8080/tcp"]}


def test_loopback_where_the_mode_serves_it() -> None:
    planner = Planner(replace(NODE, nodeports=NodePortAddresses(any_local=True, loopback=True)))
    planner.update([pod()])
    found = decide(planner.plan, Packet("127.0.0.1", "127.0.0.1", 8080, Protocol.TCP))
    assert (found.verdict, found.masquerade) == (Verdict.DNAT, True)
    assert "loopback" in found.reasons[-1]
    assert decide(planner.plan, Packet("::1", "::1", 8080, Protocol.TCP)).verdict is Verdict.ACCEPT


def test_what_makes_a_pod_drop_out() -> None:
    gone = (
        {"terminating": True}, {"finished": True}, {"addresses": ()}, {"host_ports": ()}, {"node": "elsewhere"},
    )  # fmt: skip
    for fields in gone:
        planner = Planner(NODE)
        planner.update([pod()])
        assert published(planner.plan)
        change = planner.update([pod(**fields)])
        assert [c.new for c in change.entries] == [None, None], fields
        assert planner.plan.entries == {}
    planner = Planner(NODE)
    planner.update([pod()])
    planner.update(deletes=[ObjectRef("Pod", "shop", "web")])
    assert planner.plan.entries == {}


def test_not_asked_for_nothing_is_published() -> None:
    planner = Planner(replace(NODE, host_ports=False))
    planner.update([pod()])
    assert planner.plan.entries == {}


def test_of_two_pods_the_older_one_wins() -> None:
    planner = Planner(NODE)
    young = pod("a", created="2026-01-02T00:00:00Z", addresses=("10.244.0.8",))
    old = pod("b", created="2026-01-01T00:00:00Z", addresses=("10.244.0.9",))
    planner.update([young])
    planner.update([old])
    assert list(published(planner.plan)) == ["shop/b:8080 -> 10.244.0.9:80"]
    assert problems(planner)[0] == (
        "Pod shop/a: hostPort 172.18.0.2:8080/tcp: already taken by the older Pod shop/b; it is left out, give one "
        "another port"
    )
    planner.update(deletes=[ObjectRef("Pod", "shop", "b")])
    assert list(published(planner.plan)) == ["shop/a:8080 -> 10.244.0.8:80"]
    assert problems(planner) == []


def test_a_service_goes_before_a_pod_where_it_answers() -> None:
    planner = Planner(NODE)
    planner.update([pod(addresses=("10.244.0.7",))])
    seen = planner.plan
    change = planner.update([service()])
    assert published(seen) == {"shop/web:8080 -> 10.244.0.7:80": ["10.244.0.1:8080/tcp"]}
    assert {c.key.name for c in change.entries} == {"svc", "web"}
    [text] = problems(planner)
    assert "hostPort 172.18.0.2:8080/tcp: already taken by Service shop/svc, and Services go before Pods" in text
    found = decide(planner.plan, Packet("203.0.113.9", "172.18.0.2", 8080, Protocol.TCP))
    assert found.service == "shop/svc"
    planner.update([service(external_ips=("10.244.0.1",), ports=(ServicePortSpec("", Protocol.TCP, 8080, 8080),))])
    assert published(planner.plan) == {}
    planner.update(deletes=[ObjectRef("Service", "shop", "svc")])
    assert len(published(planner.plan)["shop/web:8080 -> 10.244.0.7:80"]) == 2
    assert problems(planner) == []


def test_a_service_port_of_the_same_name() -> None:
    """A Service's port may be named by digits, and its Service as the Pod."""
    named = replace(service("web", 0), ports=(ServicePortSpec("8080", Protocol.TCP, 80),))
    plan, planner = Plan(NODE), Planner(NODE)
    steps: list[PlanChange] = []
    for upserts, deletes in (
        ([pod(addresses=("10.244.0.7",))], []), ([named], []), ([], [named.ref]), ([named], []), ([], [pod().ref]),
    ):  # fmt: skip
        steps.append(planner.update(upserts, deletes))
        assert len({c.key for c in steps[-1].entries}) == len(steps[-1].entries)
        apply_change(plan, steps[-1])
        assert plan.entries == planner.plan.entries
    assert "is named as a port of Service shop/web is" not in "".join(problems(planner))
    assert [bool(step.entries) for step in steps] == [True, True, True, True, False]


def test_connect_time_off() -> None:
    planner = Planner(replace(NODE, host_ports=False))
    change = planner.update([Namespace("shop", False, "label"), pod("a"), pod("b", connect_time=True)])
    off = OffPod("shop", "a", "uid-a", ("10.244.0.7", "fd00:10::7"), False, "label of Namespace shop")
    assert change.connect_off == planner.plan.connect_off == {("shop", "a"): off}
    assert planner.update([pod("c", node="elsewhere")]).connect_off is None
    change = planner.update([Namespace("shop"), pod("b", connect_time=False, connect_time_by="annotation")])
    assert change
    assert [item.why for item in planner.plan.connect_off.values()] == ["annotation of the Pod"]
    copy = Plan(planner.plan.node)
    apply_change(copy, diff(copy, planner.plan))
    assert copy == planner.plan
    planner.update(deletes=[pod("b").ref])
    assert planner.plan.connect_off == {}
