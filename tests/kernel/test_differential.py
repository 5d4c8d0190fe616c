"""Random clusters in every mode: real packets, of TCP and UDP, do what the oracle says. What disagrees is printed with
the cluster's name, seed and number, and as small as it could be made (python -m tests.differential.run --help)."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from msgspec.structs import replace

from dataplane.plan.types import Plan
from tests.differential.generate import Generator
from tests.differential.ground import PLACES
from tests.differential.run import HOOKS, MODES, Differential, differential, examine

SEED = 1


@contextmanager
def _frozen() -> Iterator[None]:
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("mode", MODES)
def test_packets_do_what_the_oracle_says(mode: str, soak: bool) -> None:
    count = 1000 if soak else 25
    found: list[str] = []
    with differential(mode) as made, _frozen():
        for number in range(count):
            found += examine(made, SEED, number)
    assert not found, "\n".join(found)
    assert all(made.verdicts[verdict] > count for verdict in ("dnat", "reject", "drop", "accept")), made.verdicts


def _shifted(plan: Plan) -> Plan:
    """The plan with other ports for the endpoints of its Cluster sets."""
    entries = {
        key: replace(entry, cluster=tuple(replace(backend, port=backend.port ^ 1) for backend in entry.cluster))
        for key, entry in plan.entries.items()
    }
    return replace(plan, entries=entries)


@pytest.mark.parametrize("mode", ["iptables", "nftables", "ebpf"])
def test_wrong_endpoints_are_noticed(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Differential, "loaded", staticmethod(_shifted))
    with differential(mode) as made:
        clusters = (Generator(SEED, number, by_device=mode not in HOOKS).cluster() for number in range(8))
        found = next(filter(None, map(made.check, clusters)), [])
    assert any("one of" in finding.wanted for finding in found)


def test_a_seed_names_a_cluster() -> None:
    assert Generator(SEED, 3).cluster() == Generator(SEED, 3).cluster() != Generator(SEED, 4).cluster()
    assert {flow.place for n in range(20) for flow in Generator(SEED, n).cluster().flows} == set(PLACES) - {"pod2"}
