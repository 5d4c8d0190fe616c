"""Whether the daemon's memory grows while Services and endpoints come and go.

    python -m tests.perf.memory_churn [--services 2000] [--minutes 10] [--rate 100] [--mode nftables]

Runs a test API server and the daemon in a network namespace and a control group of their own, as root, and makes so
many changes a second: seven of eight replace an endpoint, the eighth takes a Service away and makes it anew. Prints a
JSON object every two minutes: MB resident and the most that ever were.
"""

import argparse
import json
import os
import time
from typing import Any

from dataplane.lab.apiserver.server import ApiServer
from tests.apiserver.objects import service
from tests.perf.measured_daemon import address, ground, measured, resident, slice_of

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


def _churn(arguments: argparse.Namespace, churn: Churn, pid: int) -> None:
    started, made = time.monotonic(), 0
    told = 0
    while (passed := time.monotonic() - started) < arguments.minutes * 60 + 1:
        due = int(passed * arguments.rate) - made
        churn.go_on(due)
        made += due
        if passed >= told:
            told += PERIOD_SECONDS
            found = {key: round(value, 1) for key, value in resident(pid).items()}
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
    with ground(name, arguments.mode) as folder, measured(arguments, name, folder) as daemon:
        _churn(arguments, Churn(daemon.server, arguments.services, arguments.endpoints), daemon.pid)


if __name__ == "__main__":
    main()
