"""Where endpoints run, as far as names tell."""

from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    ObjectRef,
    Service,
    ServicePortSpec,
    traits,
)
from dataplane.plan.planner import Planner
from dataplane.policy.node import NodeConfig

SERVICE = Service("a", "s", cluster_ips=("10.96.0.1",), ports=(ServicePortSpec("", Protocol.TCP, 80),))


def pieces(*names: str, name: str = "s-1") -> EndpointSlice:
    """A slice with one endpoint on each of these nodes."""
    endpoints = tuple(Endpoint(f"10.0.0.{number}", traits(node=node)) for number, node in enumerate(names, 1))
    return EndpointSlice("a", name, "s", Family.IPV4, (EndpointPort("", Protocol.TCP, 80),), endpoints)


def unplaced(planner: Planner) -> list[str]:
    (entry,) = planner.plan.entries.values()
    return [backend.address.removeprefix("10.0.0.") for backend in entry.unplaced]


def planner(*names: str, vouched: bool = True, nodes: tuple[str, ...] = ()) -> Planner:
    made = Planner(NodeConfig(name="me"), vouched=vouched)
    made.update([SERVICE, pieces(*names), *(Node(name) for name in nodes)])
    return made


def test_names_of_an_api_server_are_believed_once_this_nodes_own_is_known() -> None:
    assert unplaced(planner("me", "n2", "")) == ["3"]
    assert unplaced(planner("n2", "", nodes=("me",))) == ["2"]
    assert unplaced(planner("n2", "")) == ["1", "2"]


def test_names_in_manifests_are_believed_where_a_node_has_them() -> None:
    assert unplaced(planner("me", "n2", "n3", "", vouched=False)) == ["2", "3", "4"]
    assert unplaced(planner("me", "n2", "n3", "", vouched=False, nodes=("n2",))) == ["3", "4"]
    assert unplaced(planner("n2", vouched=False, nodes=("n2",))) == ["1"]


def test_what_becomes_known_changes_other_services_entries() -> None:
    made = planner("n2")
    assert unplaced(made) == ["1"]
    change = made.update([Node("me")])
    assert [entry.new.unplaced for entry in change.entries if entry.new] == [()]
    assert not made.update([], [ObjectRef("Node", "", "me")])  # it stays as it was last
    made = planner("n2")
    made.update([pieces("me", name="s-2")])
    assert unplaced(made) == []
    made.update([], [ObjectRef("EndpointSlice", "a", "s-2")])
    assert unplaced(made) == ["1"]
    made.set_node(NodeConfig(name="n2"))
    assert unplaced(made) == []


def test_only_a_name_that_nobody_has_is_doubted() -> None:
    assert planner("me").places.doubt() == planner("", "").places.doubt() == ""
    assert planner("n2", nodes=("me",)).places.doubt() == ""
    assert "'me'" in planner("n2").places.doubt()
    assert "'me'" in planner("", nodes=("n2",)).places.doubt()
