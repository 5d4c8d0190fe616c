"""hotplane.service of docs/deploy as a machine's systemd has it: installed, asked, and what it needs in each mode."""

import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "docs/deploy/hotplane.service"
NAME = "hotplane.service"
_INSTALLED = Path("/etc/systemd/system") / NAME
_DROP_IN = _INSTALLED.with_name(f"{NAME}.d") / "mode.conf"
_CGROUP = Path("/sys/fs/cgroup/system.slice") / NAME


def capabilities(mode: str) -> list[str]:
    """What the unit's comments say that a mode needs."""
    found: list[str] = re.findall(rf"^#   {mode}: (.+)$", UNIT.read_text(), re.MULTILINE)
    return found[0].split()


def setting(name: str) -> list[str]:
    """The values of a setting as shipped, in order."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def drop_in(*modes: str) -> str:
    """The lines that the unit's comments name for modes, as a drop-in; empty where it is right as shipped."""
    needed = dict.fromkeys(name for mode in modes for name in capabilities(mode))
    lines = re.findall(r"^#   (Exec.+)$", UNIT.read_text(), re.MULTILINE) if "ebpf" in modes else []
    if list(needed) != setting("CapabilityBoundingSet")[0].split():
        lines += [f"{which}={' '.join(needed)}" for which in ("CapabilityBoundingSet", "AmbientCapabilities")]
    return "\n".join(["[Service]", *lines, ""]) if lines else ""


def run(*command: str) -> str:
    """A command's output, both streams. Raises AssertionError where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}"
    return done.stdout.strip()


def install(*modes: str) -> None:
    """The unit as shipped, with the drop-in for these modes, known to systemd and without a word from its checker."""
    _INSTALLED.write_bytes(UNIT.read_bytes())
    _DROP_IN.parent.mkdir(exist_ok=True)
    _DROP_IN.write_text(drop_in(*modes))
    run("systemctl", "daemon-reload")
    said = run("systemd-analyze", "verify", str(_INSTALLED))
    assert not said, said


def do(verb: str, *options: str) -> float:
    """`systemctl VERB hotplane.service`; the seconds that it took."""
    begun = time.monotonic()
    run("systemctl", verb, *options, NAME)
    return time.monotonic() - begun


def show(name: str) -> str:
    """A property of the unit as systemd has it now."""
    return run("systemctl", "show", "--value", "-p", name, NAME)


def pid() -> int:
    """The main process; 0: none."""
    return int(show("MainPID"))


def journal(pid: int = 0) -> str:
    """What the unit has said, or one process of it, without systemd's own words."""
    run("journalctl", "--sync")
    which = [f"_PID={pid}"] if pid else [f"_SYSTEMD_UNIT={NAME}"]
    return run("journalctl", "-q", "-o", "cat", *which)


def memory() -> str:
    """Of the unit while it runs, with all that the kernel keeps for it: now, and the most yet. It must not have been
    held up for MemoryHigh."""
    events = dict(line.split() for line in (_CGROUP / "memory.events").read_text().splitlines())
    now, peak = (int((_CGROUP / f"memory.{what}").read_text()) >> 20 for what in ("current", "peak"))
    assert events["high"] == "0", f"held up {events['high']} times for MemoryHigh; {peak} MiB at most"
    return f"{now} MiB, at most {peak}"
