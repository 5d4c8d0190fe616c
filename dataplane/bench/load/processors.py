"""Clients, servers and packet generators on several processors at once, on the nodes of a benchmark's lab."""

import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from dataplane.bench.machine.cpu import usage
from dataplane.bench.modes import MODES
from dataplane.bench.objects import PROCESSORS_PORT, TCP_PORT, processors_ip
from dataplane.bench.processors import client_places, present, server_places, servers_of
from dataplane.bench.profiles import Settings, seconds_of
from dataplane.bench.scenarios import Position, Scenario
from dataplane.kernel.netlink.links import Links
from dataplane.lab.spec import LabError

if TYPE_CHECKING:
    import subprocess

    from dataplane.bench.helper import Helper
    from dataplane.bench.rig import Rig

_PATIENCE = 30.0
_PERCENTILES = ("p50", "p90", "p99", "p999")


class ProcessorLoad:
    """As a context manager: while it lasts every uplink has a queue for each processor, and servers run. modes: those
    that are measured. Raises LabError where uplinks cannot have as many queues."""

    def __init__(self, rig: "Rig", settings: Settings, modes: Iterable[str]) -> None:
        self._rig, self._settings, self._modes = rig, settings, list(modes)
        self._processors = present()
        self._clients: dict[str, list[Helper]] = {}
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._queues(max(self._settings.processors))
            places = server_places(servers_of(self._settings), self._processors)
            for mode in self._modes:
                for number, place in enumerate(places):
                    self._servers.append(self._rig.server(mode, PROCESSORS_PORT + number, place))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for helper in [helper for helpers in self._clients.values() for helper in helpers]:
            helper.close()
        for process in self._servers:
            process.kill()
            process.wait()
        self._clients.clear()
        self._servers.clear()
        self._queues(1)

    def _queues(self, count: int) -> None:
        """Give both ends of every uplink so many queues: where there are more, first the end whose programs may only
        receive from as many queues as it has, where there are fewer last."""
        switch = self._rig.lab.topology.underlay.netns
        for node in self._rig.lab.nodes:
            ends = [(node.netns, node.uplink), (switch, node.name)]
            for namespace, device in ends if count > 1 else reversed(ends):
                with Links(namespace) as links:
                    try:
                        found = links.set_queues(device, count)
                    except OSError as error:
                        raise LabError(f"{device}: no {count} queues here: {error.strerror}") from error
                if found < count:
                    raise LabError(f"{device}: this kernel gives a veth {found} queues, not {count}")

    def measure(self, mode: str, scenario: Scenario, count: int, services: int) -> dict[str, Any]:
        """One measurement with so many clients or generators. Figures: rate of all of them, operations, failures,
        seconds; percentiles as the mean over the clients, p99_slowest of the slowest of them; cpu and others as for
        other scenarios. Raises LabError."""
        before, own, started = usage(self._rig.group), time.process_time(), time.perf_counter()
        live = scenario.operation == "live"
        found = self._forward(mode, scenario, count, services) if live else self._connect(mode, scenario, count)
        seconds, after = time.perf_counter() - started, usage(self._rig.group)
        own = time.process_time() - own if live else 0.0
        lab, machine = after.lab - before.lab, after.machine - before.machine
        if found["operations"]:
            found["cpu"] = (lab + own) / found["operations"] * 1e6
        return found | {"others": max(0.0, machine - lab - own) / seconds}

    def _forward(self, mode: str, scenario: Scenario, count: int, services: int) -> dict[str, Any]:
        target = self._rig.target(mode, scenario, services, Position.LAST)
        places = [self._processors[place] for place in client_places(count, self._processors)]
        return dict(self._rig.live(mode, target, seconds_of(self._settings, scenario), places))

    def _connect(self, mode: str, scenario: Scenario, count: int) -> dict[str, Any]:
        clients, servers = self._clients_of(mode, count), servers_of(self._settings)
        if MODES[mode].reference:
            targets = [(self._rig.pod(mode), PROCESSORS_PORT + number % servers) for number in range(count)]
        else:
            targets = [(processors_ip(self._settings.family), TCP_PORT)] * count
        seconds = seconds_of(self._settings, scenario)

        def ask(number: int) -> dict[str, Any]:
            address, port = targets[number]
            return clients[number].ask(f"connect {address} {port} {seconds} - 0".encode(), seconds + _PATIENCE)

        with ThreadPoolExecutor(count) as threads:
            return together(list(threads.map(ask, range(count))))

    def _clients_of(self, mode: str, count: int) -> "list[Helper]":
        known = self._clients.setdefault(mode, [])
        for place in client_places(count, self._processors)[len(known) :]:
            known.append(self._rig.client(mode, place))
        return known[:count]


def together(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the combined result of several clients that ran at once."""
    operations = sum(answer["operations"] for answer in answers)
    found = {
        "operations": operations,
        "failures": sum(answer["failures"] for answer in answers),
        "seconds": max(answer["seconds"] for answer in answers),
        "rate": math.fsum(answer["operations"] / answer["seconds"] for answer in answers),
    }
    for name in _PERCENTILES if operations else ():
        found[name] = math.fsum(answer[name] * answer["operations"] for answer in answers) / operations
    return found | {"p99_slowest": max(answer["p99"] for answer in answers)}
