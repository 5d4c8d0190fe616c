"""A peer under measurement: an API server, the peer's processes and probes, and the times between them.

Nothing is asked of the peer. A time begins with an event (its start, a change that watches hear of) and ends when a
connection through the last Service is answered by the endpoint that the event is about.
"""

import random
import subprocess
import time
from collections.abc import Callable
from typing import Any

import msgspec

from dataplane.bench.agent import CHANGES_A_SECOND, spread_of
from dataplane.bench.helper import Helper
from dataplane.bench.objects import Backend, Shape, probe_ip
from dataplane.bench.peer import api, probe
from dataplane.bench.peer.cluster import LISTEN, PLACES, PROBE_PORT
from dataplane.bench.peer.process import PeerProcess
from dataplane.bench.peer.spec import Peer
from dataplane.bench.processors import servers_of
from dataplane.bench.profiles import Settings, flow_endpoints
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabError, Node
from dataplane.model.net import Family

PATIENCE, PATIENCE_EACH = 60.0, 0.01
"""Seconds until a peer counts as one that programs nothing, and how many more for each Service."""
FILL_SECONDS, ANSWER_SECONDS = 600.0, 30.0
_LOOK_SECONDS = 0.02


class PeerControl:
    """One peer on one node, which it has to itself. seed: of the pauses."""

    def __init__(self, lab: Lab, node: Node, remote: Node, peer: Peer, settings: Settings) -> None:
        self._lab, self._node, self._remote, self._peer, self._settings = lab, node, remote, peer, settings
        self._process = PeerProcess(lab, node, peer, settings.family)
        self._api: Helper | None = None
        self._probe: Helper | None = None
        self._url, self._services, self._place, self._failed = "", 0, PLACES[0], ""
        self._random = random.Random(settings.seed)

    @property
    def notes(self) -> dict[str, str]:
        """What a reader should know, what it left behind, how it had to be ended: what happened -> the whole text."""
        return self._process.notes

    def check(self) -> None:
        """Raise LabError with its last words if it has ended, or did not start."""
        if self._failed:
            raise LabError(self._failed)
        self._process.check()

    def leave(self) -> None:
        """End it and leave nothing of it on the node. Raises LabError."""
        self._failed = ""
        self._process.clean()

    def ready(self) -> None:
        """Have it run: start it unless it does. Raises LabError, also when it has ended by itself or did not start."""
        self.check()
        if not self._process.is_running:
            self.start()

    def start(self) -> None:
        """Start it; see `_start`. Raises LabError."""
        self._start()

    def stop(self) -> None:
        """End it in order: SIGTERM to all of its processes."""
        self._process.end()

    def kill(self) -> None:
        """kill -9 of all of its processes."""
        self._process.kill()

    def load(self, services: int) -> dict[str, float]:
        """A cold start among so many Services, after `leave`. Figures: `seconds` from the peer's start to the first
        answered connection, probes and how many of them had no answer (`failures`), cpu (processor seconds), rss
        (bytes)."""
        self._failed = ""
        self.fill(services)
        return self._start()

    def restart(self) -> dict[str, float]:
        """End it in order and start it again over what it left, to an endpoint that came meanwhile; figures as
        `load`."""
        self.check()
        self.stop()
        return self._start()

    def changes(self, seconds: float) -> float:
        """Let CHANGES_A_SECOND endpoints of other Services change for so long; how many did."""
        self._ask_api(api.Order("churn", rate=CHANGES_A_SECOND))
        try:
            time.sleep(seconds)
        finally:
            made = float(self._ask_api(api.Order("churn"))["made"])
        return made

    def change(self) -> dict[str, float]:
        """Move the endpoint again and again, each time on its own. Percentiles of the times in nanoseconds; cpu:
        processor seconds of one change."""
        self.check()
        wanted = self._settings.probing
        return self._moves(lambda: wanted.pause)

    def rollout(self) -> dict[str, float]:
        """The same while CHANGES_A_SECOND other endpoints change, at random moments of that. rate: how many changes
        there were a second; cpu: processor seconds a second."""
        self.check()
        started = time.monotonic()
        self._ask_api(api.Order("churn", rate=CHANGES_A_SECOND))
        before = self._process.used()["cpu"]
        try:
            figures = self._moves(lambda: self._random.random() * self._settings.probing.pause)
        finally:
            seconds, used = time.monotonic() - started, self._process.used()["cpu"]
            made = self._ask_api(api.Order("churn"))["made"]
        return {**figures, "rate": made / seconds, "cpu": max(0.0, used - before) / seconds}

    def _moves(self, pause: Callable[[], float]) -> dict[str, float]:
        """One change that does not count, since it may meet the rest of a start, and those that do."""
        self._moved()
        times: list[int] = []
        failures, before = 0.0, self._process.used()["cpu"]
        for _ in range(self._settings.probing.changes):
            time.sleep(pause())
            took, lost = self._moved()
            times.append(took)
            failures += lost
        used = self._process.used()
        cpu = max(0.0, used["cpu"] - before) / len(times)
        return {**spread_of(times), "failures": failures, "cpu": cpu, "rss": used["rss"]}

    def _moved(self) -> tuple[int, float]:
        """Move the endpoint; nanoseconds until a connection met it, and probes without an answer until then."""
        self._begin(self._other())
        at = self._move()
        found = self._until(at)
        return int(found["at"] - at), found["failures"]

    def close(self) -> None:
        """Remove everything."""
        try:
            self._process.close()
        finally:
            for helper in filter(None, (self._api, self._probe)):
                helper.close()
            self._api = self._probe = None

    def _other(self) -> str:
        return PLACES[1 - PLACES.index(self._place)]

    def _move(self) -> float:
        """Move the endpoint to the other place; when watches hear of it."""
        self._place = self._other()
        return float(self._ask_api(api.Order("move", place=self._place))["at"])

    def _start(self) -> dict[str, float]:
        """Start it, and wait until a connection through the last Service is answered by its endpoint, which moves
        before where rules of it may be on the node: what answers there is no news. Figures as `load`. Raises LabError,
        and nothing of it is on the node then."""
        try:
            if self._process.is_dirty:
                self._move()
            return self._answered()
        except LabError as error:
            self._failed = str(error)
            self._process.clean()
            raise

    def _answered(self) -> dict[str, float]:
        before = self._process.used()["cpu"]
        self._begin(self._place)
        at = self._process.start(self._url)
        found = self._until(at)
        used = self._process.used()
        seconds = (found["at"] - at) / 1e9
        if seconds <= 0:
            raise LabError(f"{self._peer.name}: a connection was answered before it was started: another's rules?")
        cpu = max(0.0, used["cpu"] - before)
        return {
            "seconds": seconds, "probes": found["probes"], "failures": found["failures"], "cpu": cpu, "rss": used["rss"]
        }  # fmt: skip

    def _begin(self, place: str) -> None:
        if self._probe is None:
            family, server = self._settings.family, self._node.pods[0]
            places = [f"{name}={port}" for name, port in LISTEN.items()]
            self._probe = self._helper(
                self._node.pods[1].name, "probe", [probe_ip(family), str(PROBE_PORT), server.netns, *places]
            )
            self._probe.hear(ANSWER_SECONDS)
        self._probe.ask(msgspec.json.encode(probe.Order("begin", place)), ANSWER_SECONDS)

    def _until(self, at: float) -> dict[str, float]:
        """What the probes found, once there is an answer from where they look for one. Raises LabError when the peer
        ends before, or does nothing for too long."""
        assert self._probe is not None, "probes have begun"
        patience = PATIENCE + PATIENCE_EACH * self._services
        while True:
            found: dict[str, float] = self._probe.ask(msgspec.json.encode(probe.Order("result")), ANSWER_SECONDS)
            if found["at"]:
                return found
            self._process.check()
            if time.monotonic_ns() - at > patience * 1e9:
                raise LabError(
                    f"{self._peer.name}: no connection through the last of {self._services:,} Services was answered by "
                    f"its endpoint within {patience:.0f} s; {self._process.last_words()}"
                )
            time.sleep(_LOOK_SECONDS)

    def fill(self, services: int) -> None:
        """Have an API server with so many Services: the one that there is, or a new one."""
        if self._api is not None and self._services == services:
            return
        if self._api is not None:
            self._api.close()
        settings = self._settings
        address = self._lab.topology.underlay.addresses[Family.IPV4]
        self._api = self._helper("net", "api", [self._lab.spec.name, address])
        self._url = str(self._api.hear(ANSWER_SECONDS)["url"])
        local, remote = (
            Backend(node.pods[0].addresses[settings.family], node.name) for node in (self._node, self._remote)
        )
        shape = Shape(
            services, settings.endpoints, settings.family, servers_of(settings), flow_endpoints(settings), settings.form
        )
        order = api.Order("fill", shape, local, remote, self._place)
        self._api.ask(msgspec.json.encode(order), FILL_SECONDS)
        self._services = services

    def _ask_api(self, order: api.Order) -> dict[str, Any]:
        assert self._api is not None, "it is filled before anything starts"
        return self._api.ask(msgspec.json.encode(order), ANSWER_SECONDS)

    def _helper(self, place: str, module: str, arguments: list[str]) -> Helper:
        process = self._lab.python(
            place, f"dataplane.bench.peer.{module}", arguments,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        return Helper(process, f"{self._peer.name}: the {module} process beside it")
