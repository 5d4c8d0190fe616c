"""The events: what happens to a node of each mode, and the load that goes on meanwhile."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from dataplane.bench.agent import Request
from dataplane.bench.events.daemon import NodeDaemon
from dataplane.bench.events.full_table import forget, nearly_full
from dataplane.bench.events.proxy import NodeProxy
from dataplane.bench.figures.watched import seen
from dataplane.bench.left_out import LeftOut
from dataplane.bench.load.watcher import FLOWS
from dataplane.bench.modes import MODES
from dataplane.bench.objects import LOCAL_NODE_PORT, SERVER_PORT, chunks
from dataplane.bench.profiles import Settings
from dataplane.bench.rig import LOAD_PATIENCE, Rig
from dataplane.bench.scenarios import SCENARIOS, Position, Scenario
from dataplane.lab.spec import LabError

FLOOD_RATE = 10000
"""SYNs a second, from outside to a node port that the load's server is behind."""
LASTS = 3
"""What has no end of its own goes on for so many times Settings.event_seconds; before and after an event the load goes
on for one time each."""


class Events:
    """Measures events on the nodes of a rig, at a number of Services. As a context manager: proxies end, and leave
    nothing on their nodes; the agents of modes that had one are gone too."""

    def __init__(self, rig: Rig, settings: Settings, services: int) -> None:
        self._rig, self._settings, self._services = rig, settings, services
        self._folder = Path(tempfile.mkdtemp(prefix="hotplane-bench-"))
        self._proxies: dict[str, NodeProxy] = {}
        self._happens: dict[str, Callable[[str], None]] = {
            "rollout": self._rollout,
            "coldstart": self._cold_start,
            "restart": self._restart,
            "kill": self._kill,
            "switch": self._switch,
            "conntrack": self._nothing,
            "syn-flood": self._flood,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for mode in list(self._proxies):
                self.leave(mode)
        finally:
            shutil.rmtree(self._folder)

    def leave(self, mode: str) -> None:
        """End the mode's proxy, if there is one, and leave nothing of it on the node. Raises HotplaneError."""
        if mode in self._proxies:
            self._proxies.pop(mode).leave()
            shutil.rmtree(self._folder / mode, ignore_errors=True)

    def measure(self, mode: str, scenario: Scenario) -> dict[str, Any]:
        """The figures of one event in one mode; event: seconds that it took. In a mode that balances nothing only what
        does not concern a proxy happens. Raises LabError, LeftOut, PlaneError.

        The connection table is empty before: of connections that met no rules in a cold start it would hold entries
        without a translation, for two minutes, and whoever gets such a port again is not translated either."""
        operation, bare = scenario.operation, MODES[mode].reference
        if not bare:
            self._prepare(mode, operation)
        target = self._rig.target(mode, SCENARIOS["connect"], self._services, Position.LAST)
        node, seconds = self._rig.nodes[mode], self._settings.event_seconds
        happens = self._nothing if bare and operation != "syn-flood" else self._happens[operation]
        flows = 0 if operation == "coldstart" else FLOWS
        forget(node.netns)
        with nearly_full(node.netns) if operation == "conntrack" else _as_it_is():
            watcher = self._rig.watcher(self._rig.client_of(mode))
            watcher.begin(target, flows=flows)
            try:
                time.sleep(seconds if flows else 0.0)
                started = time.perf_counter()
                happens(mode)
                took = time.perf_counter() - started
                time.sleep(seconds)
            finally:
                answer = watcher.end()
        return seen(answer, flows) | {"event": took}

    def _prepare(self, mode: str, operation: str) -> None:
        """Have the mode's proxy run, or for a cold start nothing of it be there."""
        if operation == "rollout" and not MODES[mode].is_peer:
            self._prepare_agent(mode)
            return
        self._rig.end_agent(mode)
        if MODES[mode].is_peer:
            self._proxies[mode] = self._peer(mode)  # it may run already
        if operation == "coldstart":
            self.leave(mode)
        proxy = self._proxy(mode)
        if operation != "coldstart":
            proxy.ready()

    def _prepare_agent(self, mode: str) -> None:
        """Rollouts are of the planner and plane that the benchmark feeds itself, all else of the daemon."""
        self.leave(mode)
        if not self._rig.has_agent(mode):
            self._rig.restart_agent(mode)
            self._rig.load(mode, self._services)

    def _proxy(self, mode: str) -> NodeProxy:
        """The mode's proxy: a peer, or hotplane's daemon; it has the Services to serve."""
        if mode not in self._proxies:
            self._proxies[mode] = self._peer(mode) if MODES[mode].is_peer else self._daemon(mode)
        return self._proxies[mode]

    def _peer(self, mode: str) -> NodeProxy:
        peer = self._rig.peer(mode)
        peer.fill(self._services)
        return peer

    def _daemon(self, mode: str) -> NodeDaemon:
        folder = self._folder / mode
        folder.mkdir()
        daemon = NodeDaemon(self._rig.lab, self._rig.nodes[mode], mode, folder)
        daemon.manifests(chunks(*self._rig.objects(mode, self._services)))
        return daemon

    def _nothing(self, mode: str) -> None:
        time.sleep(LASTS * self._settings.event_seconds)

    def _rollout(self, mode: str) -> None:
        seconds = LASTS * self._settings.event_seconds
        if not MODES[mode].is_peer:
            self._rig.agent(mode).ask(msgspec.json.encode(Request("rollout", seconds=seconds)), LOAD_PATIENCE)
        elif not self._rig.peer(mode).changes(seconds):
            raise LabError(f"{mode}: its API server made no change in {seconds:g} s")

    def _cold_start(self, mode: str) -> None:
        self._proxies[mode].start()

    def _restart(self, mode: str) -> None:
        self._proxies[mode].stop()
        self._proxies[mode].start()

    def _kill(self, mode: str) -> None:
        self._proxies[mode].kill()
        self._proxies[mode].start()

    def _switch(self, mode: str) -> None:
        daemon = self._proxies[mode]
        if not isinstance(daemon, NodeDaemon):
            raise LeftOut("a peer has no other mode")
        daemon.switch_and_back()

    def _flood(self, mode: str) -> None:
        node, family = self._rig.nodes[mode], self._settings.family
        bare = MODES[mode].reference
        target = (self._rig.pod(mode), SERVER_PORT) if bare else (node.addresses[family], LOCAL_NODE_PORT)
        flooder = self._rig.watcher("client")
        flooder.flood(target, FLOOD_RATE)
        try:
            self._nothing(mode)
        finally:
            sent = flooder.end()["sent"]
        if not sent:
            raise LabError(f"{node.name}: no packet of the SYN flood could be sent")


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
