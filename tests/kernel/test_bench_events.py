"""What a steady load sees of what happens, by real packets: a Service that is away is told so, and for how long."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dataplane.bench.events.daemon import NodeDaemon
from dataplane.bench.events.events import Events
from dataplane.bench.events.full_table import FREE, nearly_full
from dataplane.bench.events.scale import scale_out
from dataplane.bench.figures.watched import PATIENCE, SLOW
from dataplane.bench.load.native import load_tool
from dataplane.bench.objects import LOCAL_NODE_PORT
from dataplane.bench.profiles import Overrides, Settings, settings
from dataplane.bench.rig import Rig
from dataplane.bench.scenarios import IMBALANCE, SCENARIOS, Scenario
from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.kernel.netlink.conntrack import forget_all
from dataplane.model.net import Family
from tests.kernel.daemon_lab import until

KILL, FULL = SCENARIOS["during-kill"], SCENARIOS["during-conntrack-full"]
MS = 1_000_000
AWAY = 0.3
WAIT = 500 * MS
"""What a connection may wait for a processor. A lost SYN is sent again after a second."""
BLOCK = "add table inet away; add chain inet away c {{ type filter hook prerouting priority -400; }}; "
BLOCK += 'add rule inet away c iifname "{device}" drop'


@pytest.fixture(scope="module")
def wanted() -> Settings:
    names = [IMBALANCE, "during-kill", "during-conntrack-full", "connect-16"]
    return msgspec.structs.replace(settings("tiny", Overrides(["nftables"], names, [20], rounds=1)), event_seconds=0.3)


@pytest.fixture(scope="module")
def rig(wanted: Settings) -> Iterator[Rig]:
    with Rig(f"events-{os.getpid()}", wanted, load_tool()) as rig:
        yield rig


@pytest.fixture(scope="module")
def events(rig: Rig, wanted: Settings) -> Iterator[Events]:
    with Events(rig, wanted, 20) as events:
        yield events


def test_a_service_that_is_away_for_300_ms_is_told_so(
    rig: Rig, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, away = rig.nodes["direct"], []

    def go_away(*_: object) -> None:
        rules = BLOCK.format(device=node.pods[1].device)
        with netns(node.netns):
            started = time.monotonic()
            subprocess.run(["nft", rules], check=True)
            begun = time.monotonic()
            time.sleep(AWAY)
            ending = time.monotonic()
            subprocess.run(["nft", "delete table inet away"], check=True)
        away.extend([ending - begun, time.monotonic() - started])

    monkeypatch.setattr(Events, "_nothing", go_away)
    found = events.measure("direct", KILL)
    [least, most] = (seconds * 1e9 for seconds in away)
    assert least - 5 * MS <= found["gap"] <= most + WAIT
    assert 0.95 * least / MS / 2 <= found["slow"] <= (most + WAIT) / MS / 2  # one is due every 2 ms
    assert found["failures"] == 0  # the second SYN comes through, a second later
    assert SLOW < found["max"] < PATIENCE
    assert found["flow_slow"] > 0
    assert found["flow_gap"] >= least / 2
    assert (found["flow_failures"], found["ended"], found["flows"]) == (0, 0, 16)


def test_kill_9_of_the_daemon_loses_nothing(events: Events) -> None:
    found = events.measure("nftables", KILL)
    assert (found["failures"], found["flow_failures"], found["ended"]) == (0, 0, 0)
    assert found["operations"] > 300
    assert 0.1 < found["event"] < 300
    assert found["operations"] == sum(count for _, count in found["counts"])


def test_a_service_that_a_daemon_takes_away_with_it_is_told_so(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way a proxy must not end: its rules go with it, and come back with it."""
    killed = NodeDaemon.kill

    def kill(self: NodeDaemon) -> None:
        killed(self)
        self.leave()

    monkeypatch.setattr(NodeDaemon, "kill", kill)
    found = events.measure("nftables", KILL)
    assert found["gap"] > 100 * MS
    assert found["slow"] + found["failures"] > 50


def test_the_connection_table_is_nearly_full_for_new_connections_only(rig: Rig) -> None:
    node = rig.nodes["direct-again"]
    table = Path("/proc/sys/net/netfilter")
    limit = int((table / "nf_conntrack_max").read_text())

    def count() -> int:
        return int(in_netns(node.netns, (table / "nf_conntrack_count").read_text))

    with nearly_full(node.netns) as entries:
        assert limit - 2 * FREE <= entries <= limit
        assert limit - 2 * FREE <= count() <= limit
    assert count() < 1000
    in_netns(node.netns, forget_all)


def serve(rig: Rig, events: Events) -> None:
    events.leave("nftables")
    if not rig.has_agent("nftables"):
        rig.restart_agent("nftables")
        rig.load("nftables", 20)


def test_the_flood_comes_from_everywhere_and_arrives(rig: Rig, events: Events) -> None:
    serve(rig, events)
    node = rig.nodes["nftables"]
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    in_netns(node.netns, forget_all)  # else entries of earlier connections expire meanwhile
    before = int(in_netns(node.netns, count.read_text))
    flooder = rig.watcher("client")
    flooder.flood((node.addresses[Family.IPV4], LOCAL_NODE_PORT), 2000)
    time.sleep(1.0)
    flooded = flooder.end()
    sent = flooded["sent"]
    assert 0.5 < sent / (2000 * flooded["seconds"]) < 1.2
    until(lambda: int(in_netns(node.netns, count.read_text)) - before > 0.9 * sent, "a flow each", 60)


def test_flows_stay_where_they_are_when_endpoints_double(rig: Rig, events: Events, wanted: Settings) -> None:
    serve(rig, events)
    found = scale_out(rig, wanted, "nftables")
    assert (found["failures"], found["before_failures"], found["idle"]) == (0, 0, 0)
    assert (found["operations"], found["before_operations"]) == (1024, 512)
    # Of 512 flows over eight endpoints; one has more than these in one of 100,000 runs.
    assert 1.0 <= found["before_most"] < 1.6  # chance alone
    assert 1.4 < found["most"] < 2.2  # 1.5: the old ones have all of the first half, and half of the second


@pytest.mark.parametrize("name", ["connect-16", "TCP_RR-16"])
def test_several_at_once(rig: Rig, name: str) -> None:
    scenario: Scenario = SCENARIOS[name]
    watcher = rig.watcher(rig.client_of("direct"))
    for seconds in (0.1, 1.0, 10.0):  # where others have the processor it may take longer
        found = watcher.closed_loop(scenario.operation, (rig.pod("direct"), 9000), 16, seconds)
        took = [took for _, took in found[scenario.operation]]
        share = sum(took) / 1e9 / (16 * found["seconds"])
        if len(took) > 100 and share > 0.5:
            break
    assert len(took) > 100
    assert min(took) > 0
    assert 0.5 < share < 1.1  # sixteen were under way all the time
