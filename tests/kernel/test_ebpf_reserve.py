"""Ports that masqueraded flows had before the packet programs came are entered once for each set of maps."""

import os
import struct
from collections.abc import Iterator

import pytest

from dataplane.kernel.netlink.conntrack_list import Connection, Masqueraded
from dataplane.model.net import Family, Protocol
from dataplane.planes.ebpf.flows import reserve
from dataplane.planes.ebpf.flows.entries import flow_key
from dataplane.planes.ebpf.flows.ports import snat_runs
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.node_settings import write_node
from dataplane.planes.ebpf.maps.pins import PinDirectory
from tests.kernel.bpf_packets.bench import NODE, POD, REMOTE, SIZES, node_config


@pytest.fixture
def maps() -> Iterator[MapSet]:
    with create_maps(SIZES) as maps:
        write_node(maps, node_config(), 1, False)
        yield maps


@pytest.fixture
def pins() -> Iterator[PinDirectory]:
    pins = PinDirectory(f"hp-{os.getpid()}-reserve")
    yield pins
    pins.remove()


def key(port: int) -> bytes:
    return flow_key(address_bytes(REMOTE) + address_bytes(NODE) + struct.pack("!HH", 8080, port))


def test_reserved_once_but_never_over_a_flow(maps: MapSet, pins: PinDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    low, _ = snat_runs(maps.node())[-1]
    flows = [Masqueraded(Protocol.TCP, (REMOTE, 8080), (NODE, port)) for port in (low - 1, low, low + 1)]
    looked = []

    def found() -> Iterator[Masqueraded]:
        looked.append(1)
        return iter(flows)

    monkeypatch.setattr(reserve, "masqueraded_connections", found)
    own = bytes([7]) * maps.specs["tcp_flows"].value_size
    maps.put("tcp_flows", key(low + 1), own)
    reserve.reserve_once(maps, pins)
    assert {k for k, _ in maps.items("tcp_flows")} == {key(low), key(low + 1)}
    assert maps.get("tcp_flows", key(low + 1)) == own
    reserve.reserve_once(maps, pins)
    assert looked == [1]
    pins.remove()  # other maps, or a process that was killed before it had come so far
    reserve.reserve_once(maps, pins)
    assert looked == [1, 1]


def test_connections_that_are_translated_stay_with_the_stack(maps: MapSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """TCP's alone, and none that is over. What the programs have stays theirs."""

    def found(port: int, protocol: Protocol = Protocol.TCP, state: str = "established") -> Connection:
        return Connection(Family.IPV4, protocol, (REMOTE, port), (NODE, 80), (POD, 8080), state, 60)

    def client(port: int) -> bytes:
        return flow_key(address_bytes(REMOTE) + address_bytes(NODE) + struct.pack("!HH", port, 80))

    flows = [found(1), found(2, state="time-wait"), found(3, Protocol.UDP, ""), found(4)]
    monkeypatch.setattr(reserve, "translated_connections", lambda: iter(flows))
    own = bytes([7]) * maps.specs["tcp_flows"].value_size
    maps.put("tcp_flows", client(4), own)
    assert reserve.leave_connections(maps) == 1
    assert {key for key, _ in maps.items("tcp_flows")} == {client(1), client(4)}
    assert maps.get("tcp_flows", client(4)) == own
    assert list(maps.items("udp_flows")) == []
