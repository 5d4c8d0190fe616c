"""A program in a pod that answers each line with a line of JSON, through one `kubectl exec` that stays open."""

import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from dataplane.bench.cluster.kubectl import ClusterError, Kubectl, sentence
from dataplane.lab.traffic.agents import need_pipe, read_line
from dataplane.resource import Resource

_END_SECONDS = 5.0


class Session(Resource):
    """Starts when it is asked for the first time, and again after it broke off."""

    def __init__(self, kubectl: Kubectl, pod: str, argv: Sequence[str]) -> None:
        self._kubectl, self._pod, self._argv = kubectl, pod, argv
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close

    def ask(self, line: str, seconds: float) -> dict[str, Any]:
        """One request. Raises ClusterError when the answer is late, is an error, or the connection broke off."""
        process = self._process or self._start()
        pipe = need_pipe(process.stdin)
        try:
            pipe.write(line.encode() + b"\n")
            pipe.flush()
            answer = read_line(process, time.monotonic() + seconds)
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise ClusterError(self._failed(seconds))
        try:
            found: dict[str, Any] = msgspec.json.decode(answer, type=dict[str, Any])
        except msgspec.DecodeError as error:
            self._end()
            raise ClusterError(f"pod {self._pod}: {answer[:100]!r} is no answer: {error}") from error
        if "error" in found:
            raise ClusterError(f"pod {self._pod}: {found['error']}")
        return found

    def _start(self) -> "subprocess.Popen[bytes]":
        command = self._kubectl.command(self._pod, *self._argv)
        self._stderr.seek(0)
        self._stderr.truncate()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, start_new_session=True
        )
        return self._process

    def _failed(self, seconds: float) -> str:
        """Return what broke off and why; the next request starts a new process."""
        over = self._end()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace")
        if over is None:
            return f"pod {self._pod}: no answer in {seconds:.0f} s"
        return sentence(f"pod {self._pod}: the connection to it has ended", said)

    def _end(self) -> int | None:
        """End the process; its exit status if it had ended by itself."""
        process, self._process = self._process, None
        if process is None:
            return None
        status = process.poll()
        if status is None:
            try:
                status = process.wait(timeout=0.5)  # its output has just ended
            except subprocess.TimeoutExpired:
                process.kill()
        for pipe in (process.stdin, process.stdout):
            try:
                need_pipe(pipe).close()
            except BrokenPipeError:
                continue  # a request that nobody reads any more
        process.wait()
        return status

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            try:
                need_pipe(self._process.stdin).close()
                self._process.wait(timeout=_END_SECONDS)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self._process.kill()
            self._process.wait()
            need_pipe(self._process.stdout).close()
            self._process = None
        self._stderr.close()
