"""The benchmark's lab: one scenario leaves nothing behind that slows another down."""

import os
from collections.abc import Iterator

import msgspec
import pytest

from dataplane.bench.load.native import load_tool
from dataplane.bench.profiles import Overrides, settings
from dataplane.bench.rig import Rig
from dataplane.bench.scenarios import SCENARIOS, Position
from dataplane.kernel import sysctl
from dataplane.kernel.namespaces.netns import netns

SERVICES, PORTS = 3, (40000, 40199)
SECOND = 1e9
"""After which a SYN is sent again that met what a connection before left."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A rig whose clients have so few ports that each is used again and again."""
    wanted = settings("quick", Overrides(scenarios=("connect", "TCP_CRR"), services=(SERVICES,)))
    wanted = msgspec.structs.replace(wanted, modes=("direct", "nftables"))
    with Rig(f"bench-{os.getpid()}", wanted, load_tool()) as rig:
        for node in rig.nodes.values():
            with netns(node.pods[1].netns):
                sysctl.write("net/ipv4/ip_local_port_range", f"{PORTS[0]} {PORTS[1]}")
        rig.restart_agent("nftables")
        rig.load("nftables", SERVICES)
        yield rig


def test_ports_that_tcp_crr_left_in_time_wait_do_not_delay_connections_to_another_service(rig: Rig) -> None:
    def latency(scenario: str, position: Position, seconds: float) -> float:
        wanted = SCENARIOS[scenario]
        target = rig.target("nftables", wanted, SERVICES, position)
        for longer in (1, 10, 50):  # where others have the processor it may take longer
            found = rig.traffic("nftables", wanted.operation, target, longer * seconds, False)
            if found["operations"] > 5:
                break
        assert found["operations"] > 5
        return float(found["p50"])

    before = latency("connect", Position.FIRST, 0.2)
    latency("TCP_CRR", Position.LAST, 0.5)
    assert latency("connect", Position.FIRST, 0.2) < max(5 * before, 0.3 * SECOND)
