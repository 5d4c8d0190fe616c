"""Runs external programs with a timeout: one that hangs is killed together with its child processes."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

from dataplane.errors import HotplaneError


class ToolError(HotplaneError):
    """A program exceeded its timeout, or this process is ending."""


class _Running:
    """Processes that are running. ending: no more may be started."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.ending = False


_running = _Running()


def run_tool(
    argv: Sequence[str], *, seconds: float, input: bytes | None = None, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program in a session of its own and return its status and output.

    seconds: timeout. Raises ToolError, and OSError where it cannot be started.
    """
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    with _running.lock:
        if _running.ending:
            raise ToolError(f"{argv[0]}: is not started, because this process ends")
        process = subprocess.Popen(
            list(argv), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True
        )
        _running.processes.add(process)
    try:
        out, err = process.communicate(input, seconds)
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{argv[0]}: did not end within {seconds:.0f} s and was killed") from error
    finally:
        with _running.lock:
            _running.processes.discard(process)
        if process.returncode is None:
            _kill(process)
            process.communicate()
    if _running.ending and process.returncode == -signal.SIGKILL:
        raise ToolError(f"{argv[0]}: was killed, because this process ends")
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


def end_tools() -> None:
    """Kill all running programs and refuse new ones, as this process ends. Called from a thread that waits for none."""
    with _running.lock:
        _running.ending = True
        for process in _running.processes:
            _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
