"""The plan's forwarding: which entries, by which nodes, and that a change costs what changed."""

from msgspec.structs import replace

from dataplane.model.forwarding import TunnelOffer
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ModelObject,
    Node,
    ObjectRef,
    Service,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)
from dataplane.plan.change import PlanChange, apply_change, diff
from dataplane.plan.planner import Planner
from dataplane.plan.types import EntryKey, Plan, PlanEntry
from dataplane.policy.forwarding import Dispatch, Forwarding, LbMode, TunnelPeer
from dataplane.policy.node import NodeConfig

NODE = NodeConfig(name="n1", addresses=("192.0.2.1", "2001:db8::1"), lb_mode=LbMode.DSR)
OFFER = NODE.offer


def speaker(number: int, *addresses: str, offer: TunnelOffer | None = OFFER) -> Node:
    """A node that announces what it speaks; None: nothing."""
    named = addresses or (f"192.0.2.{number}", f"2001:db8::{number}", f"203.0.113.{number}")
    return Node(f"n{number}", addresses=named, forwarding=offer, announced=str(offer) if offer else "")


def service(name: str = "web", **fields: object) -> Service:
    made = Service(
        "shop",
        name,
        ServiceType.NODE_PORT,
        cluster_ips=("10.96.0.1",),
        ports=(ServicePortSpec("http", Protocol.TCP, 80, 30080),),
    )
    return replace(made, **fields)


def slice_of(*endpoints: Endpoint, owner: str = "web", **fields: object) -> EndpointSlice:
    port = EndpointPort("http", Protocol.TCP, 8080)
    return replace(EndpointSlice("shop", f"{owner}-1", owner, Family.IPV4, (port,), endpoints), **fields)


def pods(*nodes: int) -> list[Endpoint]:
    """One endpoint on each of these nodes."""
    return [make_endpoint(f"10.1.{node}.{number}", node=f"n{node}") for number, node in enumerate(nodes, 1)]


def key(name: str = "web", family: Family = Family.IPV4, protocol: Protocol = Protocol.TCP) -> EntryKey:
    return EntryKey("shop", name, "http", protocol, family)


def planned(*objects: object, node: NodeConfig = NODE, own: bool = True) -> Planner:
    """A planner that knows a Service with an endpoint on each of three nodes. own: this node announces itself."""
    planner = Planner(node)
    planner.update([service(), slice_of(*pods(1, 2, 3)), *([speaker(1)] if own else []), *objects])  # type: ignore[list-item]
    return planner


def tunnels(planner: Planner, of: EntryKey | None = None) -> tuple[str, ...]:
    return planner.plan.entries[of or key()].tunnels


def test_backends_of_nodes_that_speak_it_have_their_node_s_address() -> None:
    planner = planned(speaker(2), speaker(3))
    entry = planner.plan.entries[key()]
    assert entry.forwarding is Forwarding.DSR
    assert [str(b) for b in entry.cluster] == ["10.1.1.1:8080", "10.1.2.2:8080", "10.1.3.3:8080"]
    assert entry.tunnels == ("", "192.0.2.2", "192.0.2.3")
    assert planner.plan.tunnel_peers == {
        *("192.0.2.2", "2001:db8::2", "203.0.113.2"),
        *("192.0.2.3", "2001:db8::3", "203.0.113.3"),
    }
    assert planner.forwards


def test_nodes_that_do_not_speak_it_get_snat() -> None:
    planner = planned(speaker(2, offer=None), speaker(3, offer=TunnelOffer(OFFER.port + 1, OFFER.vni)))
    assert planner.plan.entries[key()].forwarding is Forwarding.DSR
    assert tunnels(planner) == ("", "", "")
    assert planner.plan.tunnel_peers == frozenset()
    assert planner.tunnels.why_not_to("n2") == "does not announce that it speaks it"
    assert "port=8474" in planner.tunnels.why_not_to("n3")
    planner.update([speaker(3)])
    assert planner.tunnels.why_not_to("n3") == ""


def test_each_node_gets_what_it_opens() -> None:
    """What this node is to send, or VXLAN; told when it changes, and that alone."""
    old = TunnelOffer(OFFER.port, OFFER.vni)
    planner = planned(speaker(2, offer=old), speaker(3), node=replace(NODE, lb_dispatch=Dispatch.GENEVE))
    to_n3 = dict.fromkeys(("192.0.2.3", "2001:db8::3", "203.0.113.3"), Dispatch.GENEVE)
    assert tunnels(planner) == ("", "192.0.2.2", "192.0.2.3")
    assert planner.plan.tunnel_formats == to_n3
    assert [planner.tunnels.format_to(name) for name in ("n2", "n3")] == [Dispatch.VXLAN, Dispatch.GENEVE]
    change = planner.update([speaker(2)])
    to_n2 = dict.fromkeys(("192.0.2.2", "2001:db8::2", "203.0.113.2"), Dispatch.GENEVE)
    assert (change.entries, change.tunnel_peers, change.tunnel_formats) == ((), None, to_n3 | to_n2)
    change = planner.update([speaker(3, offer=old)])
    assert (change.entries, change.tunnel_formats) == ((), to_n2)
    assert not planner.update([speaker(2)])
    change = planner.set_node(NODE)
    assert (change.tunnel_formats, planner.plan.tunnel_formats) == ({}, {})
    change = planner.set_node(replace(NODE, lb_dispatch=Dispatch.GENEVE))
    assert change.tunnel_formats == to_n2
    change = planner.update(deletes=[ObjectRef("Node", "", "n2")])
    assert (change.tunnel_formats, tunnels(planner)) == ({}, ("", "", "192.0.2.3"))


def test_addresses_that_a_node_has_instead_of_others() -> None:
    """Told as what every address of before leads to now, whatever it became in between."""

    def at(*addresses: str) -> Node:
        return replace(speaker(2), addresses=addresses)

    planner = planned(at("192.0.2.2", "2001:db8::2"), speaker(3))
    assert planner.plan.tunnel_moves == {}
    change = planner.update([at("192.0.2.20", "2001:db8::2")])
    assert change.tunnel_moves == planner.plan.tunnel_moves == {"192.0.2.2": "192.0.2.20"}
    assert tunnels(planner) == ("", "192.0.2.20", "192.0.2.3")
    assert planner.update([replace(at("192.0.2.20", "2001:db8::2"), zone="other")]).tunnel_moves is None
    change = planner.update([at("192.0.2.21")])
    assert change.tunnel_moves == {"192.0.2.2": "192.0.2.21", "192.0.2.20": "192.0.2.21"}
    change = planner.update([at("192.0.2.2")])
    assert change.tunnel_moves == {"192.0.2.20": "192.0.2.2", "192.0.2.21": "192.0.2.2"}
    assert planner.update(deletes=[ObjectRef("Node", "", "n2")]).tunnel_moves is None


def test_a_peer_named_by_hand_gets_what_it_is_said_to_open() -> None:
    """Not what its Node object says."""
    peers = (TunnelPeer("n2", "192.0.2.2", (Dispatch.GENEVE,)), TunnelPeer("n3", "192.0.2.3"))
    planner = planned(speaker(3), node=replace(NODE, lb_peers=peers, lb_dispatch=Dispatch.GENEVE), own=False)
    assert planner.plan.tunnel_formats == {"192.0.2.2": Dispatch.GENEVE}


def test_this_node_is_no_peer_of_its_own() -> None:
    planner = planned(speaker(2))
    assert tunnels(planner) == ("", "192.0.2.2", "")
    assert "192.0.2.1" not in planner.plan.tunnel_peers


def test_nothing_is_forwarded_before_others_know_that_this_node_may_send() -> None:
    """They would drop it. What they send is accepted, for they may know already."""
    planner = planned(speaker(2), own=False)
    assert tunnels(planner) == ("", "", "")
    assert "192.0.2.2" in planner.plan.tunnel_peers
    why = planner.tunnels.why_not_from_here
    assert why(Family.IPV4) == "this node does not announce that it speaks it"
    change = planner.update([speaker(1)])
    assert ([c.key for c in change.entries], tunnels(planner)) == ([key()], ("", "192.0.2.2", ""))
    assert why(Family.IPV4) == why(Family.IPV6) == ""
    planner.update([speaker(1, "198.51.100.1", "2001:db8::1")])
    assert tunnels(planner) == ("", "", "")
    assert why(Family.IPV4) == "192.0.2.1, from which this node sends, is none of its Node object's addresses"
    assert why(Family.IPV6) == ""
    planner.update([speaker(1)])
    planner.update(deletes=[ObjectRef("Node", "", "n1")])
    assert tunnels(planner) == ("", "", "")


def test_a_node_without_an_address_of_the_family_gets_snat_in_it() -> None:
    """The address of the other family is never used."""
    six = [make_endpoint("fd00::2", node="n2"), make_endpoint("fd00::3", node="n3")]
    planner = planned(
        service(cluster_ips=("10.96.0.1", "fd96::1")),
        slice_of(*six, name="web-6", family=Family.IPV6),
        speaker(2),
        speaker(3, "192.0.2.3"),
    )
    assert tunnels(planner) == ("", "192.0.2.2", "192.0.2.3")
    assert tunnels(planner, key(family=Family.IPV6)) == ("2001:db8::2", "")


def test_peers_named_by_hand_count_whatever_their_nodes_say() -> None:
    peers = (TunnelPeer("n2", "198.51.100.2"), TunnelPeer("n2", "2001:db8::22"), TunnelPeer("n3", "198.51.100.3"))
    planner = planned(speaker(3, offer=None), node=replace(NODE, lb_peers=peers), own=False)
    assert tunnels(planner) == ("", "198.51.100.2", "198.51.100.3")
    assert planner.plan.tunnel_peers == {"198.51.100.2", "2001:db8::22", "198.51.100.3"}
    change = planner.set_node(NODE)
    assert tunnels(planner) == ("", "", "")
    assert change.tunnel_peers == frozenset()


def test_only_external_traffic_under_policy_cluster_is_forwarded() -> None:
    for plain in (service(ports=(ServicePortSpec("http", Protocol.TCP, 80),)), service(external_local=True)):
        planner = planned(speaker(2))
        assert planner.plan.entries[key()].forwarding is Forwarding.DSR
        planner.update([plain])
        entry = planner.plan.entries[key()]
        assert (entry.forwarding, entry.tunnels) == (Forwarding.SNAT, ())


def test_every_kind_of_external_frontend_is_forwarded() -> None:
    bare = ServicePortSpec("http", Protocol.TCP, 80)
    outside = ("203.0.113.80",)
    for item in (service(external_ips=outside), service(load_balancer_ips=outside)):
        planner = planned(replace(item, ports=(bare,)), speaker(2))
        assert tunnels(planner) == ("", "192.0.2.2", "")


def test_a_service_chooses_for_itself() -> None:
    planner = planned(speaker(2), node=replace(NODE, lb_mode=LbMode.SNAT))
    assert not planner.forwards
    assert planner.plan.entries[key()] == replace(planner.plan.entries[key()], forwarding=Forwarding.SNAT, tunnels=())
    planner.update([service(forwarding_mode="tunnel")])
    assert planner.forwards
    assert planner.plan.entries[key()].forwarding is Forwarding.TUNNEL
    assert tunnels(planner) == ("", "192.0.2.2", "")
    planner.update([service(forwarding_mode="hybrid")])
    assert planner.plan.entries[key()].forwarding is Forwarding.DSR
    planner.update([service()])
    assert not planner.forwards
    planner.update([service(forwarding_mode="dsr")])
    planner.update(deletes=[service().ref])
    assert not planner.forwards
    assert not planner.plan.entries


def test_hybrid_and_sctp() -> None:
    ports = tuple(ServicePortSpec("http", protocol, 80, 30080) for protocol in Protocol)
    slice_ports = tuple(EndpointPort("http", protocol, 8080) for protocol in Protocol)
    for mode, ways in ((LbMode.HYBRID, ("dsr", "snat", "snat")), (LbMode.TUNNEL, ("tunnel", "tunnel", "snat"))):
        planner = planned(
            service(ports=ports), slice_of(*pods(2), ports=slice_ports), speaker(2), node=replace(NODE, lb_mode=mode)
        )
        protocols = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
        assert tuple(planner.plan.entries[key(protocol=p)].forwarding.value for p in protocols) == ways


def test_a_mode_that_cannot_forward_plans_snat_whatever_is_asked_for() -> None:
    """Whom it knows it goes on to accept packets from: flows from before may still be there."""
    planner = planned(service(forwarding_mode="dsr"), speaker(2), node=replace(NODE, snat_only=True))
    assert planner.plan.entries[key()].forwarding is Forwarding.SNAT
    assert "192.0.2.2" in planner.plan.tunnel_peers
    assert not planner.forwards


def test_a_node_that_begins_to_speak_changes_only_entries_with_endpoints_there() -> None:
    other = service("other", cluster_ips=("10.96.0.2",), ports=(ServicePortSpec("http", Protocol.TCP, 80, 30081),))
    planner = planned(other, slice_of(make_endpoint("10.1.3.9", node="n3"), owner="other"), speaker(2))
    looked_at: list[EntryKey] = []
    entry = planner._entry

    def counted(*given: object) -> PlanEntry:
        looked_at.append(given[0])  # type: ignore[arg-type]
        return entry(*given)  # type: ignore[arg-type]

    planner._entry = counted  # type: ignore[method-assign,assignment]
    assert not planner.update([speaker(2), speaker(4, offer=None)])
    change = planner.update([speaker(4)])
    assert (change.entries, change.tunnel_peers) == ((), planner.plan.tunnel_peers)
    assert looked_at == [], "no endpoint runs on node 4"
    change = planner.update(deletes=[ObjectRef("Node", "", "n2")])
    assert [c.key for c in change.entries] == [key()] == looked_at
    looked_at.clear()
    change = planner.update([speaker(3)])
    assert {c.key for c in change.entries} == {key(), key("other")} == set(looked_at)
    looked_at.clear()
    change = planner.update([speaker(3, "192.0.2.33")])
    assert tunnels(planner) == ("", "", "192.0.2.33")
    assert change.tunnel_peers is not None
    assert "192.0.2.3" not in change.tunnel_peers
    assert not planner.update([speaker(3, "192.0.2.33")])


def test_endpoints_that_move_are_forwarded_where_they_are() -> None:
    planner = planned(speaker(2), speaker(3))
    moved = pods(1, 2, 3)
    moved[2] = make_endpoint(moved[2].address, node="n2")
    change = planner.update([slice_of(*moved)])
    assert [c.key for c in change.entries] == [key()], "though the backends are the same"
    assert tunnels(planner) == ("", "192.0.2.2", "192.0.2.2")
    planner.update([speaker(3, "192.0.2.33")])
    assert tunnels(planner) == ("", "192.0.2.2", "192.0.2.2")


def test_the_order_of_events_does_not_matter() -> None:
    objects: list[ModelObject] = [service(), slice_of(*pods(1, 2, 3)), speaker(1), speaker(2), speaker(3)]
    at_once = Planner(NODE)
    at_once.update(objects)
    one_by_one = Planner(NODE)
    for item in reversed(objects):
        one_by_one.update([item])
    assert one_by_one.plan == at_once.plan
    renamed = Planner(replace(NODE, name="n2", addresses=("192.0.2.2",)))
    renamed.update(objects)
    renamed.set_node(NODE)
    assert renamed.plan == at_once.plan


def test_differences_of_plans_hold_ways_and_peers() -> None:
    before, after = Plan(NODE), planned(speaker(2)).plan
    assert diff(before, after).tunnel_peers == after.tunnel_peers
    for old, new in ((before, after), (after, before)):
        now = Plan(NODE, dict(old.entries), tunnel_peers=old.tunnel_peers)
        apply_change(now, diff(old, new))
        assert (now.entries, now.tunnel_peers) == (new.entries, new.tunnel_peers)
    assert PlanChange(tunnel_peers=frozenset())
    assert not PlanChange()
