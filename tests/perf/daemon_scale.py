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
import time
from pathlib import Path
from typing import Any

from dataplane.kernel.namespaces import netns
from dataplane.lab.apiserver.server import ApiServer
from tests.perf.measured_daemon import ground, measured, resident, slice_of


def _measure(arguments: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    lists = not arguments.pages
    with measured(arguments, name, folder, streaming_lists=lists, realtime=arguments.realtime) as daemon:
        time.sleep(3)
        loaded_memory = resident(daemon.pid)
        waits, kernels = _changes(daemon.server, arguments, daemon.log)
        changed = resident(daemon.pid)
        rollout = _rollout(daemon.server, arguments, name)
        after = resident(daemon.pid)
    waits.sort()
    return {
        "services": arguments.services, "endpoints": arguments.services * arguments.endpoints,
        "start_to_loaded_s": round(daemon.cold, 2), "loaded": daemon.loaded.split(" loaded ")[1],
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


def _taken_in(name: str) -> float:
    """How many endpoint changes the daemon has taken in, by its metrics."""
    with netns.netns(name):
        with socket.create_connection(("127.0.0.1", 10249), 60) as sock:
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode()
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
    with ground(name, arguments.mode) as folder:
        print(json.dumps(_measure(arguments, name, folder), indent=2))


if __name__ == "__main__":
    main()
