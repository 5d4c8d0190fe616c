"""Made-up benchmark runs, for the tests of what is made of them."""

import random

import msgspec

from dataplane.bench.figures import hdr
from dataplane.bench.figures.results import Cell, CellKey, Machine, Results
from dataplane.bench.peer.spec import Peer
from dataplane.bench.profiles import Overrides, Settings, settings
from dataplane.bench.run import all_keys
from dataplane.bench.scenarios import SCENARIOS, Kind

SPEED = {"direct": 1.0, "direct-again": 1.0, "conntrack": 0.95, "iptables": 0.9, "nftables": 0.9, "ebpf-connect": 1.0,
         "ebpf-tc": 0.97, "ebpf-xdp": 0.97}  # fmt: skip


def made_up(
    *,
    modes: tuple[str, ...] = ("conntrack", "iptables", "nftables", "ebpf-connect"),
    services: tuple[int, ...] = (1, 10000, 30000),
    rounds: int = 9,
    noise: float = 0.01,
    machine: float = 1.0,
    speed: dict[str, float] | None = None,
    others: float = 0.0,
    seed: int = 1,
    equal: bool = False,
    peers: tuple[Peer, ...] = (),
) -> Results:
    """A run in which every mode has its speed as a share of direct's, and iptables gets slower with every Service.

    noise: relative, of each cell. machine: speed of the whole machine. speed: instead of SPEED's. equal: iptables is no
    slower than the others.
    """
    chosen: Settings = settings("full", Overrides(modes, services=services, rounds=rounds, peers=peers))
    chosen = msgspec.structs.replace(chosen, control_rounds=rounds, light_control_rounds=rounds, event_rounds=rounds)
    rates = SPEED | (speed or {})
    cells = []
    for key in dict.fromkeys(all_keys(chosen)):
        shaken = max(0.05, random.Random(f"{seed} {key}").gauss(1.0, noise)) * machine
        figured = key._replace(mode="nftables") if equal and key.mode == "iptables" else key
        with_counts = "@" in key.scenario or SCENARIOS[key.scenario].kind is Kind.EVENT
        paced = hdr.encode({hdr.bucket(int(80e3 / shaken)): 3000}) if with_counts else ""
        cells.append(Cell(key, _figures(figured, rates.get(key.mode, 1.0) * shaken, others), histogram=paced))
    facts = Machine(started="2024-05-01T00:00:00+00:00", cpu_model="Test CPU", cpus=2, kernel="6.1.0")
    return Results(facts, chosen, "hotplane bench --profile quick", seconds=120.0, complete=True, cells=cells)


def _figures(key: CellKey, speed: float, others: float) -> dict[str, float]:
    """speed: share of a quiet machine's direct rate."""
    if SCENARIOS[key.scenario].kind is Kind.CONTROL:
        slow = 20.0 if key.mode == "iptables" else 1.0
        seconds = slow * 0.5 * key.services / 30000 / speed
        return {
            "seconds": seconds, "kernel_seconds": seconds * 0.7, "plan_seconds": seconds * 0.3,
            "maps_seconds": seconds * 0.5, "rss": 2e7 + 3e3 * key.services, "kernel_bytes": 4e3 * key.services,
            "cpu": seconds, "p50": 3e5 * slow / speed, "p99": 5e5 * slow / speed, "rate": 100.0, "others": others,
            "most": 1.5 / speed,
        }  # fmt: skip
    if SCENARIOS[key.scenario].kind is Kind.EVENT:
        return {
            "operations": 2998.0, "failures": 2.0, "slow": 40.0, "gap": 80e6 / speed, "p99": 80e3 / speed, "max": 3e9,
            "flow_operations": 2400.0, "flow_failures": 0.0, "flow_slow": 3.0, "flow_gap": 9e6, "flows": 16.0,
            "ended": 0.0, "late": 2e6, "seconds": 6.0, "event": 2.5, "others": others,
        }  # fmt: skip
    if key.mode == "iptables" and key.position != "first" and key.scenario in ("connect", "dns"):
        speed /= 1 + key.services / 1000
    if key.scenario == "xdp-cost":
        return {"ns": 120 / speed, "least": 110.0, "operations": 5e4, "failures": 0.0, "seconds": 0.01}
    return {
        "rate": 20000 * speed, "operations": 2000.0, "failures": 0.0, "seconds": 0.1, "p50": 40e3 / speed,
        "p90": 50e3 / speed, "p99": 80e3 / speed, "p999": 200e3 / speed, "p9999": 900e3 / speed, "max": 1e6,
        "cpu": 60 / speed, "others": others,
    }  # fmt: skip
