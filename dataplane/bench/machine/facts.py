"""Facts about the machine that a run took place on; `python -m dataplane.bench.machine.facts` prints them as JSON."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dataplane.bench.figures.results import Machine

_TOOLS = {"nft": ("nft", "--version"), "iptables": ("iptables", "--version"), "iperf3": ("iperf3", "--version")}
_ROOT = Path(__file__).resolve().parents[3]
COMMIT = "COMMIT"
"""File beside the sources that says what they are of, where git cannot."""


def _first_line(argv: Sequence[str]) -> str:
    if shutil.which(argv[0]) is None:
        return ""
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    return (done.stdout.strip().splitlines() or [""])[0]


def _value(path: str, name: str, separator: str) -> str:
    """Value of the first `name` in a file of lines `name separator value`, or ""."""
    file = Path(path)
    for line in file.read_text().splitlines() if file.exists() else ():
        key, found, value = line.partition(separator)
        if found and key.strip() == name:
            return value.strip().strip('"')
    return ""


def _versions() -> dict[str, str]:
    found = {name: _first_line(argv) for name, argv in _TOOLS.items()}
    found["hotplane"] = importlib.metadata.version("hotplane") if _installed() else ""
    found["commit"] = _first_line(("git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD")) or _packed_commit()
    found["python"] = ".".join(map(str, sys.version_info[:3]))
    return {name: version for name, version in found.items() if version}


def _packed_commit() -> str:
    file = _ROOT / COMMIT
    return file.read_text().strip() if file.exists() else ""


def _installed() -> bool:
    return any(d.metadata["Name"] == "hotplane" for d in importlib.metadata.distributions())


def facts(notes: Sequence[str] = ()) -> Machine:
    """This machine, now."""
    memory = _value("/proc/meminfo", "MemTotal", ":").split()
    return Machine(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        cpu_model=_value("/proc/cpuinfo", "model name", ":"),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=int(memory[0]) * 1024 if memory else 0,
        virtual="virtual machine" if "hypervisor" in _value("/proc/cpuinfo", "flags", ":").split() else "",
        kernel=os.uname().release,
        system=_value("/etc/os-release", "PRETTY_NAME", "="),
        load_average=os.getloadavg(),
        versions=_versions(),
        notes=tuple(notes),
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(facts()) + b"\n")
