"""A run in a cluster: every round measures each scenario by all ways, in shuffled order; the first only warms up."""

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from dataplane.bench.cluster.kubectl import ClusterError
from dataplane.bench.cluster.site import Site
from dataplane.bench.figures.results import CellKey, Journal, Results
from dataplane.bench.run import Progress, data_key, judged, measured
from dataplane.bench.scenarios import SCENARIOS, Position

_WARM_SHARE = 0.25
_START_SECONDS = 0.1
"""What a measurement takes beyond its length, at first guess."""


class Runner:
    """Measures everything that `results.settings` asks for and adds it to `results`."""

    def __init__(self, site: Site, results: Results, journal: Journal, progress: Progress) -> None:
        self._site, self._results, self._journal, self._progress = site, results, journal, progress
        self._settings = results.settings
        self._random = random.Random(self._settings.seed)
        self._done, self._started = 0, time.monotonic()

    @property
    def _total(self) -> int:
        s = self._settings
        return len(s.services) * s.rounds * len(s.scenarios) * len(self._site.modes)

    def run(self) -> None:
        """All rounds. A measurement that fails is recorded as such. Raises ClusterError when Services cannot be made,
        or a node has no room for more connections."""
        for services in self._settings.services:
            self._site.serve(services)
            self._note_what_is_left_out()
            for number in range(self._settings.rounds + 1):
                for scenario in self._shuffled(self._settings.scenarios):
                    self._site.make_room()
                    for mode in self._shuffled(self._site.modes):
                        key = data_key(mode, SCENARIOS[scenario], services, Position.LAST, number)
                        self._tell(key)
                        (self._record if number else self._warm_up)(key)

    def _note_what_is_left_out(self) -> None:
        known = self._results.skipped
        known += [text for text in self._site.skipped if text not in known]
        modes = tuple(mode for mode in self._settings.modes if mode in self._site.modes or self._was_measured(mode))
        self._results.settings = self._settings = msgspec.structs.replace(self._settings, modes=modes)

    def _was_measured(self, mode: str) -> bool:
        return any(cell.key.mode == mode for cell in self._results.cells)

    def _shuffled(self, items: "list[str] | tuple[str, ...]") -> list[str]:
        return self._random.sample(items, len(items))

    def _tell(self, key: CellKey) -> None:
        took = self._settings.seconds + _START_SECONDS
        if self._done:
            took = (time.monotonic() - self._started) / self._done
        left = self._total - self._done
        services = f"{key.services:,} Service{'s' if key.services > 1 else ''}"
        doing = "" if key.round else "warming up "
        self._progress(self._done, self._total, left * took, f"{services}: {doing}{key.scenario}, {key.mode}")

    def _warm_up(self, key: CellKey) -> None:
        try:
            self._site.measure(key.mode, SCENARIOS[key.scenario], _WARM_SHARE * self._settings.seconds)
        except ClusterError:
            return  # whatever fails now fails again when it counts, and is recorded then

    def _measure(self, key: CellKey) -> dict[str, Any]:
        return judged(self._site.measure(key.mode, SCENARIOS[key.scenario], self._settings.seconds))

    def _record(self, key: CellKey) -> None:
        measure: Callable[[], dict[str, Any]] = partial(self._measure, key)
        cell = measured(key, measure)
        self._done += 1
        self._results.cells.append(cell)
        self._journal.add(cell)
