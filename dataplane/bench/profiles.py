"""How much is measured: the profiles and the settings that a run is made of."""

from collections.abc import Sequence

import msgspec

from dataplane.bench.modes import with_peers
from dataplane.bench.objects import ENDPOINTS, FLOW_ENDPOINTS, MOST_ENDPOINTS, MOST_FLOW_ENDPOINTS, Form
from dataplane.bench.peer.spec import Peer
from dataplane.bench.scenarios import IMBALANCE, RENAMED, SCENARIOS, Kind, Position, Scenario
from dataplane.errors import UsageError
from dataplane.lab.spec import Routing
from dataplane.model.net import Family

MOST_SERVICES = 30000
PACED_TIMES = 4


class Probing(msgspec.Struct, frozen=True):
    """How peers' control planes are measured. rounds: of each scenario, at every size. changes: in a round, one after
    the other, each after a pause of so many seconds: peers put off changes that follow each other closely."""

    rounds: int = 5
    changes: int = 3
    pause: float = 1.5


class Settings(msgspec.Struct, frozen=True):
    """Everything that decides what a run measures; two runs with the same settings can be compared cell by cell.

    services: how many there are, one stage each. fixed_services: the stages at which scenarios that do not sweep are
    measured; few_services: those at which some of them are measured too, to see them where rules are few.
    position_services: the stages at which `positions` are, elsewhere the last Service only. rounds: without the
    warm-up, of scenarios with a bar at bar_services; light_rounds: of all others. seconds: length of one measurement,
    of paced ones PACED_TIMES as long, since one in ten thousand is looked for, and on several processors, which do not
    begin at the same moment;
    bulk_bytes: size of a bulk one. control_rounds, changes, change_seconds, rollout_seconds: of the control plane at
    the largest size; light_control_rounds: at the others. slow_load_seconds: a mode whose cold start takes longer has
    one control round at that size. iptables_max: iptables is left out above. endpoints: of each Service.
    processors: those that scaling scenarios are measured on, how many at once. peers: modes that are programs of their
    own; probing: how they are probed. event_rounds: of events; event_seconds: how long the load goes on before and
    after one; event_modes: those that events happen to, () for all. form: what is special about the cluster.
    """

    profile: str
    modes: tuple[str, ...]
    scenarios: tuple[str, ...]
    services: tuple[int, ...]
    fixed_services: tuple[int, ...]
    few_services: tuple[int, ...]
    position_services: tuple[int, ...]
    bar_services: tuple[int, ...]
    positions: tuple[Position, ...]
    rounds: int
    light_rounds: int
    seconds: float
    bulk_bytes: int
    control_rounds: int
    light_control_rounds: int
    changes: int
    change_seconds: float
    rollout_seconds: float
    slow_load_seconds: float
    iptables_max: int
    seed: int = 1
    load_tool: str = "c"
    endpoints: int = ENDPOINTS
    family: Family = Family.IPV4
    routing: Routing = Routing.DIRECT
    processors: tuple[int, ...] = ()
    peers: tuple[Peer, ...] = ()
    probing: Probing = Probing()
    event_rounds: int = 1
    event_seconds: float = 1.0
    event_modes: tuple[str, ...] = ()
    form: Form = Form.PLAIN


SCALING = tuple(name for name, scenario in SCENARIOS.items() if scenario.scaling)
_ALL = tuple(name for name in SCENARIOS if name not in SCALING)
_QUICK_EVENTS = ("during-rollout", "during-kill")
_FULL_ONLY = (
    "TCP_STREAM-4", "north-remote-rr", "connect-alone", "TCP_CRR@50", "TCP_CRR@80", "TCP_CRR@95",
    IMBALANCE, *(s.name for s in SCENARIOS.values() if s.at_once),
    *(s.name for s in SCENARIOS.values() if s.kind is Kind.EVENT and s.name not in _QUICK_EVENTS),
)  # fmt: skip
_STRESS = (
    "connect", "pod", "TCP_RR", *(s.name for s in SCENARIOS.values() if s.at_once), "coldstart", "change", "rollout",
    IMBALANCE, *_QUICK_EVENTS,
)  # fmt: skip
PROFILES = {
    "quick": Settings(
        profile="quick", modes=(), scenarios=tuple(n for n in _ALL if n not in _FULL_ONLY), services=(1, 1000, 10000),
        fixed_services=(1000,), few_services=(), position_services=(10000,), bar_services=(),
        positions=(Position.FIRST, Position.LAST), rounds=5, light_rounds=5, seconds=0.1, bulk_bytes=200 << 20,
        control_rounds=1, light_control_rounds=1, changes=100, change_seconds=0.5, rollout_seconds=0.6,
        slow_load_seconds=3.0, iptables_max=10000, event_seconds=0.5,
    ),
    "full": Settings(
        profile="full", modes=(), scenarios=_ALL, services=(1, 100, 1000, 5000, 10000, 30000),
        fixed_services=(10000,), few_services=(1,), position_services=(10000,), bar_services=(10000, 30000),
        positions=tuple(Position), rounds=25, light_rounds=5, seconds=0.15, bulk_bytes=256 << 20,
        control_rounds=9, light_control_rounds=1, changes=1000, change_seconds=1.5, rollout_seconds=1.5,
        slow_load_seconds=10.0, iptables_max=30000, event_seconds=0.5,
    ),
    "tiny": Settings(
        profile="tiny", modes=(), scenarios=_ALL, services=(1, 20), fixed_services=(20,), few_services=(1,),
        position_services=(20,), bar_services=(20,), positions=(Position.FIRST, Position.LAST), rounds=2,
        light_rounds=1, seconds=0.02, bulk_bytes=32 << 20, control_rounds=1, light_control_rounds=1, changes=5,
        change_seconds=0.5, rollout_seconds=0.05, slow_load_seconds=3.0, iptables_max=100, event_seconds=0.1,
        probing=Probing(1, 2, 0.1),
        event_modes=("nftables",),
    ),
    "stress": Settings(
        profile="stress", modes=(), scenarios=_STRESS, services=(5000,), fixed_services=(5000,), few_services=(),
        position_services=(), bar_services=(), positions=(Position.LAST,), rounds=5, light_rounds=5, seconds=0.15,
        bulk_bytes=200 << 20, control_rounds=3, light_control_rounds=3, changes=300, change_seconds=1.5,
        rollout_seconds=1.5, slow_load_seconds=10.0, iptables_max=1000, endpoints=50,
    ),
}  # fmt: skip
"""tiny only shows that everything works. stress: sizes that hurt, without iptables, whose rules take minutes to load
there; which sizes depends on the form."""
_STRESS_SIZES = {Form.PLAIN: (5000, 50), Form.SHARED: (10000, 50), Form.LARGE: (1000, 5), Form.AFFINITY: (10000, 5)}
"""Services, and endpoints of each."""


class Overrides(msgspec.Struct, frozen=True):
    """Settings given on the command line that replace those of the profile; empty or None keeps the profile's."""

    modes: Sequence[str] = ()
    scenarios: Sequence[str] = ()
    services: Sequence[int] = ()
    rounds: int | None = None
    iptables_max: int | None = None
    endpoints: int | None = None
    family: Family = Family.IPV4
    routing: Routing = Routing.DIRECT
    seed: int = 1
    processors: Sequence[int] = ()
    peers: Sequence[Peer] = ()
    form: Form = Form.PLAIN


def settings(profile: str, overrides: Overrides | None = None) -> Settings:
    """Return the settings of a profile with `overrides` applied. Raises UsageError for an invalid value."""
    overrides = overrides or Overrides()
    base = _stressed(overrides.form) if profile == "stress" else PROFILES[profile]
    names = [RENAMED.get(name, name) for name in overrides.scenarios]
    overrides = msgspec.structs.replace(overrides, scenarios=names)
    _check(overrides)
    usual = [name for name in base.scenarios if overrides.peers or not SCENARIOS[name].probed]
    counts = tuple(sorted(set(overrides.services))) or base.services

    def some(wanted: tuple[int, ...], otherwise: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(count for count in wanted if count in counts) or otherwise

    return msgspec.structs.replace(
        base,
        modes=tuple(with_peers(overrides.modes, overrides.peers)),
        scenarios=_with_rates(_with_scaling(overrides.scenarios or usual, overrides.processors)),
        services=counts,
        fixed_services=some(base.fixed_services, counts),
        few_services=some(base.few_services, ()),
        position_services=some(base.position_services, counts),
        bar_services=some(base.bar_services, counts),
        rounds=base.rounds if overrides.rounds is None else overrides.rounds,
        light_rounds=base.light_rounds if overrides.rounds is None else overrides.rounds,
        event_rounds=base.event_rounds if overrides.rounds is None else overrides.rounds,
        iptables_max=base.iptables_max if overrides.iptables_max is None else overrides.iptables_max,
        endpoints=base.endpoints if overrides.endpoints is None else overrides.endpoints,
        form=overrides.form,
        family=overrides.family,
        routing=overrides.routing,
        seed=overrides.seed,
        processors=tuple(sorted({1, *overrides.processors})) if overrides.processors else (),
        peers=tuple(overrides.peers),
        probing=base.probing
        if overrides.rounds is None
        else msgspec.structs.replace(base.probing, rounds=overrides.rounds),
    )


def _stressed(form: Form) -> Settings:
    """The profile stress in the sizes of a form."""
    services, endpoints = _STRESS_SIZES[form]
    sizes = (services,)
    return msgspec.structs.replace(PROFILES["stress"], services=sizes, fixed_services=sizes, endpoints=endpoints)


def flow_endpoints(settings: Settings) -> int:
    """Endpoints of the Service for flows that stay; 0 where nothing is measured with it."""
    if settings.form is Form.LARGE:
        return MOST_FLOW_ENDPOINTS
    return FLOW_ENDPOINTS if IMBALANCE in settings.scenarios else 0


def _with_scaling(names: Sequence[str], processors: Sequence[int]) -> tuple[str, ...]:
    """The scenarios, and those on several processors if such were asked for and none of them is named."""
    return (*names, *SCALING) if processors and not set(SCALING) & set(names) else tuple(names)


def _with_rates(names: Sequence[str]) -> tuple[str, ...]:
    """The scenarios in the order of reports, with those whose rates others are paced by."""
    wanted = {*names, *(SCENARIOS[name].beside for name in names if SCENARIOS[name].load)}
    return tuple(name for name in SCENARIOS if name in wanted)


def _check(overrides: Overrides) -> None:
    unknown = [name for name in overrides.scenarios if name not in SCENARIOS]
    if unknown:
        raise UsageError(f"--scenario {','.join(unknown)}: there is none; choose of {', '.join(SCENARIOS)}")
    if any(not 1 <= count <= MOST_SERVICES for count in overrides.services):
        raise UsageError(f"--services {','.join(map(str, overrides.services))}: numbers from 1 to {MOST_SERVICES}")
    if overrides.endpoints is not None and not 1 <= overrides.endpoints <= MOST_ENDPOINTS:
        raise UsageError(f"--endpoints {overrides.endpoints}: a number from 1 to {MOST_ENDPOINTS}")
    scaling = [name for name in overrides.scenarios if name in SCALING]
    if scaling and not overrides.processors:
        raise UsageError(f"--scenario {','.join(scaling)}: say on how many processors, e.g. --processors 1,2,4")
    probed = [name for name in overrides.scenarios if SCENARIOS[name].probed]
    if probed and not overrides.peers:
        raise UsageError(f"--scenario {','.join(probed)}: of which proxy? Name one, e.g. --peer hotplane-nftables")
    if any(count < 1 for count in overrides.processors):
        raise UsageError(f"--processors {','.join(map(str, overrides.processors))}: numbers from 1")
    if overrides.rounds is not None and overrides.rounds < 1:
        raise UsageError(f"--rounds {overrides.rounds}: at least 1")


def with_alone(settings: Settings) -> bool:
    """True if nodes with one Service are needed beside the others."""
    return any(SCENARIOS[name].alone for name in settings.scenarios) and max(settings.services) > 1


def seconds_of(settings: Settings, scenario: Scenario) -> float:
    """Length of one measurement."""
    return settings.seconds * (PACED_TIMES if scenario.load or scenario.scaling else 1)


def positions_at(settings: Settings, services: int) -> tuple[Position, ...]:
    """The positions to measure among so many Services: of one alone there is only the last."""
    if services == 1 or services not in settings.position_services:
        return (Position.LAST,)
    return tuple(p for p in settings.positions if not (services == 2 and p is Position.MIDDLE))


def rounds_of(settings: Settings, scenario: Scenario, services: int) -> int:
    """Rounds of a scenario of packets, without the warm-up."""
    if scenario.alone:
        return settings.rounds
    there = settings.bar_services if scenario.sweep else settings.fixed_services
    return settings.rounds if scenario.bar and services in there else settings.light_rounds


def control_rounds_at(settings: Settings, services: int, *, probed: bool = False) -> int:
    """Rounds of the control plane's scenarios, or of those that peers have instead."""
    if probed:
        return settings.probing.rounds
    return settings.control_rounds if services == max(settings.services) else settings.light_control_rounds


def happens_at(settings: Settings, scenario: Scenario, services: int) -> bool:
    """True if an event is measured at this number of Services: a cold start at the most, others where scenarios are
    that do not sweep."""
    return (
        services == max(settings.services) if scenario.operation == "coldstart" else services in settings.fixed_services
    )


def control_at(settings: Settings, scenario: Scenario, services: int) -> bool:
    """True if a scenario of the control plane is measured at this number of Services: all are but the scale-out."""
    return scenario.operation != "scale" or services in settings.fixed_services


def measured_at(settings: Settings, scenario: Scenario, services: int) -> bool:
    """True if a scenario of packets is measured at this number of Services."""
    if scenario.alone:
        return services == max(settings.services) > 1
    return scenario.sweep or services in settings.fixed_services or (scenario.few and services in settings.few_services)
