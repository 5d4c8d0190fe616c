"""The benchmark's cluster is what it says: so many Services, few of them real, and every change changes something."""

import msgspec
import pytest

from dataplane.bench.objects import (
    ENDPOINTS,
    FLOWS_PORT,
    LOCAL_NODE_PORT,
    REMOTE_NODE_PORT,
    SERVER_PORT,
    TCP_PORT,
    Backend,
    Changes,
    Form,
    Shape,
    chunks,
    cluster_ip,
    flow_slice,
    flows_ip,
)
from dataplane.bench.scenarios import Position, index
from dataplane.model.decode import decode, decode_object
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import ModelObject, Service
from dataplane.plan.planner import Planner
from dataplane.plan.types import FrontendKey, PlanEntry
from dataplane.policy.node import NodeConfig, NodePortAddresses

LOCAL, REMOTE = Backend("10.244.1.11", "node1"), Backend("10.244.2.11", "node2")
NODE = NodeConfig("node1", addresses=("172.18.0.1",), nodeports=NodePortAddresses(addresses=("172.18.0.1",)))


def objects(services: int) -> list[ModelObject]:
    return decoded(Shape(services), LOCAL, REMOTE)


def decoded(shape: Shape, local: Backend, remote: Backend) -> list[ModelObject]:
    found: list[ModelObject] = []
    for chunk in chunks(shape, local, remote):
        read = decode(chunk, "test")
        assert not read.problems
        found += read.objects
    return found


def planner(services: int) -> Planner:
    planner = Planner(NODE)
    planner.update(objects(services))
    return planner


def entry(planner: Planner, address: str, protocol: Protocol, port: int) -> PlanEntry:
    key = FrontendKey(Family.IPV4, address, protocol, port)
    return next(entry for frontend, entry in planner.plan.frontends() if frontend.key == key)


@pytest.mark.parametrize("services", [1, 2, 3, 50, 1200])
def test_positions_lead_to_the_pod_and_the_rest_elsewhere(services: int) -> None:
    made = objects(services)
    assert sum(isinstance(o, Service) and o.name.startswith("svc-") for o in made) == services
    plan = planner(services)
    real = {cluster_ip(index(position, services)) for position in Position}
    for address in real:
        for protocol, port in ((Protocol.TCP, TCP_PORT), (Protocol.UDP, 53)):
            backends = entry(plan, address, protocol, port).cluster
            assert {b.address for b in backends} == {LOCAL.address}
            assert sorted(b.port for b in backends) == list(range(SERVER_PORT, SERVER_PORT + ENDPOINTS))
        assert len(entry(plan, address, Protocol.TCP, 5201).cluster) == 1
    for number in range(services):
        if cluster_ip(number) not in real:
            backends = entry(plan, cluster_ip(number), Protocol.TCP, TCP_PORT).cluster
            assert len(backends) == ENDPOINTS
            assert LOCAL.address not in {b.address for b in backends}


def test_addresses_are_distinct_up_to_the_largest_size() -> None:
    assert len({cluster_ip(number) for number in range(30000)}) == 30000


def test_node_ports_lead_here_and_there() -> None:
    plan = planner(1)
    for port, backend in ((LOCAL_NODE_PORT, LOCAL), (REMOTE_NODE_PORT, REMOTE)):
        for protocol in (Protocol.TCP, Protocol.UDP):
            assert {b.address for b in entry(plan, "", protocol, port).cluster} == {backend.address}


@pytest.mark.parametrize("services", [1, 3, 4, 20, 130, 6000])
def test_every_change_changes_and_never_a_used_service(services: int) -> None:
    plan, changes = planner(services), Changes(Shape(services))
    before = {number: entry(plan, cluster_ip(index(number, services)), Protocol.TCP, TCP_PORT) for number in Position}
    for _ in range(300):
        value = decode_object(changes.next()).value
        assert value is not None
        assert plan.update([value]), "an endpoint change that changes nothing"
    undo = changes.undo()
    assert (undo is None) == (services > 3)
    if undo is not None:
        value = decode_object(undo).value
        assert value is not None
        plan.update([value])
    for position, then in before.items():
        assert entry(plan, cluster_ip(index(position, services)), Protocol.TCP, TCP_PORT) == then


def test_services_over_the_same_endpoints_and_with_affinity() -> None:
    plan = Planner(NODE)
    plan.update(decoded(Shape(50, form=Form.SHARED), LOCAL, REMOTE))
    fillers = [entry(plan, cluster_ip(number), Protocol.TCP, TCP_PORT) for number in (3, 7, 44)]
    assert len({frozenset(b.address for b in filler.cluster) for filler in fillers}) == 1
    made = decoded(Shape(50, form=Form.AFFINITY, flows=2), LOCAL, REMOTE)
    assert {o.affinity_seconds > 0 for o in made if isinstance(o, Service)} == {True}
    assert {o.affinity_seconds > 0 for o in objects(50) if isinstance(o, Service)} == {False}


@pytest.mark.parametrize("form", [Form.PLAIN, Form.LARGE])
def test_the_service_for_flows_has_its_endpoints_and_gets_more(form: Form) -> None:
    plan = Planner(NODE)
    plan.update(decoded(Shape(3, flows=40, form=form), LOCAL, REMOTE))
    assert len(entry(plan, flows_ip(), Protocol.TCP, TCP_PORT).cluster) == 40
    more = [decode_object(msgspec.json.encode(flow_slice(n, [LOCAL], Family.IPV4))).value for n in range(40, 80)]
    plan.update([value for value in more if value is not None])
    ports = [backend.port for backend in entry(plan, flows_ip(), Protocol.TCP, TCP_PORT).cluster]
    assert sorted(ports) == list(range(FLOWS_PORT, FLOWS_PORT + 80))


@pytest.mark.parametrize(("endpoints", "family"), [(1, Family.IPV4), (64, Family.IPV4), (5, Family.IPV6)])
def test_other_sizes_and_the_other_family(endpoints: int, family: Family) -> None:
    shape = Shape(300, endpoints, family)
    local, remote = (LOCAL, REMOTE) if family is Family.IPV4 else (Backend("fd00::1", "node1"), Backend("fd00::2", "b"))
    plan = Planner(NODE)
    plan.update(decoded(shape, local, remote))
    for number in (0, 7, 260, 299):
        key = FrontendKey(family, cluster_ip(number, family), Protocol.TCP, TCP_PORT)
        assert len(next(entry for f, entry in plan.plan.frontends() if f.key == key).cluster) == endpoints
    changes = Changes(shape)
    for _ in range(20):
        value = decode_object(changes.next()).value
        assert value is not None
        assert plan.update([value])
