"""Estimate of a run's duration, from the cost of each cell on a small machine, corrected as the run proceeds."""

import time
from collections.abc import Callable, Iterable

from dataplane.bench.figures.results import CellKey
from dataplane.bench.modes import MODES
from dataplane.bench.profiles import Settings, rounds_of, seconds_of
from dataplane.bench.scenarios import SCENARIOS, Kind

_SETUP_SECONDS = 4.0
_TRUST_SECONDS = 30.0
"""What the guess weighs against what was seen so far."""
_START = {"nftables": 1.0, "iptables": 1.0, "ebpf": 2.2}
_EACH = {"nftables": 0.17e-3, "iptables": 0.2e-3, "ebpf": 0.26e-3}
_IPTABLES_SQUARE = 40.0 / 30000**2
_IPTABLES_CHANGE = 3.0 / 30000
_CHANGE = 0.6e-3
_BULK_BITS, _BULK_START = 15e9, 0.15
_PEER_START, _PEER_EACH, _PEER_CHANGE = 1.5, 0.5e-3, 0.5
_EVENT_LOADS = {"rollout": 0.0, "coldstart": 1.0, "restart": 1.2, "kill": 1.2, "switch": 2.2, "conntrack": 0.2,
                "syn-flood": 0.2}  # fmt: skip
_EVENT_LASTS, _DAEMON_START, _FILL, _SCALE = 5.5, 1.5, 2.0, 0.5
_ASK, _LIVE, _PROGRAM = 0.015, 0.1, 0.2


def expected(settings: Settings, key: CellKey) -> float:
    """Seconds that a cell takes, with its share of warming up, on a machine of two processors."""
    scenario = SCENARIOS[key.scenario]
    if scenario.kind is Kind.CONTROL:
        return _control(settings, key)
    if scenario.kind is Kind.EVENT:
        return _event(settings, key)
    rounds = rounds_of(settings, scenario, key.services)
    if scenario.operation.startswith("iperf3"):
        seconds = settings.bulk_bytes * 8 / _BULK_BITS + _BULK_START
    elif scenario.operation == "program":
        seconds = _PROGRAM
    else:
        seconds = seconds_of(settings, scenario) + (_LIVE if scenario.operation == "live" else _ASK)
    return seconds * (rounds + 1) / rounds


def _event(settings: Settings, key: CellKey) -> float:
    """The load before, during and after it, and as many cold starts as it takes; a daemon is a process besides."""
    plane, operation = MODES[key.mode].plane, SCENARIOS[key.scenario].operation
    loads = _EVENT_LOADS[operation] if plane else 0.0
    fill = _FILL if operation == "conntrack" else 0.0
    load = _DAEMON_START + _control(settings, key._replace(scenario="coldstart")) if loads else 0.0
    return settings.event_seconds * _EVENT_LASTS + loads * load + fill


def _control(settings: Settings, key: CellKey) -> float:
    plane, services = MODES[key.mode].plane, key.services
    if MODES[key.mode].is_peer:
        start = _PEER_START + _PEER_EACH * services
        return start if SCENARIOS[key.scenario].unit == "s" else _probed(settings)
    slow = plane == "iptables"
    if key.scenario == "coldstart":
        return _START[plane] + _EACH[plane] * services + (_IPTABLES_SQUARE * services**2 if slow else 0.0)
    change = _CHANGE + (_IPTABLES_CHANGE * services + 0.02 if slow else 0.0)
    if SCENARIOS[key.scenario].operation == "scale":
        return _SCALE + 2 * change
    if key.scenario == "change":
        return max(2 * change, min(settings.change_seconds, settings.changes * change))
    return settings.rollout_seconds + change


def _probed(settings: Settings) -> float:
    return settings.probing.changes * (settings.probing.pause + _PEER_CHANGE)


def run_seconds(settings: Settings, keys: Iterable[CellKey]) -> float:
    """Seconds that these cells take together."""
    return _SETUP_SECONDS + sum(expected(settings, key) for key in keys)


class Pace:
    """How long the rest takes, by how long what is done has taken against its guess."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._started, self._guessed = clock(), 0.0

    def done(self, key: CellKey) -> None:
        """This cell has been measured."""
        self._guessed += expected(self._settings, key)

    def remaining(self, keys: Iterable[CellKey]) -> float:
        """Seconds that these will take."""
        took = self._clock() - self._started
        factor = (took + _TRUST_SECONDS) / (self._guessed + _TRUST_SECONDS)
        return factor * sum(expected(self._settings, key) for key in keys)


def duration(seconds: float) -> str:
    """A length of time for people: 0:42, 13:05, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
