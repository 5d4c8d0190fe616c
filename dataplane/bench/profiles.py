"""How much is measured: the profiles and the settings that a run is made of."""

from collections.abc import Sequence

import msgspec

from dataplane.bench.modes import chosen
from dataplane.bench.scenarios import SCENARIOS, Position
from dataplane.errors import UsageError

MOST_SERVICES = 30000


class Settings(msgspec.Struct, frozen=True):
    """Everything that decides what a run measures; two runs with the same settings can be compared cell by cell.

    services: how many there are, one stage each. fixed_services: the stages at which scenarios that do not sweep are
    measured. rounds: without the warm-up. seconds: length of one measurement; bulk_bytes: size of a bulk one.
    control_rounds, changes, change_seconds, rollout_seconds: of the control plane. slow_load_seconds: a mode whose
    cold start takes longer has only one at that size. iptables_max: iptables is left out above.
    """

    profile: str
    modes: tuple[str, ...]
    scenarios: tuple[str, ...]
    services: tuple[int, ...]
    fixed_services: tuple[int, ...]
    positions: tuple[Position, ...]
    rounds: int
    seconds: float
    bulk_bytes: int
    control_rounds: int
    changes: int
    change_seconds: float
    rollout_seconds: float
    slow_load_seconds: float
    iptables_max: int
    seed: int = 1
    load_tool: str = "c"


_ALL = tuple(SCENARIOS)
_FULL_ONLY = ("bulk4", "north-remote-rr")
PROFILES = {
    "quick": Settings(
        profile="quick", modes=(), scenarios=tuple(n for n in _ALL if n not in _FULL_ONLY), services=(1, 1000, 10000),
        fixed_services=(1000,), positions=(Position.FIRST, Position.LAST), rounds=5, seconds=0.1,
        bulk_bytes=200 << 20, control_rounds=1, changes=100, change_seconds=0.5, rollout_seconds=0.6,
        slow_load_seconds=3.0, iptables_max=10000,
    ),
    "full": Settings(
        profile="full", modes=(), scenarios=_ALL, services=(1, 100, 1000, 5000, 10000, 30000),
        fixed_services=(1, 10000), positions=tuple(Position), rounds=11, seconds=0.25, bulk_bytes=512 << 20,
        control_rounds=3, changes=500, change_seconds=1.5, rollout_seconds=2.0, slow_load_seconds=10.0,
        iptables_max=30000,
    ),
    "tiny": Settings(
        profile="tiny", modes=(), scenarios=_ALL, services=(1, 20), fixed_services=(20,),
        positions=(Position.FIRST, Position.LAST), rounds=2, seconds=0.02, bulk_bytes=32 << 20, control_rounds=1,
        changes=5, change_seconds=0.5, rollout_seconds=0.05, slow_load_seconds=3.0, iptables_max=100,
    ),
}  # fmt: skip
"""tiny only shows that everything works."""


def settings(
    profile: str,
    modes: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    services: Sequence[int] = (),
    rounds: int | None = None,
    iptables_max: int | None = None,
    seed: int = 1,
) -> Settings:
    """A profile with what was asked for instead. Raises UsageError for what does not exist."""
    base = PROFILES[profile]
    unknown = [name for name in scenarios if name not in SCENARIOS]
    if unknown:
        raise UsageError(f"--scenario {','.join(unknown)}: there is none; choose of {', '.join(SCENARIOS)}")
    if any(not 1 <= count <= MOST_SERVICES for count in services):
        raise UsageError(f"--services {','.join(map(str, services))}: numbers from 1 to {MOST_SERVICES}")
    if rounds is not None and rounds < 1:
        raise UsageError(f"--rounds {rounds}: at least 1")
    counts = tuple(sorted(set(services))) or base.services
    fixed = tuple(count for count in base.fixed_services if count in counts) or counts
    return msgspec.structs.replace(
        base,
        modes=tuple(chosen(modes)),
        scenarios=tuple(name for name in _ALL if name in (scenarios or base.scenarios)),
        services=counts,
        fixed_services=fixed,
        rounds=base.rounds if rounds is None else rounds,
        iptables_max=base.iptables_max if iptables_max is None else iptables_max,
        seed=seed,
    )


def positions_at(wanted: Sequence[Position], services: int) -> tuple[Position, ...]:
    """The positions that differ among so many Services: of one alone only the last."""
    if services == 1:
        return (Position.LAST,)
    if services == 2:
        return tuple(p for p in wanted if p is not Position.MIDDLE)
    return tuple(wanted)
