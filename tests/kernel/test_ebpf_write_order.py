"""The order of writes in a change of the maps (bpf/lookup.h, balance()), looked at between any two of them.

Whoever reads meanwhile may have begun with the old frontend or with the new one: at each moment everything that the
frontends in the map lead to must be there, and alive.
"""

from collections.abc import Callable, Iterator

import msgspec
import pytest
from scapy.layers.inet import UDP

from dataplane.model.net import Family, Protocol
from dataplane.plan.types import PlanEntry
from dataplane.planes.ebpf.maps import members, tables
from dataplane.planes.ebpf.maps.encode import BACKEND, SERVICE, address_text, frontend_key, stored_frontend
from dataplane.planes.ebpf.maps.members import IN_CLUSTER, IN_LOCAL
from dataplane.policy.algorithm import Algorithm
from dataplane.policy.difference import LARGE
from dataplane.policy.endpoints import Backend
from dataplane.policy.maglev import Hashing
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry, ip, ip_of
from tests.kernel.test_tc_packets import ADDRESSES, FAMILIES

PORT = 30080


@pytest.fixture(scope="module")
def _bench() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture(params=[LARGE, 1], ids=["small", "large"])
def node(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _bench: Bench) -> Iterator[Bench]:
    """The bench, without Services. Every entry is treated as it is, or as one with many backends."""
    monkeypatch.setattr(members, "LARGE", request.param)
    yield _bench
    for old in list(_bench.plan.entries.values()):
        _bench.remove(old)


@pytest.fixture
def between(node: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have something done before and after each write to a map, and at the barrier."""

    def use(look: Callable[[], None]) -> None:
        for target, name in ((node.maps, "put_many"), (node.maps, "remove"), (tables, "full_barrier")):
            monkeypatch.setattr(target, name, _between(getattr(target, name), look))

    return use


def _between(write: Callable[..., object], look: Callable[[], None]) -> Callable[..., object]:
    def looked_at(*arguments: object) -> object:
        look()
        result = write(*arguments)
        look()
        return result

    return looked_at


def service(family: Family, *numbers: int, local: int = 0, local_policy: bool = True) -> PlanEntry:
    """A Service of remote backends with these numbers, and of so many on this node, with a node port of UDP."""
    remote, pod = ADDRESSES[family][2:4]
    backends = [remote[:-1] + str(number) for number in numbers] + [pod[:-1] + str(n) for n in range(2, 2 + local)]
    return entry("changing", backends, protocol=Protocol.UDP, node_port=PORT, family=family, local_policy=local_policy)


def faults(node: Bench) -> list[str]:
    """What a reader would find amiss now."""
    backends = list(BACKEND.iter_unpack(node.maps.memory["backends"]))
    services = list(SERVICE.iter_unpack(node.maps.memory["services"]))
    slots = node.maps.memory["slots"].cast("Q")
    found = []
    for key, value in node.maps.items("frontends"):
        frontend, name = stored_frontend(value), str(frontend_key(key))
        if not services[frontend.service][0].strip(b"\0"):
            found.append(f"{name} is of no service")
        for (base, count), membership in zip(frontend.sets.runs(), (IN_CLUSTER, IN_LOCAL), strict=True):
            for at in range(base, base + count):
                address, _, _, flags, _, owner, _ = backends[slots[at]]
                if owner != frontend.service or not flags & membership:
                    found.append(f"{name}, slot {at}: {address_text(address)} has flags {flags}, service {owner}")
    return found


def generations(node: Bench) -> list[int]:
    """Of the frontends in the map."""
    return [stored_frontend(value).generation for _, value in node.maps.items("frontends")]


CHANGES = (
    (2, 3, 4, 5),
    (2,),
    (6, 7, 8),
    (6, 7, 9),
    (2, 3, 4, 5, 6, 7, 8, 9),
    (8, 9),
)


def weighted(plain: PlanEntry) -> PlanEntry:
    """With weights from 1 to 5, by the last digit of the address and the number of endpoints."""
    turn = len(plain.cluster)

    def sets(members: tuple[Backend, ...]) -> tuple[Backend, ...]:
        return tuple([msgspec.structs.replace(b, weight=1 + (int(b.address[-1]) + turn) % 5) for b in members])

    return msgspec.structs.replace(plain, cluster=sets(plain.cluster), local=sets(plain.local), weighted=True)


def hashed(plain: PlanEntry) -> PlanEntry:
    """With a Maglev table."""
    return msgspec.structs.replace(plain, algorithm=Algorithm.MAGLEV)


@pytest.mark.parametrize("way", [None, weighted, hashed])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_no_moment_a_frontend_leads_to_the_dead(
    node: Bench,
    between: Callable[[Callable[[], None]], None],
    monkeypatch: pytest.MonkeyPatch,
    family: Family,
    way: Callable[[PlanEntry], PlanEntry] | None,
) -> None:
    monkeypatch.setattr(node.tables.steady, "hashing", Hashing(251, 7))
    seen: list[str] = []
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        seen.extend(faults(node))

    between(look)
    for numbers, local in zip(CHANGES, (0, 2, 1, 3, 0, 2), strict=True):
        plain = service(family, *numbers, local=local)
        node.install(way(plain) if way is not None else plain)
    node.remove(node.plan.entries[service(family).key])
    assert len(looks) > 2 * len(CHANGES)
    assert seen == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_that_leaves_one_set_leaves_it_last(
    node: Bench, between: Callable[[Callable[[], None]], None], family: Family
) -> None:
    seen: list[str] = []
    here = service(family, 2, 3, local=2)
    away = msgspec.structs.replace(here, local=here.local[:1])
    node.install(here)
    between(lambda: seen.extend(faults(node)))
    node.install(away)
    node.install(here)
    assert seen == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flow_goes_its_way_until_the_frontend_is_written(
    node: Bench, between: Callable[[Callable[[], None]], None], family: Family
) -> None:
    """A datagram of each flow at each moment of a change that takes its backend away."""
    client, own, *_ = ADDRESSES[family]
    before, after = service(family, 2, 3, 4, 5, local_policy=False), service(family, 9, local_policy=False)
    node.install(before)
    ports = range(4000, 4012)

    def send(port: int) -> str:
        out = node.tc(node.frame(ip(family, client, own) / UDP(sport=port, dport=PORT)))
        assert out.result == b.TC_REDIRECT
        return str(ip_of(out.data).dst)

    first = {port: send(port) for port in ports}
    assert set(first.values()) <= {backend.address for backend in before.cluster}
    moved: list[set[str]] = []

    def look() -> None:
        if generations(node) == written:
            moved.append({to for port in ports if (to := send(port)) != first[port]})

    written = generations(node)
    between(look)
    node.install(after)
    assert moved
    assert not set().union(*moved)
    assert {send(port) for port in ports} == {after.cluster[0].address}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_generation_comes_twice(node: Bench, family: Family) -> None:
    seen = []
    for numbers in (*CHANGES, *CHANGES):
        node.install(service(family, *numbers))
        seen += generations(node)
    assert len(set(seen)) == len(seen)
