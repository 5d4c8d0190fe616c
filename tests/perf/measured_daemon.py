"""A daemon to be measured: a network namespace and a control group of its own, and an API server full of Services."""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dataplane.kernel.namespaces import cgroup, netns
from dataplane.lab.apiserver.server import ApiServer
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from tests.apiserver.objects import endpoint, endpoint_slice, node, service

ROOT = Path(__file__).resolve().parents[2]


class Measured(NamedTuple):
    """A daemon that has loaded. log: what it says. loaded: the line that says so. cold: seconds from its start."""

    server: ApiServer
    pid: int
    log: Path
    loaded: str
    cold: float


@contextlib.contextmanager
def ground(name: str, mode: str) -> Iterator[Path]:
    """A network namespace of this name and a folder for the daemon; goes with all that the daemon left in it."""
    netns.create(name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        with netns.netns(name):
            mode_of(mode).make(Making(PlaneOptions(hooks=()))).cleanup()
        netns.remove(name)
        if mode == "ebpf":
            cgroup.remove(_own_group())


@contextlib.contextmanager
def measured(
    arguments: argparse.Namespace, name: str, folder: Path, *, streaming_lists: bool = True, realtime: bool = False
) -> Iterator[Measured]:
    """The daemon, once it has loaded what the API server holds; both end with this.

    arguments: mode, services, endpoints (of each). realtime: other work on the machine does not hold the daemon up.
    """
    with netns.netns(name):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        server = ApiServer()
    with server:
        server.behave(streaming_lists=streaming_lists, bookmark_seconds=60.0)
        _fill(server, arguments.services, arguments.endpoints)
        log, command = folder / "log", _command(arguments.mode, server.url, folder, realtime=realtime)
        started = time.monotonic()
        with netns.netns(name), log.open("wb") as out:
            daemon = subprocess.Popen(command, stderr=out, cwd=ROOT)
        try:
            loaded = _until(daemon, log, " loaded ", 300)
            yield Measured(server, daemon.pid, log, loaded, time.monotonic() - started)
        finally:
            daemon.terminate()
            daemon.wait()


def address(base: str, number: int) -> str:
    """An IPv4 address by its number below `base`, the first byte."""
    return f"{base}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def slice_of(number: int, endpoints: int, change: int) -> dict[str, Any]:
    """A Service's slice with one endpoint replaced."""
    pods = [address("10", (128 << 16) + number * endpoints + k) for k in range(endpoints)]
    pods[change % len(pods)] = address("10", (200 << 16) + change)
    return endpoint_slice(f"service-{number}", pods)


def resident(pid: int) -> dict[str, float]:
    """MB resident now (VmRSS) and the most that ever were (VmHWM)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: int(re.findall(rf"{name}:\s+(\d+)", text)[0]) / 1024 for name in ("VmRSS", "VmHWM")}


def _fill(server: ApiServer, services: int, endpoints: int) -> None:
    """So many Services of so many endpoints each, on a hundred other nodes."""
    server.apply(node("node1", "192.0.2.1"))
    for start in range(0, services, 1000):
        objects: list[Any] = []
        for number in range(start, min(start + 1000, services)):
            objects.append(service(f"service-{number}", address("10", number + (96 << 16))))
            pods = [address("10", (128 << 16) + number * endpoints + k) for k in range(endpoints)]
            placed = [endpoint(pod, f"node{2 + (number + k) % 100}") for k, pod in enumerate(pods)]
            objects.append(endpoint_slice(f"service-{number}", placed))
        server.apply(*objects)


def _until(daemon: subprocess.Popen[bytes], log: Path, text: str, seconds: float) -> str:
    """The line of the daemon's log that has this text, once there is one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and daemon.poll() is None:
        for line in log.read_text().splitlines():
            if text in line:
                return line
        time.sleep(0.05)
    raise SystemExit(f"the daemon did not say {text!r}:\n{log.read_text()[-2000:]}")


def _command(mode: str, url: str, folder: Path, *, realtime: bool) -> list[str]:
    """The daemon's command line."""
    first = ["chrt", "-f", "10"] if realtime else []
    daemon = [sys.executable, "-P", "-m", "ctl.main", "run", "--master", url, "--node-name", "node1"]
    group = ["--cgroup", str(_own_group())] if mode == "ebpf" else []
    return [*first, *daemon, "--mode", mode, "--state-dir", str(folder / "state"), *group]


def _own_group() -> Path:
    """A control group of our own: connect-time balancing concerns nobody else."""
    path = cgroup.root() / f"hotplane-scale-{os.getpid()}"
    path.mkdir(exist_ok=True)
    return path
