"""Whether the daemon's memory grows while Services and endpoints come and go.

    python -m tests.perf.memory_churn [--services 2000] [--minutes 10] [--rate 100] [--mode nftables]

Runs a test API server and the daemon in a network namespace and a control group of their own, as root, and makes so
many changes a second: seven of eight replace an endpoint, the eighth takes a Service away and makes it anew. Prints a
JSON object every two minutes: MB resident and the most that ever were.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from ctl.ebpf import EbpfOptions
from ctl.loaded import make_plane
from dataplane.kernel import cgroup, netns
from tests.apiserver.objects import service
from tests.apiserver.server import ApiServer
from tests.perf.daemon_scale import address, command, fill, own_group, resident, slice_of, until

ROOT = Path(__file__).resolve().parents[2]
PERIOD_SECONDS = 120
STEP_SECONDS = 0.1


class Churn:
    """The changes, one after the other. fresh endpoints have addresses that were not there for a while."""

    def __init__(self, server: ApiServer, services: int, endpoints: int) -> None:
        self._server, self._services, self._endpoints = server, services, endpoints
        self._number = 0

    def go_on(self, count: int) -> None:
        """So many more changes."""
        changed: list[dict[str, Any]] = []
        for number in range(self._number, self._number + count):
            which = number * 7919 % self._services
            if number % 8 == 0:
                self._server.delete("Service", "default", f"service-{which}")
                self._server.apply(service(f"service-{which}", address("10", which + (96 << 16))))
            else:
                changed.append(slice_of(which, self._endpoints, number))
        self._number += count
        self._server.apply(*changed)


def _run(arguments: argparse.Namespace, name: str, folder: Path) -> None:
    with netns.netns(name):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        server = ApiServer()
    with server:
        server.behave(bookmark_seconds=60.0)
        fill(server, arguments.services, arguments.endpoints)
        log = folder / "log"
        with netns.netns(name), log.open("wb") as out:
            daemon = subprocess.Popen(command(arguments, server.url, folder), stderr=out, cwd=ROOT)
        try:
            until(daemon, log, " loaded ", 300)
            _churn(arguments, Churn(server, arguments.services, arguments.endpoints), daemon)
        finally:
            daemon.terminate()
            daemon.wait()


def _churn(arguments: argparse.Namespace, churn: Churn, daemon: "subprocess.Popen[bytes]") -> None:
    started, made = time.monotonic(), 0
    told = 0
    while (passed := time.monotonic() - started) < arguments.minutes * 60 + 1:
        due = int(passed * arguments.rate) - made
        churn.go_on(due)
        made += due
        if passed >= told:
            told += PERIOD_SECONDS
            found = {key: round(value, 1) for key, value in resident(daemon.pid).items()}
            print(json.dumps({"minute": round(passed / 60, 1), "changes": made, **found}), flush=True)
        time.sleep(STEP_SECONDS)


def main() -> None:
    """Measure, and remove what was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--services", type=int, default=2000)
    parser.add_argument("--endpoints", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=int, default=100, help="changes a second")
    parser.add_argument("--mode", default="nftables")
    arguments = parser.parse_args()
    name = f"hp-churn-{os.getpid()}"
    netns.create(name)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _run(arguments, name, Path(folder))
    finally:
        with netns.netns(name):
            make_plane(arguments.mode, ebpf=EbpfOptions(hooks=())).cleanup()
        netns.remove(name)
        if arguments.mode == "ebpf":
            cgroup.remove(own_group())


if __name__ == "__main__":
    main()
