"""Connect-time balancing with real sockets: TCP and UDP, IPv4, IPv6 and IPv4-mapped, from pods and from the node."""

import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dataplane.kernel.namespaces import cgroup, netns
from dataplane.kernel.netlink import sockdiag
from dataplane.kernel.netlink.sockdiag import ConnectedSocket
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import PlanChange, apply_change, diff
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan, PlanEntry, SourceRanges
from dataplane.planes.ebpf.attach.programs import CONNECT_PROGRAMS, ConnectHook
from dataplane.planes.ebpf.flows import sockets
from dataplane.planes.ebpf.flows.sockets import SocketCleaner
from dataplane.planes.ebpf.maps.layout import constant, hook_names, reason_names
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.ebpf.maps.tables import Removed
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodePortAddresses
from tests.kernel.ebpf_lab import (
    BACKEND_PORT,
    BACKENDS,
    CLUSTER_IP,
    NODE,
    NODE_ADDRESSES,
    POD_ADDRESSES,
    SMALL,
    Node,
    NoSlowPath,
    built_node,
    plan_of,
    service,
)

FAMILIES = (Family.IPV4, Family.IPV6)
SILENCE = 0.3
"""Seconds to wait where nobody answers: longer changes nothing, the hook has decided before the first packet."""


class Bench:
    """A node with a plane on it, whose plan a test replaces at will."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cleaner = SocketCleaner(node.group)
        with netns.netns(node.names["node"]):
            self.plane = EbpfPlane(NoSlowPath(), [ConnectHook(node.group)], SMALL, cleaner=self.cleaner)
        self.plan = plan_of()
        self.plane.load(plan_of())
        self.pod, self.own = node.process("pod"), node.process("node")

    def become(self, *entries: PlanEntry, plan: Plan | None = None) -> PlanChange:
        """Apply what leads to a plan with these entries; the maps must hold just that afterwards."""
        new = plan or plan_of(*entries)
        change = diff(self.plan, new)
        self.plane.apply(change)
        apply_change(self.plan, change)
        assert self.plane.read_back() == rows(new)
        return change

    def counted(self, hook: str, reason: str) -> int:
        index = hook_names().index(hook) * constant("REASON_COUNT") + reason_names().index(reason)
        return sum(int.from_bytes(value, "little") for value in self.plane.tables.maps.per_cpu("counters", index))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with built_node("conn") as node:
        bench = Bench(node)
        try:
            yield bench
        finally:
            bench.plane.cleanup()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("caller", ["pod", "own"])
def test_tcp_reaches_every_backend_and_believes_in_the_frontend(bench: Bench, family: Family, caller: str) -> None:
    bench.become(service("a", family=family))
    process = bench.pod if caller == "pod" else bench.own
    seen: Counter[str] = Counter()
    for _ in range(60):
        server, client, peer = process.call("fetch", family.socket_family, CLUSTER_IP[family], 80)
        seen[server] += 1
        assert peer == (CLUSTER_IP[family], 80)
        if caller == "pod":
            assert client == POD_ADDRESSES[FAMILIES.index(family)]  # no masquerade: the pod itself connects
    assert sorted(seen) == BACKENDS[family]


def test_choice_is_uniform(bench: Bench) -> None:
    bench.become(service("a"))
    seen = Counter(bench.pod.call("fetch_many", socket.AF_INET, CLUSTER_IP[Family.IPV4], 80, 900))
    # Chi-square with 2 degrees of freedom: above 27.6 once in a million runs.
    assert sum((seen[backend] - 300) ** 2 / 300 for backend in BACKENDS[Family.IPV4]) < 27.6


def test_ipv4_mapped_socket(bench: Bench) -> None:
    bench.become(service("a"))
    server, _, peer = bench.pod.call("fetch", socket.AF_INET6, f"::ffff:{CLUSTER_IP[Family.IPV4]}", 80)
    assert server in BACKENDS[Family.IPV4]
    assert peer == (f"::ffff:{CLUSTER_IP[Family.IPV4]}", 80)


@pytest.mark.parametrize("family", FAMILIES)
def test_connected_udp_sees_the_frontend(bench: Bench, family: Family) -> None:
    bench.become(service("a", Protocol.UDP, family))
    bench.pod.call("open", "s", family.socket_family, socket.SOCK_DGRAM)
    assert bench.pod.call("connect", "s", CLUSTER_IP[family], 80) == (CLUSTER_IP[family], 80)
    first, sender = bench.pod.call("ask", "s")
    assert sender == (CLUSTER_IP[family], 80)
    assert all(bench.pod.call("ask", "s")[0] == first for _ in range(5))
    bench.pod.call("close", "s")


@pytest.mark.parametrize("family", [*FAMILIES, None])
def test_unconnected_udp_sticks_while_its_backend_lives(bench: Bench, family: Family | None) -> None:
    kind = family or Family.IPV4
    target = CLUSTER_IP[kind] if family else f"::ffff:{CLUSTER_IP[kind]}"
    bench.become(service("a", Protocol.UDP, kind))
    bench.pod.call("open", "s", family.socket_family if family else socket.AF_INET6, socket.SOCK_DGRAM)
    first, sender = bench.pod.call("ask_at", "s", target, 80)
    assert sender == (target, 80)
    assert {bench.pod.call("ask_at", "s", target, 80)[0] for _ in range(8)} == {first}
    rest = tuple(Backend(address, BACKEND_PORT) for address in BACKENDS[kind] if address != first)
    bench.become(service("a", Protocol.UDP, kind, backends=rest))
    second, sender = bench.pod.call("ask_at", "s", target, 80)
    assert second != first
    assert sender == (target, 80)
    bench.pod.call("close", "s")


def test_connected_udp_does_not_stay_on_a_removed_endpoint(bench: Bench) -> None:
    bench.become(service("a", Protocol.UDP))
    bench.pod.call("open", "s", socket.AF_INET, socket.SOCK_DGRAM)
    bench.pod.call("connect", "s", CLUSTER_IP[Family.IPV4], 80)
    first, _ = bench.pod.call("ask", "s")
    bench.pod.call("open", "direct", socket.AF_INET, socket.SOCK_DGRAM)
    bench.pod.call("connect", "direct", first, BACKEND_PORT)
    rest = tuple(Backend(address, BACKEND_PORT) for address in BACKENDS[Family.IPV4] if address != first)
    bench.become(service("a", Protocol.UDP, backends=rest))
    assert bench.cleaner.flush(60)
    with pytest.raises(OSError) as caught:
        bench.pod.call("ask", "s")
    assert caught.value.errno in (errno.ECONNABORTED, errno.EDESTADDRREQ)
    bench.pod.call("clear_error", "s")
    bench.pod.call("connect", "s", CLUSTER_IP[Family.IPV4], 80)
    assert bench.pod.call("ask", "s")[0] != first
    assert bench.pod.call("ask", "direct")[0] == first  # connected to the endpoint itself: none of our business
    bench.pod.call("close", "s")
    bench.pod.call("close", "direct")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_socket_that_connects_again_while_it_is_disconnected_keeps_its_frontend(
    bench: Bench, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner may be faster than the daemon is with what it has still to do about the socket."""
    frontend = CLUSTER_IP[family], 80
    bench.become(service("a", Protocol.UDP, family))
    bench.pod.call("open", "s", family.socket_family, socket.SOCK_DGRAM)
    bench.pod.call("connect", "s", *frontend)
    first, _ = bench.pod.call("ask", "s")

    def destroy(target: ConnectedSocket) -> bool:
        done = sockdiag.destroy(target)
        bench.pod.call("clear_error", "s")
        bench.pod.call("connect", "s", *frontend)
        return done

    monkeypatch.setattr("dataplane.planes.ebpf.flows.sockets.destroy", destroy)
    rest = tuple(Backend(address, BACKEND_PORT) for address in BACKENDS[family] if address != first)
    bench.become(service("a", Protocol.UDP, family, backends=rest))
    assert bench.cleaner.flush(60)
    assert bench.pod.call("peer", "s") == frontend
    second, sender = bench.pod.call("ask", "s")
    assert (second != first, sender) == (True, frontend)
    bench.pod.call("close", "s")


def test_sockets_are_found_while_control_groups_go(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of a pod that goes, with the endpoint as a rule, is removed while sockets of others are looked for."""
    bench.become(service("a", Protocol.UDP))
    bench.pod.call("open", "s", socket.AF_INET, socket.SOCK_DGRAM)
    bench.pod.call("connect", "s", CLUSTER_IP[Family.IPV4], 80)
    first, _ = bench.pod.call("ask", "s")
    going, read = bench.node.group / "going", Path.read_text
    going.mkdir()

    def read_text(path: Path, *words: Any, **more: Any) -> str:
        if path.parent == going:
            going.rmdir()
        return read(path, *words, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
    rest = tuple(Backend(address, BACKEND_PORT) for address in BACKENDS[Family.IPV4] if address != first)
    bench.become(service("a", Protocol.UDP, backends=rest))
    assert bench.cleaner.flush(60)
    assert not going.exists()
    with pytest.raises(OSError):
        bench.pod.call("ask", "s")
    bench.pod.call("close", "s")


def test_a_namespace_is_entered_by_a_process_that_is_still_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one by which it was found, a probe for example, may end before; the socket is another one's."""
    bench.become(service("a", Protocol.UDP))
    ends, stays = bench.node.process("pod"), bench.node.process("pod")
    monkeypatch.setattr(cgroup, "pids", lambda group: [ends.pid, stays.pid])
    stays.call("open", "s", socket.AF_INET, socket.SOCK_DGRAM)
    stays.call("connect", "s", CLUSTER_IP[Family.IPV4], 80)
    first, _ = stays.call("ask", "s")
    look = sockets._namespaces

    def namespaces(group: Path, own: int) -> Any:
        found = look(group, own)
        if ends in bench.node.processes:
            ends.end()
            bench.node.processes.remove(ends)
        return found

    monkeypatch.setattr(sockets, "_namespaces", namespaces)
    rest = tuple(Backend(address, BACKEND_PORT) for address in BACKENDS[Family.IPV4] if address != first)
    bench.become(service("a", Protocol.UDP, backends=rest))
    assert bench.cleaner.flush(60)
    assert ends not in bench.node.processes
    with pytest.raises(OSError):
        stays.call("ask", "s")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_socket_that_is_about_to_be_connected_is_disconnected_too(
    bench: Bench, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs have chosen its endpoint, but the kernel does not list it as connected yet."""
    bench.become(service("a", Protocol.UDP, family))
    bench.pod.call("open", "s", family.socket_family, socket.SOCK_DGRAM)
    bench.pod.call("connect", "s", CLUSTER_IP[family], 80)
    first, _ = bench.pod.call("ask", "s")
    look, rounds = sockets._namespaces, 0

    def namespaces(group: Path, own: int) -> Any:
        nonlocal rounds
        rounds += 1
        return look(group, own)

    monkeypatch.setattr(sockets, "_namespaces", namespaces)
    monkeypatch.setattr(
        sockets, "connected_udp_sockets", lambda: sockdiag.connected_udp_sockets() if rounds > 1 else []
    )
    rest = tuple(Backend(address, BACKEND_PORT) for address in BACKENDS[family] if address != first)
    bench.become(service("a", Protocol.UDP, family, backends=rest))
    assert bench.cleaner.flush(60)
    with pytest.raises(OSError):
        bench.pod.call("ask", "s")
    bench.pod.call("close", "s")


class LateCleaner:
    """Keeps what is to be disconnected until `late`, as if the thread had had no processor."""

    def __init__(self, node: Node) -> None:
        self.cleaner = SocketCleaner(node.group)
        self._told: list[tuple[MapSet, list[Removed]]] = []

    def disconnect(self, maps: MapSet, gone: list[Removed]) -> None:
        self._told.append((maps, list(gone)))

    def late(self) -> None:
        for maps, gone in self._told:
            self.cleaner.disconnect(maps, gone)
        assert self._told
        assert self.cleaner.flush(60)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_endpoint_that_came_back_keeps_its_new_sockets(
    bench: Bench, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaner, only = LateCleaner(bench.node), BACKENDS[family][0]
    entry = service("a", Protocol.UDP, family, backends=(Backend(only, BACKEND_PORT),))
    bench.become(entry)
    monkeypatch.setattr(bench.plane, "cleaner", cleaner)
    for name in ("before", "after"):
        bench.pod.call("open", name, family.socket_family, socket.SOCK_DGRAM)
    bench.pod.call("connect", "before", CLUSTER_IP[family], 80)
    bench.become(service("a", Protocol.UDP, family, backends=()))
    bench.become(entry)
    bench.pod.call("connect", "after", CLUSTER_IP[family], 80)
    cleaner.late()
    assert bench.pod.call("ask", "after")[0] == only
    with pytest.raises(OSError):
        bench.pod.call("ask", "before")  # it was there when the endpoint went
    for name in ("before", "after"):
        bench.pod.call("close", name)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_services_sockets_stay_with_an_endpoint_that_both_had(bench: Bench, family: Family) -> None:
    both = (Backend(BACKENDS[family][0], BACKEND_PORT),)
    here, there = CLUSTER_IP[family], CLUSTER_IP[family].replace("10", "11")
    leaves, stays = (service(name, Protocol.UDP, family, backends=both, address=address)
                     for name, address in (("a", here), ("b", there)))  # fmt: skip
    bench.become(leaves, stays)
    for name, address in (("a", here), ("b", there)):
        bench.pod.call("open", name, family.socket_family, socket.SOCK_DGRAM)
        bench.pod.call("connect", name, address, 80)
    bench.become(service("a", Protocol.UDP, family, backends=(), address=here), stays)
    assert bench.cleaner.flush(60)
    with pytest.raises(OSError):
        bench.pod.call("ask", "a")
    assert bench.pod.call("ask", "b") == (BACKENDS[family][0], (there, 80))
    for name in ("a", "b"):
        bench.pod.call("close", name)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_server_answers_a_client_whose_port_is_a_node_port(bench: Bench, family: Family, connected: bool) -> None:
    """Masquerading gives out such ports, and a process of the node may have one: what goes back there is an answer. A
    server may answer by the socket that heard the question, or by one of the same port that it connects to the client.
    """
    bench.become(service("a", Protocol.UDP, family, node_port=30082))
    client, server = (NODE_ADDRESSES[FAMILIES.index(family)], 30082), (BACKENDS[family][0], 7000)
    stranger = bench.node.process("node", bench.node.group.parent)
    back = bench.node.process("back")
    for process, name, address in ((stranger, "client", client), (back, "server", server)):
        process.call("open", name, family.socket_family, socket.SOCK_DGRAM)
        process.call("bind", name, *address)
    for _ in range(2):
        stranger.call("send_at", "client", *server)
        assert back.call("receive", "server") == client
        if connected:
            back.call("open", "second", family.socket_family, socket.SOCK_DGRAM)
            back.call("bind", "second", *server)
            assert back.call("connect", "second", *client) == client
            back.call("send", "second")
            back.call("close", "second")
        else:
            back.call("send_at", "server", *client)
        assert stranger.call("receive", "client") == server
    assert bench.counted("connect" if connected else "sendmsg", "answer") >= 2
    # Who was not asked is a client of the node port, from the very same address too.
    back.call("open", "other", family.socket_family, socket.SOCK_DGRAM)
    back.call("bind", "other", server[0], 7001)
    assert back.call("ask_at", "other", *client)[1] == client


@pytest.mark.parametrize("caller", ["pod", "own"])
@pytest.mark.parametrize("address", NODE_ADDRESSES)
def test_node_port_answers_on_node_addresses_only(bench: Bench, caller: str, address: str) -> None:
    family = Family.IPV6 if ":" in address else Family.IPV4
    bench.become(service("a", family=family, node_port=30080))
    process = bench.pod if caller == "pod" else bench.own
    server, _, peer = process.call("fetch", family.socket_family, address, 30080)
    assert server in BACKENDS[family]
    assert peer == (address, 30080)
    with pytest.raises(ConnectionRefusedError):  # another node's port is not this node's business
        process.call("fetch", family.socket_family, BACKENDS[family][0], 30080)
    for itself in ("::1", "::") if ":" in address else ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(ConnectionRefusedError):
            process.call("fetch", family.socket_family, itself, 30080)


def test_pod_reaches_itself(bench: Bench) -> None:
    process = bench.node.process("pod")
    process.call("serve", [POD_ADDRESSES[0]], 9090)
    bench.become(service("a", backends=(Backend(POD_ADDRESSES[0], 9090, True),)))
    server, client, _ = bench.pod.call("fetch", socket.AF_INET, CLUSTER_IP[Family.IPV4], 80)
    assert (server, client) == (POD_ADDRESSES[0], POD_ADDRESSES[0])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (service("a", backends=()), "no_endpoint"),
        (service("a", internal_local=True), "policy_drop"),
        (service("a", masquerade_all=True), None),
        (service("a", ranges=SourceRanges(("10.0.0.0/8",))), "source_unknown"),
    ],
)
def test_what_is_left_to_the_slow_path(bench: Bench, entry: PlanEntry, reason: str | None) -> None:
    node = msgspec.structs.replace(NODE, masquerade_all=reason is None)
    bench.become(plan=plan_of(entry, node=node))
    before = bench.counted("connect", reason or "masquerade")
    with pytest.raises(OSError):
        bench.pod.call("fetch", socket.AF_INET, CLUSTER_IP[Family.IPV4], 80)
    assert bench.counted("connect", reason or "masquerade") == before + 1
    bench.become(plan=plan_of())


def test_external_policy_local_lets_pods_and_the_node_use_the_cluster_set(bench: Bench) -> None:
    one = (Backend(BACKENDS[Family.IPV4][0], BACKEND_PORT, True),)
    bench.become(service("a", local=one, node_port=30081, external_local=True))
    for process in (bench.pod, bench.own):
        seen = set(process.call("fetch_many", socket.AF_INET, NODE_ADDRESSES[0], 30081, 40))
        assert seen == set(BACKENDS[Family.IPV4])


def test_internal_policy_local_uses_the_local_set(bench: Bench) -> None:
    one = (Backend(BACKENDS[Family.IPV4][1], BACKEND_PORT, True),)
    bench.become(service("a", local=one, internal_local=True))
    assert set(bench.pod.call("fetch_many", socket.AF_INET, CLUSTER_IP[Family.IPV4], 80, 20)) == {one[0].address}


@pytest.mark.parametrize("family", FAMILIES)
def test_session_affinity_is_left_to_the_packets(bench: Bench, family: Family) -> None:
    """It goes by the client's address, which packets have and sockets have not; nobody serves packets here."""
    word = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    bench.become(service("a", family=family, affinity=600), service("u", Protocol.UDP, family, affinity=600))
    before = {hook: bench.counted(hook, "affinity") for hook in ("connect", "sendmsg")}
    for process in (bench.pod, bench.own):
        with pytest.raises(OSError):
            process.call("fetch", word, CLUSTER_IP[family], 80, SILENCE)
        process.call("open", "u", word, socket.SOCK_DGRAM, SILENCE)
        with pytest.raises(OSError):
            process.call("ask_at", "u", CLUSTER_IP[family], 80)
        process.call("close", "u")
    assert {hook: bench.counted(hook, "affinity") - count for hook, count in before.items()} == dict.fromkeys(before, 2)
    assert not list(bench.plane.tables.maps.items("affinity"))


LOOPBACK = {Family.IPV4: ("127.0.0.1", "127.5.5.5"), Family.IPV6: ("::1",)}


@pytest.mark.parametrize("family", FAMILIES)
def test_node_ports_on_loopback_where_they_are_asked_for(bench: Bench, family: Family) -> None:
    """For the node's own processes: a pod's loopback is the pod's. Who has bound a source keeps to it."""
    word = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    node = msgspec.structs.replace(NODE, nodeports=NodePortAddresses(True, loopback=True, loopback_ipv6=True))
    entries = (
        service("a", family=family, node_port=30081, affinity=600),
        service("u", Protocol.UDP, family, node_port=30082),
        service("h", family=family, address=LOOPBACK[family][0]),
    )
    bench.become(plan=plan_of(*entries))
    for address in LOOPBACK[family]:
        with pytest.raises(ConnectionRefusedError):
            bench.own.call("fetch", word, address, 30081)
    bench.become(plan=plan_of(*entries, node=node))
    for address in LOOPBACK[family]:
        with pytest.raises(ConnectionRefusedError):
            bench.pod.call("fetch", word, address, 30081)
        server, client, peer = bench.own.call("fetch", word, address, 30081)
        assert (server in BACKENDS[family], peer) == (True, (address, 30081))
        assert not client.startswith(("127.", "::1"))
        for asked in ("ask_at", "ask"):
            bench.own.call("open", "l", word, socket.SOCK_DGRAM)
            if asked == "ask":
                bench.own.call("connect", "l", address, 30082)
            where = (address, 30082)
            for _ in range(2):
                server, sender = bench.own.call(asked, "l", *(where if asked == "ask_at" else ()))
                assert (server in BACKENDS[family], sender) == (True, where)
            bench.own.call("close", "l")
        bench.own.call("open", "l", word, socket.SOCK_STREAM)
        bench.own.call("bind", "l", address, 0)
        with pytest.raises(ConnectionRefusedError):
            bench.own.call("connect", "l", address, 30081)
        bench.own.call("close", "l")
    assert bench.own.call("fetch", word, LOOPBACK[family][0], 80)[0] in BACKENDS[family]  # as a hostPort has it
    several = [bench.own.call("fetch", word, address, 30081)[0] for address in LOOPBACK[family] for _ in range(10)]
    assert len(set(several)) == 1
    bench.become(plan=plan_of())


def test_other_control_groups_are_left_alone(bench: Bench) -> None:
    bench.become(service("a"))
    stranger = bench.node.process("pod", bench.node.group.parent)
    with pytest.raises(OSError):
        stranger.call("fetch", socket.AF_INET, CLUSTER_IP[Family.IPV4], 80)


def test_every_program_has_a_bounded_size(bench: Bench, record_property: Callable[[str, object], None]) -> None:
    (hook,) = bench.plane.hooks
    assert isinstance(hook, ConnectHook)
    assert set(hook.instructions) == set(CONNECT_PROGRAMS)
    for name, count in sorted(hook.instructions.items()):
        record_property(f"instructions of {name}", count)
        assert count < 2000
