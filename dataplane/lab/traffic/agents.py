"""Probe agents: one in each place that probes are sent from, started at first use and kept."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

import msgspec

from dataplane.kernel.wait import readable
from dataplane.lab.spec import LabError
from dataplane.lab.traffic.probe import DEFAULT_CONCURRENCY, Probe, ProbeResult, Request
from dataplane.malformed import MALFORMED

START_SECONDS = 60.0

Starter = Callable[[str], "subprocess.Popen[bytes]"]
"""Starts dataplane.lab.traffic.agent in a place, by its name, with pipes on standard input and output."""


class Agents:
    """The agents of a lab. start_seconds: how long one may take to start, on top of its probes' time."""

    def __init__(self, start: Starter, start_seconds: float = START_SECONDS) -> None:
        self._start, self.start_seconds = start, start_seconds
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def probe_all(
        self, requests: Mapping[str, Sequence[Probe]], concurrency: int = DEFAULT_CONCURRENCY
    ) -> dict[str, list[ProbeResult]]:
        """Try probes from several places at the same time (place name -> probes); results likewise.

        Raises LabError when an agent fails.
        """
        agents = {name: self._agent(name) for name in requests}
        try:
            for name, probes in requests.items():
                stdin = need_pipe(agents[name].stdin)
                stdin.write(msgspec.json.encode(Request(tuple(probes), concurrency)) + b"\n")
                stdin.flush()
        except BrokenPipeError as error:
            raise self._failed(name, "it has ended") from error
        results = {}
        for name, probes in requests.items():
            patience = self.start_seconds + sum(p.count * p.packets * p.timeout for p in probes)
            answer = read_line(agents[name], time.monotonic() + patience)
            try:
                results[name] = msgspec.json.decode(answer, type=list[ProbeResult])
            except MALFORMED as error:
                raise self._failed(name, answer.decode(errors="replace")[:500] or "no answer") from error
        return results

    def close(self) -> None:
        """End them all."""
        for agent in self._running.values():
            with suppress(BrokenPipeError):  # what one that has ended has not read is still to be written
                need_pipe(agent.stdin).close()
        for agent in self._running.values():
            try:
                agent.wait(timeout=2)
            except subprocess.TimeoutExpired:  # it is in the middle of a long request that nobody waits for any more
                agent.kill()
                agent.wait()
            need_pipe(agent.stdout).close()
        self._running.clear()

    def _failed(self, name: str, reason: str) -> LabError:
        """Other agents may be in the middle of answers that nobody will read, so all are started afresh next time."""
        for agent in self._running.values():
            agent.kill()
        self.close()
        return LabError(f"{name}: the probe agent failed: {reason}")

    def _agent(self, name: str) -> "subprocess.Popen[bytes]":
        if name not in self._running:
            self._running[name] = self._start(name)
        return self._running[name]


def need_pipe(end: IO[bytes] | None) -> IO[bytes]:
    """A pipe of a process that was started with it. Raises LabError when it was not."""
    if end is None:
        raise LabError("this process was started without that pipe")
    return end


def read_line(process: "subprocess.Popen[bytes]", deadline: float) -> bytes:
    """One line of a process's output, empty when it ends or the deadline (time.monotonic) passes before one begins."""
    out = need_pipe(process.stdout)
    return out.readline() if readable([out.fileno()], deadline - time.monotonic()) else b""
