"""How the daemon scales: cold start, memory, one endpoint change from the API server's event to the kernel, a rollout.

    python -m tests.perf.daemon_scale [--services 30000] [--endpoints 5] [--changes 300] [--rollout 5000] [--mode ebpf]

Runs a test API server and the daemon in a network namespace and a control group of their own, as root. Prints one JSON
object.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ctl.ebpf import EbpfOptions
from ctl.loaded import make_plane
from dataplane.kernel import cgroup, netns
from tests.apiserver.objects import endpoint, endpoint_slice, node, service
from tests.apiserver.server import ApiServer

ROOT = Path(__file__).resolve().parents[2]


def address(base: str, number: int) -> str:
    """An IPv4 address by its number below `base`, the first byte."""
    return f"{base}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def fill(server: ApiServer, services: int, endpoints: int) -> None:
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


def resident(pid: int) -> dict[str, float]:
    """MB resident now (VmRSS) and the most that ever were (VmHWM)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return {name: int(re.findall(rf"{name}:\s+(\d+)", text)[0]) / 1024 for name in ("VmRSS", "VmHWM")}


def until(daemon: subprocess.Popen[bytes], log: Path, text: str, seconds: float) -> str:
    """The line of the daemon's log that has this text, once there is one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and daemon.poll() is None:
        for line in log.read_text().splitlines():
            if text in line:
                return line
        time.sleep(0.05)
    raise SystemExit(f"the daemon did not say {text!r}:\n{log.read_text()[-2000:]}")


def command(arguments: argparse.Namespace, url: str, folder: Path) -> list[str]:
    """The daemon's command line. arguments: mode, and whether it shall be scheduled before everybody else."""
    first = ["chrt", "-f", "10"] if getattr(arguments, "realtime", False) else []
    daemon = [sys.executable, "-P", "-m", "ctl.main", "run", "--master", url, "--node-name", "node1"]
    group = ["--cgroup", str(own_group())] if arguments.mode == "ebpf" else []
    return [*first, *daemon, "--mode", arguments.mode, "--state-dir", str(folder / "state"), *group]


def own_group() -> Path:
    """A control group of our own: connect-time balancing concerns nobody else."""
    path = cgroup.root() / f"hotplane-scale-{os.getpid()}"
    path.mkdir(exist_ok=True)
    return path


def _measure(arguments: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    with netns.netns(name):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        server = ApiServer()
    with server:
        server.behave(streaming_lists=not arguments.pages, bookmark_seconds=60.0)
        fill(server, arguments.services, arguments.endpoints)
        log = folder / "log"
        started = time.monotonic()
        with netns.netns(name), log.open("wb") as out:
            daemon = subprocess.Popen(command(arguments, server.url, folder), stderr=out, cwd=ROOT)
        try:
            loaded = until(daemon, log, " loaded ", 300)
            cold = time.monotonic() - started
            time.sleep(3)
            loaded_memory = resident(daemon.pid)
            waits, kernels = _changes(server, arguments, log)
            changed = resident(daemon.pid)
            rollout = _rollout(server, arguments, name)
            after = resident(daemon.pid)
        finally:
            daemon.terminate()
            daemon.wait()
    waits.sort()
    return {
        "services": arguments.services, "endpoints": arguments.services * arguments.endpoints,
        "start_to_loaded_s": round(cold, 2), "loaded": loaded.split(" loaded ")[1],
        "rss_mb": round(loaded_memory["VmRSS"], 1), "peak_mb": round(loaded_memory["VmHWM"], 1),
        "rss_changed_mb": round(changed["VmRSS"], 1), "rss_after_mb": round(after["VmRSS"], 1),
        "rollout": rollout, "changes": len(waits), "event_to_kernel_ms": _quantiles(waits),
        "kernel_ms": _quantiles(sorted(kernels)),
        "cpus": os.cpu_count(),
    }  # fmt: skip


def _quantiles(values: list[float]) -> dict[str, float]:
    return {f"p{q}": values[min(len(values) - 1, len(values) * q // 100)] for q in (50, 90, 99)} | {"max": values[-1]}


def _changes(server: ApiServer, arguments: argparse.Namespace, log: Path) -> tuple[list[float], list[float]]:
    """One endpoint of one Service at a time; the daemon's own log says how long each took."""
    before = len(log.read_text())
    for change in range(arguments.changes):
        number = change * 7919 % arguments.services
        server.apply(slice_of(number, arguments.endpoints, change))
        time.sleep(0.12)
    time.sleep(0.5)
    text = log.read_text()[before:]
    found = re.findall(r"kernel_ms=([\d.e-]+) event_ms=([\d.e-]+)", text)
    return [float(wait) for _, wait in found], [float(kernel) for kernel, _ in found]


def slice_of(number: int, endpoints: int, change: int) -> dict[str, Any]:
    """A Service's slice with one endpoint replaced."""
    pods = [address("10", (128 << 16) + number * endpoints + k) for k in range(endpoints)]
    pods[change % len(pods)] = address("10", (200 << 16) + change)
    return endpoint_slice(f"service-{number}", pods)


def _taken_in(name: str) -> float:
    """How many endpoint changes the daemon has taken in, by its metrics."""
    with netns.netns(name):
        with socket.create_connection(("127.0.0.1", 10249), 60) as door:
            door.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: door.recv(1 << 16), b"")).decode()
    name = 'kubeproxy_sync_proxy_rules_endpoint_changes_total{ip_family="IPv4"}'
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _rollout(server: ApiServer, arguments: argparse.Namespace, name: str) -> dict[str, float]:
    """Very many endpoint changes at once, each of another Service: how long until the last one is in the kernel."""
    before, count = _taken_in(name), min(arguments.rollout, arguments.services)
    slices = [slice_of(number, arguments.endpoints, 100_000 + number) for number in range(count)]
    started = time.monotonic()
    for start in range(0, count, 500):
        server.apply(*slices[start : start + 500])
    served = time.monotonic() - started
    while _taken_in(name) < before + count:
        time.sleep(0.1)
    seconds = time.monotonic() - started
    return {"changes": count, "announced_s": round(served, 2), "in_kernel_s": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--services", type=int, default=30000)
    parser.add_argument("--endpoints", type=int, default=5)
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--rollout", type=int, default=5000)
    parser.add_argument("--mode", default="nftables")
    parser.add_argument("--pages", action="store_true", help="list in pages instead of by a streaming list")
    parser.add_argument("--realtime", action="store_true", help="other work on the machine does not hold the daemon up")
    arguments = parser.parse_args()
    name = f"hp-scale-{os.getpid()}"
    netns.create(name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(_measure(arguments, name, Path(folder)), indent=2))
    finally:
        with netns.netns(name):
            make_plane(arguments.mode, ebpf=EbpfOptions(hooks=())).cleanup()
        netns.remove(name)
        if arguments.mode == "ebpf":
            cgroup.remove(own_group())


if __name__ == "__main__":
    main()
