"""Host routing against the stack, by chance: flows go on while policies and other programs' rules come and go. See
tests/past_stack/run.py, which does it for as long as one likes."""

import random

import pytest

from tests.kernel.host_lab import host_lab
from tests.past_stack.run import ROOM, run

FLOWS, SOAK_FLOWS = 1000, 100_000


def test_a_random_walk(request: pytest.FixtureRequest) -> None:
    long = request.config.getoption("--soak")
    seed = random.randrange(1 << 32) if long else 7
    print(f"seed {seed}")
    with host_lab(sizes=ROOM, report=print) as lab:
        for turn in range(12):  # where flows are over before anything was denied to them, others follow
            done = run(lab, SOAK_FLOWS if long else FLOWS, seed + turn, print)
            assert done.flows.faults == []
            assert done.flows.exchanges > FLOWS / 2
            if done.flows.dropped > 10:
                break
    assert done.flows.dropped > 10
    assert min(done.ways[way] for way in ("into_pod", "out_of_node", "forwarded")) > 100
