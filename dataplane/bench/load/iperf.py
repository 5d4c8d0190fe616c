"""Bulk traffic by iperf3: one run of its client, and the server's report of it."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from dataplane.lab.spec import LabError

_BUSY_SECONDS, _PAUSE_SECONDS = 30.0, 0.1
"""For so long a server may be busy with the run before, as on a machine that has other work, and how often it is
asked."""


def bulk(
    run: "Callable[[list[str]], subprocess.CompletedProcess[Any]]",
    target: tuple[str, int],
    limit: Sequence[str],
    what: str,
) -> dict[str, float]:
    """Send to a server of iperf3's; rate is bits a second as that saw them, operations gigabytes, cpu_client processor
    seconds of the client.

    run: runs a command where the client is, to its end. target: address and port. limit: iperf3's options for how
    much. what: names the run in errors. Raises LabError when it fails.
    """
    argv = ["iperf3", "-c", target[0], "-p", str(target[1]), *limit, "-J"]
    last = time.monotonic() + _BUSY_SECONDS
    while True:
        done = run(argv)
        failed = {"error": _text(done.stderr).strip() or "it says nothing"}
        report: dict[str, Any] = json.loads(done.stdout) if done.stdout else failed
        if "busy" not in report.get("error", "") or time.monotonic() > last:
            break
        time.sleep(_PAUSE_SECONDS)
    if "error" in report:
        raise LabError(f"{what}: {report['error']}")
    end = report["end"]
    used = end.get("cpu_utilization_percent", {})
    received = end["sum_received"]
    return {
        "rate": received["bits_per_second"],
        "seconds": received["seconds"],
        "operations": received["bytes"] / 1e9,
        "failures": 0.0,
        "cpu_client": used.get("host_total", 0.0) / 100 * end["sum_sent"]["seconds"],
        "retransmits": float(end["sum_sent"].get("retransmits", 0)),
    }


def _text(output: str | bytes) -> str:
    return output if isinstance(output, str) else output.decode(errors="replace")
