"""Data planes compared between machines: clients on one, servers on another, a Service proxy on every node.

Clients are a pod of node 1 and the outside client, the backend is a pod of node 2: every packet crosses the machines'
network. Nodes hold one mode at a time, so each round loads every mode afresh, in shuffled order, by the command line,
and it leaves nothing behind. `direct` has no rules anywhere.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from dataplane.bench.figures.results import Cell, CellKey, Journal, Results
from dataplane.bench.modes import AGAIN, DIRECT, MODES
from dataplane.bench.objects import Backend, Shape, chunks, decoded
from dataplane.bench.profiles import PROFILES, Settings
from dataplane.bench.remote.site import Site
from dataplane.bench.run import data_key, judged, measured
from dataplane.bench.scenarios import SCENARIOS, Position
from dataplane.errors import UsageError
from dataplane.lab.spec import LabError, LabSpec
from dataplane.lab.vagrant.proxies import VARIANTS, MachineProxies
from dataplane.model.net import Family
from dataplane.model.objects import ModelObject

BETWEEN = (DIRECT, AGAIN, *(name for name in VARIANTS if name in MODES))
"""The modes that there are: of the lab's variants those that the benchmark has. The usual ones are measured unless
others are asked for."""
_USUAL = (DIRECT, AGAIN, "iptables", "nftables", "ebpf", "ipvs")
_SCENARIOS = ("connect", "TCP_CRR", "TCP_RR", "TCP_STREAM", "north-remote", "north-remote-rr")
_BASE = replace(
    PROFILES["quick"], profile="machines", modes=_USUAL, scenarios=_SCENARIOS, services=(1, 1000, 10000), rounds=7,
    seconds=1.0, few_services=(), position_services=(), bar_services=(), positions=(Position.LAST,),
)  # fmt: skip
EXTENTS = {
    "standard": _BASE,
    "emulated": replace(_BASE, profile="machines, emulated", services=(1, 100), rounds=2, seconds=2.0),
}
"""How much is measured; emulated: on machines that are ten times slower, to see that it works."""


def settings(base: Settings, spec: LabSpec, modes: Sequence[str] = (), services: Sequence[int] = ()) -> Settings:
    """One of EXTENTS in a lab of this shape, with these modes and sizes instead of its own. Raises UsageError."""
    unknown = [mode for mode in modes if mode not in BETWEEN]
    if unknown:
        raise UsageError(f"--modes {','.join(unknown)}: there is no such mode; choose of {', '.join(BETWEEN)}")
    if spec.nodes < 2 or not spec.pods_of(1) or not spec.pods_of(2):
        raise UsageError("the benchmark needs two nodes with a pod each: set HOTPLANE_VM_NODES and HOTPLANE_VM_PODS")
    if base.family is Family.IPV6 and not spec.ipv6:
        raise UsageError("--family ipv6: this lab has no IPv6; set HOTPLANE_VM_IPV6=yes")
    sizes = tuple(sorted(set(services))) or base.services
    if sizes[0] < 1:
        raise UsageError(f"--services {sizes[0]}: at least 1")
    wanted = tuple(mode for mode in BETWEEN if mode in (modes or base.modes) or mode in (DIRECT, AGAIN))
    return replace(
        base, modes=wanted, services=sizes, fixed_services=sizes, light_rounds=base.rounds, routing=spec.routing
    )


class Between:
    """Measures everything that `results.settings` asks for and adds it to `results`.

    say: told what was done, a line at a time.
    """

    def __init__(self, site: Site, results: Results, journal: Journal, say: Callable[[str], None]) -> None:
        self._site, self._results, self._journal, self._say = site, results, journal, say
        self._settings = results.settings
        self._random = random.Random(self._settings.seed)

    def run(self) -> None:
        """All rounds. What fails in one mode is recorded there. Raises LabError when a node cannot be cleaned, because
        no later mode would be measured alone."""
        for services in self._settings.services:
            objects = self._objects(services)
            for number in range(1, self._settings.rounds + 1):
                for mode in self._random.sample(self._settings.modes, len(self._settings.modes)):
                    self._turn(mode, services, number, objects)

    def _objects(self, services: int) -> list[ModelObject]:
        """The benchmark's Services; all those that are used lead to the one pod."""
        backend = Backend(self._site.server.addresses[self._settings.family], self._site.server.node)
        shape = Shape(services, self._settings.endpoints, self._settings.family)
        return [item for chunk in chunks(shape, backend, backend) for item in decoded(chunk)]

    def _turn(self, mode: str, services: int, number: int, objects: list[ModelObject]) -> None:
        """One mode on all nodes, and every scenario in it."""
        keys = [
            data_key(mode, SCENARIOS[name], services, Position.LAST, number)
            for name in self._random.sample(self._settings.scenarios, len(self._settings.scenarios))
        ]
        if MODES[mode].reference:
            self._measure_all(keys)
            return
        with MachineProxies(self._site.machines, mode) as proxies:
            try:
                proxies.load(objects)
            except LabError as error:
                self._record([Cell(key, error=str(error)) for key in keys])
                return
            self._results.skipped += [text for text in proxies.said if text and text not in self._results.skipped]
            self._measure_all(keys)

    def _measure_all(self, keys: Sequence[CellKey]) -> None:
        self._record([measured(key, partial(self._measure, key)) for key in keys])

    def _measure(self, key: CellKey) -> dict[str, float]:
        return judged(self._site.measure(key.mode, SCENARIOS[key.scenario], key.services, self._settings))

    def _record(self, cells: Sequence[Cell]) -> None:
        """Keep what one turn gave, and say it."""
        for cell in cells:
            self._results.cells.append(cell)
            self._journal.add(cell)
        key = cells[0].key
        told = ", ".join(f"{c.key.scenario} {c.error or format(c.figures['rate'], '.4g')}" for c in sorted_cells(cells))
        self._say(f"round {key.round}, {key.services} Services, {key.mode}: {told}")


def sorted_cells(cells: Sequence[Cell]) -> list[Cell]:
    """In the order in which scenarios are listed."""
    names = list(SCENARIOS)
    return sorted(cells, key=lambda cell: names.index(cell.key.scenario))
