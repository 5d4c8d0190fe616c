"""Ports that masqueraded flows had before the packet programs came are entered once for each set of maps."""

import os
import struct
from collections.abc import Iterator

import pytest

from dataplane.kernel.netlink.conntrack_list import Masqueraded
from dataplane.model.net import Protocol
from dataplane.planes.ebpf.flows import reserve
from dataplane.planes.ebpf.flows.entries import flow_key
from dataplane.planes.ebpf.flows.ports import snat_runs
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.node_settings import write_node
from dataplane.planes.ebpf.maps.pins import PinDirectory
from tests.kernel.bpf_packets.bench import NODE, REMOTE, SIZES, node_config


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
