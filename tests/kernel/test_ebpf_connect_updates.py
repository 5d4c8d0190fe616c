"""Clients that connect while the tables change underneath: never a wrong delivery, never a failed connect."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dataplane.kernel.namespaces import netns
from dataplane.model.net import Family
from dataplane.plan.change import apply_change, diff
from dataplane.plan.types import PlanEntry
from dataplane.planes.ebpf.attach.programs import ConnectHook
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.policy.endpoints import Backend
from tests.kernel.ebpf_lab import (
    BACKEND_PORT,
    BACKENDS,
    CLUSTER_IP,
    SMALL,
    Node,
    NoSlowPath,
    built_node,
    plan_of,
    service,
)

OTHER_PORT = 8081
"""Nobody listens there: a client of the stable Service that is led to another's backends is refused."""
ADDRESSES = BACKENDS[Family.IPV4]
READERS, FEWEST_CHANGES = 2, 100


@pytest.fixture
def node() -> Iterator[Node]:
    with built_node("upd") as node:
        yield node


def _stable(rng: random.Random) -> PlanEntry:
    """The Service that clients use, with a random set of live backends."""
    chosen = rng.sample(ADDRESSES, rng.randint(1, len(ADDRESSES)))
    backends = tuple(Backend(address, BACKEND_PORT) for address in sorted(chosen))
    return service("stable", backends=backends)


def _passing(rng: random.Random, number: int) -> PlanEntry:
    """Another Service, which takes over the indices and the memory of what has just gone."""
    backends = tuple(Backend(f"10.244.2.{n}", OTHER_PORT) for n in sorted(rng.sample(range(2, 200), rng.randint(0, 6))))
    return service(f"passing{number}", backends=backends, address=f"172.30.3.{number}")


def test_readers_never_see_half_a_change(node: Node, soak: bool) -> None:
    with netns.netns(node.names["node"]):
        plane = EbpfPlane(NoSlowPath(), [ConnectHook(node.group)], SMALL)
    rng = random.Random(7)
    try:
        before = plan_of(_stable(rng))
        plane.load(before)
        readers = [node.process("pod") for _ in range(READERS)]

        def read(number: int) -> set[str]:
            """So much, and until there were changes enough, however long the other side has had no processor."""
            seen: set[str] = set()
            turns = 0
            while turns < (40 if soak else 8) or not enough.is_set():
                seen |= set(readers[number].call("fetch_many", 2, CLUSTER_IP[Family.IPV4], 80, 100))
                turns += 1
            return seen

        changes, enough = 0, threading.Event()
        with ThreadPoolExecutor(READERS) as pool:
            answers = [pool.submit(read, number) for number in range(READERS)]
            try:
                while not all(answer.done() for answer in answers):
                    numbers = rng.sample(range(1, 9), rng.randint(0, 8))
                    after = plan_of(_stable(rng), *(_passing(rng, number) for number in numbers))
                    change = diff(before, after)
                    plane.apply(change)
                    apply_change(before, change)
                    changes += 1
                    if changes > FEWEST_CHANGES:
                        enough.set()
                    time.sleep(0)
            finally:
                enough.set()
        assert all(answer.result() == set(ADDRESSES) for answer in answers)
        assert changes > FEWEST_CHANGES
    finally:
        plane.cleanup()
