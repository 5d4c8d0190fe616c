"""netperf as load generator: TCP_CRR, TCP_RR and TCP_STREAM by its client and server, instead of the bench's own.

Its control connection goes to the server's own address; only the connections that are measured go to the Service. The
server listens for those where the client says, so the Service's port and the pod's must be the same number. netperf is
in Debian's non-free part; nothing installs it.
"""

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from dataplane.lab.spec import LabError

CONTROL_PORT = 12865
TESTS = {"crr": "TCP_CRR", "rr": "TCP_RR", "iperf3 1": "TCP_STREAM", "urr": "UDP_RR"}
"""By the operation that each stands for."""
THROUGH_A_SERVICE = ("crr", "rr", "iperf3 1")
"""Those over TCP: the bench's Services have a port of this kind for TCP alone."""
_PERCENTILES = {"P50_LATENCY": "p50", "P90_LATENCY": "p90", "P99_LATENCY": "p99", "MAX_LATENCY": "max"}
_KEYS = ("THROUGHPUT", "ELAPSED_TIME", *_PERCENTILES)


def installed() -> bool:
    """Whether this machine has both programs."""
    return all(shutil.which(program) for program in ("netperf", "netserver"))


def measure(
    run: "Callable[[list[str]], subprocess.CompletedProcess[Any]]",
    operation: str,
    control: str,
    target: tuple[str, int],
    seconds: float,
) -> dict[str, float]:
    """One run of the client; figures as those of load.c, bulk in gigabytes as bench.iperf's.

    run: runs a command where the client is. control: the server's own address. target: address and port of what is
    measured. seconds: rounded up to whole ones, which are the shortest that netperf knows; latencies are whole
    microseconds. Raises LabError when it fails.
    """
    test = TESTS[operation]
    words = ["netperf", "-t", test, "-H", control, "-p", str(CONTROL_PORT), "-l", str(max(1, round(seconds)))]
    done = run([*words, "--", "-H", target[0], "-P", f"0,{target[1]}", "-k", ",".join(_KEYS)])
    text = done.stdout if isinstance(done.stdout, str) else done.stdout.decode(errors="replace")
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    missing = [name for name in _KEYS[:2] if name not in found]
    if done.returncode or missing:
        said = text.strip().splitlines()[-1:] or ["it says nothing"]
        raise LabError(f"netperf {test} to {target[0]} port {target[1]}: {said[0]}")
    length, throughput = float(found["ELAPSED_TIME"]), float(found["THROUGHPUT"])
    if test == "TCP_STREAM":  # megabits a second
        return {"rate": throughput * 1e6, "operations": throughput * length / 8e3, "seconds": length, "failures": 0.0}
    times = {name: float(found[key]) * 1e3 for key, name in _PERCENTILES.items() if float(found.get(key, -1)) >= 0}
    return {"operations": throughput * length, "seconds": length, "failures": 0.0, **times}
