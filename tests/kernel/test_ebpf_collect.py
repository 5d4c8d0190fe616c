"""The collector: what is over goes, whichever map it is in; what lives stays, however full the map."""

import struct
import time
from collections.abc import Iterator
from socket import htons

import pytest

from dataplane.kernel.ebpf.map_elements import MapElements
from dataplane.model.net import Family
from dataplane.plan.change import EntryChange
from dataplane.planes.answers import Round
from dataplane.planes.ebpf.flows.collect import SINGLE, Collector, sweep
from dataplane.planes.ebpf.flows.entries import (
    ESTABLISHED,
    FLOW_TABLES,
    NO_HOP,
    REPLY,
    SNAT,
    TRANSLATION,
    Lifetimes,
    flow_flags,
    flow_key,
    setting,
)
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import Sizes, constant, fields_of, record
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.node_settings import write_node
from dataplane.planes.ebpf.maps.tables import Tables
from dataplane.planes.ebpf.views.events import TUPLE
from tests.kernel.bpf_packets.bench import CLIENT, NODE, REMOTE, entry, node_config

SIZES = Sizes(
    frontends=64, slots=64, backends=64, services=64, source_ranges=64, detector=16, addresses=32, devices=16,
    affinity=64, peers=64, sockets=64, answers=64, tcp_flows=8192, udp_flows=8192, fragments=64, held=64,
    direct_tcp=64, direct_udp=64,
    events=1 << 12,
)  # fmt: skip
AGED = {"affinity": 60, "peers": 120, "sockets": 120, "answers": 120, "fragments": 30, "held": 30}
AGED |= {"direct_tcp": 120, "direct_udp": 30}  # of which nothing is known yet
AFFINITY_KEY = record("affinity_key", "client", "service")


@pytest.fixture
def maps() -> Iterator[MapSet]:
    with create_maps(SIZES) as maps:
        write_node(maps, node_config(), 1, False)
        yield maps


def put_flow(maps: MapSet, port: int, protocol: int, flags: int, idle: tuple[float, float]) -> None:
    """Both entries of a masqueraded flow; idle: seconds since the last packet of either direction."""
    client, node, remote = map(address_bytes, (CLIENT, NODE, REMOTE))
    there = (client, node, htons(port), htons(30080)), (node, remote, htons(port), htons(8080))
    back = (remote, node, htons(8080), htons(port)), (node, client, htons(30080), htons(port))
    for (key, value), more, seconds in ((there, 0, idle[0]), (back, REPLY, idle[1])):
        last = time.monotonic_ns() - int(seconds * 1e9)
        own = TUPLE.pack(*key, protocol, 0, 0, 0)
        raw = TRANSLATION.pack(*value, flags | more | SNAT, 0, 0, 0, 0, 0, last % 2**64, *(0,) * 6, *NO_HOP, own)
        maps.put("tcp_flows" if protocol == 6 else "udp_flows", flow_key(own), raw)


def held(maps: MapSet, table: str) -> int:
    return sum(1 for _ in maps.items(table))


def found(rounds: list[Round], name: str) -> tuple[int, int]:
    """Entries and removed ones of a map."""
    [one] = [r for r in rounds if r.name == name]
    return one.entries, one.removed


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("flags", [0, ESTABLISHED, constant("FLOW_FIN_REPLY"), constant("FLOW_RST_REPLY")])
def test_both_entries_go_when_neither_direction_is_used(maps: MapSet, protocol: int, flags: int) -> None:
    [table] = [name for name, number in FLOW_TABLES.items() if number == protocol]
    seconds = Lifetimes.of(maps.node()).ns[setting(protocol, flags)] / 1e9
    for port, idle in enumerate([(1, 1), (seconds + 5, 1), (1, seconds + 5), (seconds + 5,) * 2, (seconds - 5,) * 2]):
        put_flow(maps, port + 1000, protocol, flags, idle)
    assert found(sweep(maps), table) == (10, 2)
    assert held(maps, table) == 8
    assert found(sweep(maps), table) == (8, 0)


def test_a_later_flow_under_the_same_answers_tuple_is_not_taken_along(maps: MapSet) -> None:
    """The forward entry is over; the entry of answers under its other key is another flow's."""
    put_flow(maps, 1000, 6, 0, (500, 500))
    client, node, remote = map(address_bytes, ("203.0.113.9", NODE, REMOTE))
    own = TUPLE.pack(remote, node, htons(8080), htons(1000), 6, 0, 0, 0)
    value = (node, client, htons(30080), htons(7))
    raw = TRANSLATION.pack(*value, REPLY | SNAT, 0, 0, 0, 0, 0, time.monotonic_ns(), *(0,) * 6, *NO_HOP, own)
    maps.put("tcp_flows", flow_key(own), raw)
    assert found(sweep(maps), "tcp_flows") == (2, 1)
    assert maps.get("tcp_flows", flow_key(own)) is not None


@pytest.mark.parametrize("name", SINGLE)
def test_what_ages_alone_goes_alone(maps: MapSet, name: str) -> None:
    tables = Tables(maps)
    tables.apply([EntryChange(None, entry("s", [REMOTE], ip="10.96.0.1", affinity=60, family=Family.IPV4))])
    [installed] = tables.installed.values()
    spec, at = maps.specs[name], fields_of(SINGLE[name])["last_ns"]
    for number, idle in enumerate((1, AGED[name] - 5, AGED[name] + 5)):
        value = bytearray(spec.value_size)
        struct.pack_into("=q", value, at, time.monotonic_ns() - idle * 10**9)
        key = number.to_bytes(spec.key_size, "big")
        if name == "affinity":
            key = AFFINITY_KEY.pack(number.to_bytes(16, "big"), installed.service)
        maps.put(name, key, bytes(value))
    assert found(sweep(maps), name) == (3, 1)
    assert held(maps, name) == 2


@pytest.mark.parametrize(
    ("name", "flags", "seconds"),
    [
        ("direct_tcp", ("OPEN",), 86400),
        ("direct_tcp", ("OPEN", "FIN_LOW"), 3600),
        ("direct_tcp", ("OPEN", "FIN_LOW", "FIN_HIGH"), 120),
        ("direct_udp", ("FROM_LOW", "FROM_HIGH"), 30),
        ("direct_udp", ("OPEN",), 120),
        ("direct_udp", ("STACK",), 120),
    ],
)
def test_flows_past_the_stack_live_as_long_as_conntrack_s(
    maps: MapSet, name: str, flags: tuple[str, ...], seconds: int
) -> None:
    fields = fields_of("direct_flow")
    for number, idle in enumerate((seconds - 5, seconds + 5)):
        value = bytearray(maps.specs[name].value_size)
        struct.pack_into("=q", value, fields["last_ns"], time.monotonic_ns() - idle * 10**9)
        struct.pack_into("=I", value, fields["flags"], sum(constant(f"DIRECT_{flag}") for flag in flags))
        maps.put(name, number.to_bytes(maps.specs[name].key_size, "big"), bytes(value))
    assert found(sweep(maps), name) == (2, 1)


def test_what_is_known_of_a_connected_socket_lives_as_long_as_the_socket(maps: MapSet) -> None:
    value = bytearray(maps.specs["peers"].value_size)
    value[fields_of("peer")["flags"]] = constant("PEER_CONNECTED")
    struct.pack_into("=q", value, fields_of("peer")["last_ns"], time.monotonic_ns() - 90000 * 10**9)
    maps.put("peers", bytes(8), bytes(value))  # connected more than a day ago
    assert found(sweep(maps), "peers") == (1, 0)


def test_sockets_whose_end_nobody_tells_do_not_fill_the_map(maps: MapSet) -> None:
    """Those of the kernel itself. Only once half of the map is taken, and only after a day."""
    value = bytearray(maps.specs["peers"].value_size)
    value[fields_of("peer")["flags"]] = constant("PEER_CONNECTED")
    for number in range(40):
        age = 90000 if number < 30 else 80000
        struct.pack_into("=q", value, fields_of("peer")["last_ns"], time.monotonic_ns() - age * 10**9)
        maps.put("peers", number.to_bytes(8, "little"), bytes(value))
    assert found(sweep(maps), "peers") == (40, 30)


def test_an_idle_connection_outlives_any_number_of_others(maps: MapSet) -> None:
    """Thousands of flows come and are over, round after round; an hour idle is not over."""
    put_flow(maps, 999, 6, ESTABLISHED, (3600, 3600))
    for _ in range(3):
        for port in range(1000, 1000 + (SIZES.tcp_flows - 2) // 2):
            put_flow(maps, port, 6, 0, (200, 200))
        assert held(maps, "tcp_flows") == SIZES.tcp_flows
        sweep(maps)
        assert held(maps, "tcp_flows") == 2


def test_a_full_map_is_told_by_its_name(maps: MapSet) -> None:
    told: list[str] = []
    counter = constant("HOOK_TC_INGRESS") * constant("REASON_COUNT") + constant("REASON_UDP_FLOWS_FULL")
    with Collector(maps, told.append, 0.05) as collector:
        cpus = len(maps.per_cpu("counters", counter))
        maps.put("counters", counter.to_bytes(4, "little"), struct.pack("=Q", 7) + bytes(8 * (cpus - 1)))
        deadline = time.monotonic() + 60
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
        assert collector.rounds
    assert told == [
        f"map udp_flows was full (0 of {SIZES.udp_flows} entries after collecting): "
        "7 newcomers were left to the slow path, which serves them"
    ]


def use_once_read(monkeypatch: pytest.MonkeyPatch, maps: MapSet, name: str, kind: str, key: bytes) -> None:
    """Let a packet use an entry right after the collector has read it. kind: the struct of its value."""
    look_up = MapElements.get

    def get(self: MapElements, asked: bytes) -> bytes | None:
        value = look_up(self, asked)
        if value is not None and asked == key:
            fresh = bytearray(value)
            struct.pack_into("=q", fresh, fields_of(kind)["last_ns"], time.monotonic_ns())
            maps.put(name, key, bytes(fresh))
        return value

    monkeypatch.setattr(MapElements, "get", get)


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_used_while_it_is_collected_stays(maps: MapSet, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(maps)
    tables.apply([EntryChange(None, entry("s", [REMOTE], ip="10.96.0.1", affinity=60, family=Family.IPV4))])
    [installed] = tables.installed.values()
    value = bytearray(maps.specs[name].value_size)
    struct.pack_into("=q", value, fields_of(SINGLE[name])["last_ns"], time.monotonic_ns() - 500 * 10**9)
    key = (9).to_bytes(maps.specs[name].key_size, "big")
    if name == "affinity":
        key = AFFINITY_KEY.pack((9).to_bytes(16, "big"), installed.service)
    maps.put(name, key, bytes(value))
    use_once_read(monkeypatch, maps, name, SINGLE[name], key)
    assert found(sweep(maps), name) == (1, 0)
    assert maps.get(name, key) not in (None, bytes(value))


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("replies", [False, True], ids=["client", "backend"])
def test_a_flow_that_is_used_while_it_is_collected_stays_whole(
    maps: MapSet, protocol: int, replies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    [table] = [name for name, number in FLOW_TABLES.items() if number == protocol]
    put_flow(maps, 1000, protocol, 0, (500, 500))
    keys = {bool(flow_flags(value) & REPLY): key for key, value in maps.items(table)}
    use_once_read(monkeypatch, maps, table, "translation", keys[replies])
    assert found(sweep(maps), table) == (2, 0)
    assert {key for key, _ in maps.items(table)} == set(keys.values())


def test_sweeping_leaves_time_to_others(maps: MapSet) -> None:
    """It pauses after each batch, and ends at once when it is to."""
    for port in range(1000, 5000):
        put_flow(maps, port, 17, 0, (1, 1))
    pauses: list[float] = []
    sweep(maps, lambda: pauses.append(time.monotonic()))
    assert len(pauses) >= 8000 // 2048 + len(SINGLE)
