"""What a steady load sees while something happens to a peer, by real packets: a toy proxy, good and bad."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dataplane.bench.agent import CHANGES_A_SECOND
from dataplane.bench.events.events import Events
from dataplane.bench.load.native import load_tool
from dataplane.bench.peer.control import PeerControl
from dataplane.bench.peer.spec import Peer
from dataplane.bench.profiles import Overrides, Settings, settings
from dataplane.bench.rig import Rig
from dataplane.bench.scenarios import SCENARIOS
from dataplane.lab.spec import LabError
from tests.bench_modes import own_modes
from tests.kernel import toy_proxy
from tests.kernel.daemon_lab import until

SERVICES = 3
MS = 1_000_000
LOST_SYN = 1000 * MS
"""A lost SYN is sent again after so long. On a busy machine a connection waits for a processor for less."""
TOY = f"exec {sys.executable} {Path(toy_proxy.__file__)}"
PEERS = (Peer("toy", TOY), Peer("leaky", f"{TOY} takes-rules late"), Peer("once", f"{TOY} once"))
RESTART, KILL = SCENARIOS["during-restart"], SCENARIOS["during-kill"]
ROLLOUT, COLD = SCENARIOS["during-rollout"], SCENARIOS["during-coldstart"]
NEW = "something is new"


@pytest.fixture(scope="module")
def wanted() -> Iterator[Settings]:
    names = [RESTART.name, KILL.name, ROLLOUT.name, COLD.name]
    with own_modes():
        chosen = settings("tiny", Overrides(["direct"], names, [SERVICES], peers=PEERS, endpoints=1))
        yield msgspec.structs.replace(chosen, event_seconds=0.2)


@pytest.fixture(scope="module")
def rig(wanted: Settings) -> Iterator[Rig]:
    with Rig(f"peer-events-{os.getpid()}", wanted, load_tool()) as rig:
        yield rig


@pytest.fixture
def events(rig: Rig, wanted: Settings) -> Iterator[Events]:
    with Events(rig, wanted, SERVICES) as events:
        yield events


def said(peer: PeerControl) -> str:
    return peer._process.log.read_text()


def processes(rig: Rig, mode: str) -> set[str]:
    return set((rig.lab.cgroup(rig.nodes[mode]) / "peer/cgroup.procs").read_text().split())


def test_a_cold_start_is_measured_by_packets(rig: Rig, events: Events) -> None:
    found = events.measure("leaky", COLD)
    assert found["gap"] > toy_proxy.LATE * 1e9 - 5 * MS  # nothing that it says of itself is asked
    assert found["event"] > toy_proxy.LATE
    assert found["failures"] + found["slow"] > 100
    assert found["operations"] > 50  # once it serves, and after


def test_kill_9_of_a_peer_is_one_and_loses_nothing_where_rules_stay(rig: Rig, events: Events) -> None:
    rig.peer("leaky").load(SERVICES)
    before = processes(rig, "leaky")
    found = events.measure("leaky", KILL)
    assert not processes(rig, "leaky") & before
    assert "ended in order" not in said(rig.peer("leaky"))
    assert (found["failures"], found["flow_failures"], found["ended"], found["flows"]) == (0, 0, 0, 16)
    assert found["max"] < LOST_SYN
    assert toy_proxy.LATE < found["event"] < 300  # until it serves what came meanwhile, though rules of it were there


def test_a_peer_that_takes_its_rules_with_it_is_told_so(events: Events) -> None:
    found = events.measure("leaky", RESTART)
    assert found["gap"] > toy_proxy.LATE * 1e9
    assert found["slow"] + found["failures"] > 100


def test_a_restart_in_order_loses_nothing_where_rules_stay(rig: Rig, events: Events) -> None:
    found = events.measure("toy", RESTART)
    assert (found["failures"], found["ended"]) == (0, 0)
    assert found["max"] < LOST_SYN
    assert said(rig.peer("toy")) == f"{NEW}\n"  # the second one's


def test_a_rollout_comes_by_the_api_server(rig: Rig, events: Events) -> None:
    found = events.measure("toy", ROLLOUT)
    assert (found["failures"], found["ended"]) == (0, 0)
    until(lambda: said(rig.peer("toy")).count(NEW) > 3, "it has heard of several")
    for seconds in (0.5, 2.0, 8.0):  # where others have the processor it may take longer
        began = time.monotonic()
        made = rig.peer("toy").changes(seconds)
        assert made < 1.1 * CHANGES_A_SECOND * (time.monotonic() - began)
        if made > 0.5 * CHANGES_A_SECOND * seconds:
            break
    assert made > 0.5 * CHANGES_A_SECOND * seconds


def test_a_peer_that_does_not_come_back_is_told_at_once_until_a_cold_start(rig: Rig, events: Events) -> None:
    with pytest.raises(LabError, match="once: it has ended with status 1; its last words: something of me is there"):
        events.measure("once", KILL)
    with pytest.raises(LabError, match="something of me is there"):
        events.measure("once", ROLLOUT)
    assert rig.lab.run(rig.nodes["once"], ["nft", "list", "ruleset"]).stdout == ""
    assert events.measure("once", COLD)["operations"] > 50
